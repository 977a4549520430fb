"""Debian packages as what they are: an `ar` archive with a compressed tar file of all that would be installed."""

import gzip
import io
import lzma
import tarfile
from pathlib import Path

_DECOMPRESS = {"data.tar.xz": lzma.decompress, "data.tar.gz": gzip.decompress}


def open_debian_package(path: Path) -> tarfile.TarFile:
  """The files that a Debian package installs, below `./`; nothing is unpacked, and no script of it is run.

  Raises:
    ValueError: it is no Debian package.
  """
  data = path.read_bytes()
  if not data.startswith(b"!<arch>\n"):
    raise ValueError(f"{path} is no Debian package: it must begin with !<arch>")
  at = 8
  while at + 60 <= len(data):
    name, size = data[at : at + 16].decode("ascii", "replace").strip(" /"), data[at + 48 : at + 58].strip()
    if not size.isdigit():
      break
    start, at = at + 60, at + 60 + int(size) + int(size) % 2
    if name in _DECOMPRESS:
      # All at once: where a compressed file is read here and there, Python decompresses it from the start each time.
      return tarfile.open(fileobj=io.BytesIO(_DECOMPRESS[name](data[start : start + int(size)])))
  raise ValueError(f"{path} is no Debian package: it has none of {', '.join(_DECOMPRESS)}")
