"""Output folders: whether they can be written is found out before anything is loaded."""

import os
import tempfile
from pathlib import Path


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
