"""Writing a checkpoint tensor by tensor, in any order and from several processes, each at once to its place."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxft.formats.safetensors import INDEX_SUFFIX, assign_shards, index_text
from jaxft.merging.streaming.staging import Staging, name_file

# safetensors' names of dtypes.
DTYPE_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}
# Tensors of so many bytes are sent on to the disk at once, so that the end does not wait for all of them.
_SENT_ON = 1 << 20


class Entry(NamedTuple):
  """A tensor to come."""

  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def nbytes(self) -> int:
    return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


class ShardWriter:
  """The files of a checkpoint whose shapes and dtypes are known before its numbers.

  Attributes:
    nbytes: of all tensors.
  """

  def __init__(
      self, stage: Staging, tensors: Mapping[str, Entry], *, max_shard_bytes: int = 5 * 10**9, stem: str = "model",
      metadata: Mapping[str, str] | None = None,
  ):
    """Opens the files and writes their headers.

    Args:
      stage: where.
      tensors: in the order in which they are to lie.
      max_shard_bytes: see `assign_shards`.
      stem: of the files' names.
      metadata: free text for the headers.

    Raises:
      OSError: the disk has not enough room, or the files cannot be written.
    """
    sizes = {name: entry.nbytes for name, entry in tensors.items()}
    self.nbytes = sum(sizes.values())
    free = os.statvfs(stage.out.parent)
    if self.nbytes > free.f_bavail * free.f_frsize:
      raise OSError(
          f"{stage.out} takes {self.nbytes / 1e9:.2f} GB; {free.f_bavail * free.f_frsize / 1e9:.2f} GB are free")
    self._stem = stem
    self._shards = assign_shards(sizes, max_shard_bytes, stem=stem)
    self._files: dict[str, tuple[int, Path | None]] = {}
    self._places: dict[str, tuple[int, int]] = {}
    try:
      for file, names in self._shards.items():
        handle, _ = self._files[file] = stage.open_file()
        header, offsets, size = _layout({name: tensors[name] for name in names}, metadata or {})
        os.ftruncate(handle, len(header) + size)
        _write_all(handle, header, 0)
        self._places |= {name: (handle, len(header) + offset) for name, offset in offsets.items()}
    except BaseException:
      self.close()
      raise

  def write(self, name: str, array: np.ndarray) -> None:
    """Writes one tensor, contiguous and of the shape and dtype that were announced."""
    handle, offset = self._places[name]
    _write_all(handle, array.reshape(-1).view(np.uint8).data, offset)
    if array.nbytes >= _SENT_ON and hasattr(os, "posix_fadvise"):
      # On Linux it begins to write what is dirty.
      os.posix_fadvise(handle, offset, array.nbytes, os.POSIX_FADV_DONTNEED)

  def sync(self) -> None:
    """Waits until all is on disk."""
    for handle, _ in self._files.values():
      os.fsync(handle)

  def finish(self, folder: Path) -> list[str]:
    """Puts the files, and their index where there are several, into a folder; returns their names."""
    for file, (handle, path) in self._files.items():
      name_file(handle, path, folder / file)
    if len(self._shards) > 1:
      (folder / f"{self._stem}{INDEX_SUFFIX}").write_text(index_text(self._shards, self.nbytes), encoding="utf-8")
    return list(self._shards)

  def close(self) -> None:
    """Closes the files; those that were not finished are gone."""
    for handle, _ in self._files.values():
      os.close(handle)
    self._files = {}


def _layout(tensors: Mapping[str, Entry], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int], int]:
  """The header of a file, the offset of each tensor in what follows, and the size of that."""
  # Wide dtypes first keep every tensor aligned, as the library does it.
  header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
  offsets, end = {}, 0
  for name, entry in sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize):
    offsets[name] = end
    end += entry.nbytes
    header[name] = {
        "dtype": DTYPE_NAMES[entry.dtype.name], "shape": list(entry.shape), "data_offsets": [offsets[name], end]}
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  return len(text).to_bytes(8, "little") + text, offsets, end


def _write_all(handle: int, data: bytes | memoryview, offset: int) -> None:
  view = memoryview(data)
  while view:
    written = os.pwrite(handle, view, offset)
    view, offset = view[written:], offset + written
