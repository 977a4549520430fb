"""Writing files: whole or not at all, and into folders of which it is known beforehand that they take them."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: str | os.PathLike, write: Callable[[Path], Any]) -> None:
  """Lets `write(part)` fill a file beside `path`, then moves it to `path` in one step; leaves nothing on failure."""
  path = Path(path)
  part = part_of(path)
  try:
    part.touch()
    mode = part.stat().st_mode
    write(part)
    part.chmod(mode)  # what wrote it may have made it private to the user, as safetensors does
    with open(part, "rb") as f:
      os.fsync(f.fileno())
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
  """The hidden name beside `path` under which this process makes what will be moved there."""
  return path.with_name(f".{path.name}.{os.getpid()}.part")


def remove_leftovers(path: Path) -> None:
  """Removes what processes that live no more, killed before they could, left of making `path`; see `part_of`.

  This process's own number counts as such: in a container the next process often has the number of the last.
  """
  for part in path.parent.glob("*.part"):
    made = re.fullmatch(rf"\.{re.escape(path.name)}\.(\d+)\.part", part.name)
    if made is None or (int(made[1]) != os.getpid() and _lives(int(made[1]))):
      continue
    if part.is_dir():
      shutil.rmtree(part, ignore_errors=True)
    else:
      part.unlink(missing_ok=True)


def _lives(process: int) -> bool:
  try:
    os.kill(process, 0)  # asks, and sends nothing
  except ProcessLookupError:
    return False
  except OSError:  # another user's
    return True
  return True


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text, its folder made where it is missing, so that a kill or a full disk leaves the old content."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def check_apart(out: Path, inputs: Mapping[str, str | os.PathLike]) -> None:
  """Looks whether a folder that will be written, and perhaps emptied, lies apart from all that is read for it.

  Args:
    out: the folder.
    inputs: files and folders by the names of their arguments; links are followed.

  Raises:
    ValueError: it is one of them, holds one or lies inside one; names both.
  """
  own = followed(out)
  for name, given in inputs.items():
    path = Path(os.path.realpath(Path(given).expanduser()))
    how = ("is" if own == path else "holds" if own in path.parents else "lies inside" if path in own.parents else None)
    if how is not None:
      raise ValueError(f"out must lie apart from what is read: {out} {how} the {name} {given}; choose another folder")


def followed(path: str | os.PathLike) -> Path:
  """The place that an output path stands for: links are followed, also where they lead to nothing yet.

  What is made beside its place and moved there in one step could not take that of a link to a folder.

  Raises:
    OSError: the link leads back to itself.
  """
  place = Path(os.path.realpath(path))
  if place.is_symlink():
    raise OSError(f"out must be a place to write to; {path} is a link that leads back to itself")
  return place


def check_writable(folder: Path) -> None:
  """Makes a folder where it is missing and writes to it once.

  Raises:
    OSError: the folder cannot be made or written; names it.
  """
  if folder.is_symlink() and not folder.exists():
    raise OSError(f"the output folder {folder} cannot be written: it is a link to {os.readlink(folder)}, which is not "
                  "there")
  try:
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, prefix=".jaxft-")
    try:
      os.write(handle, b"\0" * 4096)  # an empty file fits on a full disk
      os.fsync(handle)
    finally:
      os.close(handle)
      os.unlink(name)
  except OSError as e:
    raise OSError(f"the output folder {folder} cannot be written: {e.strerror or e}") from None
