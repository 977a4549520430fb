"""Writing files: whole or not at all, and into folders of which it is known beforehand that they take them."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: str | os.PathLike, write: Callable[[Path], Any]) -> None:
  """Lets `write(part)` fill a file beside `path`, then moves it to `path` in one step; leaves nothing on failure."""
  path = Path(path)
  part = path.with_name(f".{path.name}.{os.getpid()}.part")
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


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text, its folder made where it is missing, so that a kill or a full disk leaves the old content."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def check_writable(folder: Path) -> None:
  """Makes a folder where it is missing and writes to it once.

  Raises:
    OSError: the folder cannot be made or written; names it.
  """
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
