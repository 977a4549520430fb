"""A run's folder that is kept in an object store: it lies on this machine's disk, and is copied there as it changes.

What the store holds can be gone on from at any time, whenever the process is killed:

- files are copied before the checkpoints that were complete when the copying began, so that the lines of metrics reach
  at least as far as the newest checkpoint;
- an older checkpoint is deleted after the newer ones are there, but before the configuration of another run;
- a checkpoint counts there from the moment that its list of files, `checkpoints/<step>.json`, is written, and no more
  once that is deleted: of both, half of a folder of objects is nothing;
- the summary comes last, by which a run is complete.
"""

import contextlib
import json
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from jaxft.stores.copies import place_of
from jaxft.stores.lease import Lease
from jaxft.stores.store import Store

STEPS, LAST = "checkpoints/", "summary.json"
# What tells whether the folder that a killed process left is of the same run as that in the store.
SAME = ("config.json", "inputs.json")
PERIOD = 10.0


@contextlib.contextmanager
def mirrored(url: str, *, every: float | None = None) -> Iterator[Path]:
  """The folder on disk that stands for a run in a store, which it begins with and in which it ends.

  Whoever is in the block holds the store's lock. What a process of this machine left there counts where it is of the
  same run and further than the store, as it was killed before it had copied all.

  Args:
    url: of the run.
    every: seconds between two looks for what has changed; None: `PERIOD`.

  Raises:
    ValueError: another process trains there.
    OSError: the store cannot be read or written at the start, or at the end, when the message says what lies where.
  """
  every = PERIOD if every is None else every
  mirror = Mirror(url)
  lease = Lease(mirror.store, every)
  lease.acquire()
  over, lost = threading.Event(), []

  def copy() -> None:
    said = False
    while not over.wait(every):
      try:
        lease.renew()
        mirror.push()
        said = False
      except ValueError as e:  # the lock is another's: what is written now would mix with what that one writes
        lost.append(e)
        signal.raise_signal(signal.SIGTERM)
        return
      except OSError as e:
        if not said:
          print(f"jaxft: note: {e}; tried again every {every:g} s, and what is not there yet lies in {mirror.folder}",
                file=sys.stderr)
        said = True

  thread = threading.Thread(target=copy, name="object store", daemon=True)
  try:
    mirror.pull()
    thread.start()
    try:
      yield mirror.folder
    finally:
      over.set()
      thread.join()
      _end(mirror, lost, sys.exception())
  finally:
    if not lost:
      with contextlib.suppress(OSError):  # it is taken for dead later
        lease.release()


def _end(mirror: "Mirror", lost: list[ValueError], fault: BaseException | None) -> None:
  """Copies what is left. An error of this does not hide the one with which the run ended."""
  try:
    if lost:
      raise lost[0]
    mirror.push()
  except (ValueError, OSError) as e:
    left = f"{e}; what was not copied lies in {mirror.folder}, from where the same command goes on on this machine"
    if fault is None:
      raise type(e)(left) from None
    print(f"jaxft: note: {left}", file=sys.stderr)
  else:
    if fault is not None and mirror.holds_something():
      print(f"jaxft: what lies in {mirror.folder} has been copied to {mirror.store.url}", file=sys.stderr)
    else:  # the store has it all
      shutil.rmtree(mirror.folder, ignore_errors=True)


class Mirror:
  """A run's folder on disk and in a store.

  Args:
    url: of the run.

  Attributes:
    folder: on disk; the same one for the same URL.
    store: of the objects below the URL.
  """

  def __init__(self, url: str):
    self.store, self.folder = Store(url), place_of("runs", url)
    self._files: dict[str, tuple[int, int]] = {}  # of what the store holds: time of change and size on disk
    self._steps: dict[int, tuple[int, int]] = {}

  def pull(self) -> None:
    """Makes the folder what the store holds, unless it is further in the same run; see `mirrored`."""
    there = self.store.keys()
    listed = {int(key.removeprefix(STEPS)[:-5]) for key in there
              if key.startswith(STEPS) and key.endswith(".json") and key.removeprefix(STEPS)[:-5].isdigit()}
    for folder in {key.removeprefix(STEPS).split("/")[0] for key in there if key.count("/") > 1 and
                   key.startswith(STEPS)}:
      if not folder.isdigit() or int(folder) not in listed:  # a kill has cut its copying, or its deletion, short
        self.store.delete_all(f"{STEPS}{folder}/")
    if self._further(there, listed):
      print(f"jaxft: {self.folder} is further than {self.store.url}: the run goes on from there", file=sys.stderr)
      return
    shutil.rmtree(self.folder, ignore_errors=True)
    self.folder.mkdir(parents=True)
    for step in sorted(listed):
      self._pull_step(step)
    for key in there:
      if not key.startswith(STEPS) and key != Lease.KEY and not key.endswith("/"):
        self._pull_file(key)
        self._files[key] = _facts(self.folder / key)

  def _further(self, there: list[str], listed: set[int]) -> bool:
    own, done = self._own_steps(), (self.folder / LAST).exists()
    if not own and not done:
      return False
    if (LAST in there, max(listed, default=-1)) >= (done, max(own, default=-1)):
      return False
    # Of a run that was killed before anything was copied nothing can differ.
    return all(name not in there or self.store.read(name)[0] == _content(self.folder / name) for name in SAME)

  def _pull_step(self, step: int) -> None:
    content = self.store.read(f"{STEPS}{step}.json")[0]
    if content is None:
      return
    part = self.folder / STEPS / f".{step}.part"
    for name, size in json.loads(content)["files"].items():
      self._pull_file(f"{STEPS}{step}/{name}", part / name)
      if (part / name).stat().st_size != size:
        raise OSError(f"{self.store.url}/{STEPS}{step}/{name} must have {size} bytes; got "
                      f"{(part / name).stat().st_size}")
    part.rename(self.folder / STEPS / str(step))
    self._steps[step] = _facts(self.folder / STEPS / str(step))

  def _pull_file(self, key: str, path: Path | None = None) -> None:
    path = self.folder / key if path is None else path
    if ".." in key.split("/"):
      raise ValueError(f"{self.store.url}/{key} is no name of a file")
    content = self.store.read(key)[0]
    if content is None:
      raise OSError(f"{self.store.url}/{key} was deleted while it was read")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)

  def _own_steps(self) -> dict[int, tuple[int, int]]:
    """The complete checkpoints on disk; Orbax gives them their name in one move, and takes it at once too."""
    return {int(p.name): _facts(p) for p in (self.folder / STEPS).glob("*") if p.name.isdigit()}

  def holds_something(self) -> bool:
    """Whether the store holds a file or a checkpoint of the run."""
    return bool(self._files or self._steps)

  def push(self) -> None:
    """Copies what has changed since the last time, in the order that the module's head tells.

    Raises:
      OSError: the store cannot be written; the next push goes on from there.
    """
    steps, files = self._own_steps(), self._own_files()
    if not (self.folder / SAME[0]).exists() and (self._files or self._steps):
      # A new run is being begun here, or somebody has emptied the folder: that is not to be done to the store.
      return
    changed = [name for name, facts in files.items() if self._files.get(name) != facts]
    if SAME[0] in changed:  # a new run: its configuration must not stand over the checkpoints of the old one
      self._drop_steps(steps)
    for name in sorted(changed, key=lambda name: name == LAST):
      if name == LAST:
        self._push_steps(steps)
      with contextlib.suppress(FileNotFoundError):  # deleted meanwhile: the next push sees it
        self.store.upload(self.folder, [name])
        self._files[name] = files[name]
    self._push_steps(steps)
    for name in {*self._files} - {*files}:
      self.store.delete(name)
      del self._files[name]

  def _drop_steps(self, steps: dict[int, tuple[int, int]]) -> None:
    """Deletes from the store what is not on disk any more."""
    for step in [step for step, facts in self._steps.items() if steps.get(step) != facts]:
      self.store.delete(f"{STEPS}{step}.json")
      self.store.delete_all(f"{STEPS}{step}/")
      del self._steps[step]

  def _push_steps(self, steps: dict[int, tuple[int, int]]) -> None:
    self._upload_steps(steps)
    self._drop_steps(steps)

  def _upload_steps(self, steps: dict[int, tuple[int, int]]) -> None:
    changed = {step for step in self._steps if steps.get(step, self._steps[step]) != self._steps[step]}
    self._drop_steps({step: facts for step, facts in self._steps.items() if step not in changed})
    for step in sorted({*steps} - {*self._steps}):
      folder = self.folder / STEPS / str(step)
      try:
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        sizes = self.store.upload(folder, names, f"{STEPS}{step}/")
      except FileNotFoundError:  # so many newer ones came meanwhile that it has gone
        self.store.delete_all(f"{STEPS}{step}/")
        continue
      self.store.write(f"{STEPS}{step}.json", json.dumps({"files": sizes}).encode())
      self._steps[step] = steps[step]

  def _own_files(self) -> dict[str, tuple[int, int]]:
    """All files but checkpoints and what is being made, whose names begin with a dot; folders that way too."""
    found = {}
    for path in self.folder.rglob("*"):
      name = path.relative_to(self.folder).as_posix()
      if name.startswith(STEPS) or any(part.startswith(".") for part in name.split("/")) or not path.is_file():
        continue
      with contextlib.suppress(FileNotFoundError):
        found[name] = _facts(path)
    return found


def _facts(path: Path) -> tuple[int, int]:
  found = path.stat()
  return found.st_mtime_ns, found.st_size if path.is_file() else found.st_ino


def _content(path: Path) -> bytes | None:
  return path.read_bytes() if path.is_file() else None
