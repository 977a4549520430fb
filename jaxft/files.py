"""Writing files: whole or not at all, and into folders of which it is known beforehand that they take them."""

import os
import tempfile
from pathlib import Path


def write_text(path: str | Path, text: str) -> None:
  """Writes a file through a temporary one beside it, so that a kill or a full disk leaves the old content."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "w") as f:
      f.write(text)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise


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
