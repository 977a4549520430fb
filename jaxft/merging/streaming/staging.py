"""An output folder that appears whole or not at all.

Files are written without a name, where the system can, and get one at the end: a process that is killed leaves nothing,
not even space taken. What needs names before that lies in a hidden folder beside the output, which the next merge to
the same place removes if its process is gone.
"""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxft.files import followed

_SCRATCH = ".part"
# What file systems that have no nameless files say.
_NO_NAMELESS = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)


class Staging:
  """The making of one output folder.

  Attributes:
    out: the folder that will be.
  """

  def __init__(self, out: Path, *, overwrite: bool = False):
    """Checks that the place can be written to.

    Raises:
      FileExistsError: it is taken, and not to be overwritten.
      OSError: it cannot be written.
    """
    self.out, self._overwrite = followed(out), overwrite
    self._scratch: Path | None = None
    self._lock = -1
    self._check()
    self.out.parent.mkdir(parents=True, exist_ok=True)
    self._sweep()

  def _check(self) -> None:
    if not self.out.exists():
      return
    if not self.out.is_dir() or os.path.ismount(self.out):
      raise FileExistsError(f"{self.out} is no folder that can be replaced")
    if any(self.out.iterdir()) and not self._overwrite:
      raise FileExistsError(f"{self.out} exists and is not empty; --overwrite replaces it")

  @property
  def scratch(self) -> Path:
    """A hidden folder beside the output."""
    if self._scratch is None:
      self._scratch = Path(tempfile.mkdtemp(dir=self.out.parent, prefix=f".{self.out.name}.", suffix=_SCRATCH))
      self._lock = os.open(self._scratch, os.O_RDONLY)
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return self._scratch

  def open_file(self) -> tuple[int, Path | None]:
    """A new file to write: its descriptor, and its path where it has to have one."""
    if hasattr(os, "O_TMPFILE"):
      try:
        return os.open(self.out.parent, os.O_TMPFILE | os.O_RDWR, 0o666), None
      except OSError as e:
        if e.errno not in _NO_NAMELESS:
          raise
    path = self.scratch / f"{len(os.listdir(self.scratch))}.tensors"
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666), path

  def commit(self, folder: Path) -> None:
    """Moves a finished folder, which lies in `scratch`, to the output's place."""
    _sync_tree(folder)
    self._check()
    if self.out.exists() and any(self.out.iterdir()):
      old = Path(tempfile.mkdtemp(dir=self.out.parent, prefix=f".{self.out.name}.", suffix=".replaced"))
      os.rename(self.out, old)
      try:
        os.rename(folder, self.out)
      except OSError:
        os.rename(old, self.out)
        raise
      _sync(self.out.parent)
      shutil.rmtree(old)
    else:
      os.rename(folder, self.out)
      _sync(self.out.parent)

  def close(self) -> None:
    """Removes what is not committed."""
    if self._scratch is not None:
      shutil.rmtree(self._scratch, ignore_errors=True)
      os.close(self._lock)
      self._scratch = None

  def _sweep(self) -> None:
    """Removes the scratch folders of merges to this place whose process is gone."""
    for folder in self.out.parent.glob(f".{_escaped(self.out.name)}.*{_SCRATCH}"):
      try:
        lock = os.open(folder, os.O_RDONLY)
      except OSError:
        continue
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
      except OSError:  # its process lives
        pass
      finally:
        os.close(lock)


@contextmanager
def staging(out: Path, *, overwrite: bool = False) -> Iterator[Staging]:
  """A `Staging` that is closed at the end, whatever happens."""
  stage = Staging(out, overwrite=overwrite)
  try:
    yield stage
  finally:
    stage.close()


def name_file(handle: int, path: Path | None, target: Path) -> None:
  """Gives a file of `Staging.open_file` its name."""
  if path is not None:
    os.rename(path, target)
    return
  open_files = os.open("/proc/self/fd", os.O_RDONLY)
  try:
    os.link(str(handle), target, src_dir_fd=open_files)  # without the folder Python would link the link
  finally:
    os.close(open_files)


def _sync(path: Path) -> None:
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def _sync_tree(folder: Path) -> None:
  for root, _, files in os.walk(folder):
    for file in files:
      _sync(Path(root) / file)
    _sync(Path(root))


def _escaped(name: str) -> str:
  return "".join(f"[{c}]" if c in "*?[" else c for c in name)
