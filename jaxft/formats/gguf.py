"""GGUF files, the quantized checkpoints of llama.cpp: tensors dequantized to float32, and metadata.

The `gguf` package knows the block formats and does the dequantization. Its reader takes counts and offsets as the
file states them, so the header is read here, with each of them bounded by the file's size before it is used.
"""

import dataclasses
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4


@dataclasses.dataclass(frozen=True)
class GGUFTensor:
  """Where a tensor lies, and how: `shape` has the fastest axis last, as in numpy."""

  shape: tuple[int, ...]
  kind: Any
  offset: int
  nbytes: int


@dataclasses.dataclass(frozen=True)
class GGUF:
  """An open GGUF file.

  Attributes:
    path: the file.
    metadata: its key-value pairs; arrays of numbers as numpy arrays, of strings as lists.
    tensors: what it holds, by name.
  """

  path: Path
  metadata: Mapping[str, Any]
  tensors: Mapping[str, GGUFTensor]
  _data: mmap.mmap = dataclasses.field(repr=False)

  def read(self, name: str) -> np.ndarray:
    """One tensor, dequantized to float32."""
    from gguf import quants

    if name not in self.tensors:
      raise ValueError(f"{self.path} holds no tensor {name!r}")
    tensor = self.tensors[name]
    raw = np.frombuffer(self._data, np.uint8, tensor.nbytes, tensor.offset)
    try:
      blocks = raw.reshape(*tensor.shape[:-1], -1)
      return np.asarray(quants.dequantize(blocks, tensor.kind), np.float32).reshape(tensor.shape)
    except (NotImplementedError, ValueError) as e:
      raise ValueError(f"{self.path}: tensor {name!r} of type {tensor.kind.name} cannot be dequantized: {e}") from None


class _Cursor:
  """Reads the header forward, never past the end of the file."""

  def __init__(self, data: mmap.mmap):
    self.data, self.at = data, 0

  def take(self, n: int) -> bytes:
    if n > len(self.data) - self.at:
      raise ValueError(f"the header asks for {n} bytes at {self.at}, beyond the file's {len(self.data)}")
    self.at += n
    return self.data[self.at - n:self.at]

  def scalar(self, code: str) -> Any:
    return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

  def count(self, min_bytes: int) -> int:
    """A count of things of at least `min_bytes` each, which must fit in the rest of the file."""
    n = self.scalar("Q")
    if n * min_bytes > len(self.data) - self.at:
      raise ValueError(f"the header counts {n} entries at {self.at}, more than {len(self.data)} bytes can hold")
    return n

  def string(self) -> str:
    return self.take(self.count(1)).decode("utf-8")

  def value(self, kind: int) -> Any:
    if kind in _SCALARS:
      return self.scalar(_SCALARS[kind])
    if kind == _STRING:
      return self.string()
    if kind != _ARRAY:
      raise ValueError(f"unknown metadata type {kind} at {self.at}")
    kind = self.scalar("I")
    if kind == _STRING:
      return [self.string() for _ in range(self.count(8))]
    if kind not in _SCALARS:
      raise ValueError(f"unknown array type {kind} at {self.at}")
    dtype = np.dtype("<" + _SCALARS[kind])
    return np.frombuffer(self.take(self.count(dtype.itemsize) * dtype.itemsize), dtype)


def open_gguf(path: str | os.PathLike) -> GGUF:
  """Opens a GGUF file (version 2 or 3, little-endian), reading its header only.

  Raises:
    FileNotFoundError: there is no such file.
    ImportError: the `gguf` package is not installed.
    ValueError: the file is corrupt, or of a kind that is not supported; names the file.
  """
  try:
    import gguf as _  # noqa: F401
  except ImportError:
    raise ImportError("reading GGUF files takes the gguf package: pip install 'jaxft[gguf]'") from None
  path = Path(path)
  with open(path, "rb") as f:
    if os.fstat(f.fileno()).st_size == 0:
      raise ValueError(f"{path}: the file is empty")
    data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
  try:
    metadata, tensors = _read_header(_Cursor(data))
  except ValueError as e:  # also what decoding broken UTF-8 raises
    raise ValueError(f"{path}: not a valid GGUF file: {e}") from None
  return GGUF(path, metadata, tensors, data)


def _read_header(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
  if cursor.take(4) != b"GGUF":
    raise ValueError("it does not start with GGUF")
  if (version := cursor.scalar("I")) not in (2, 3):
    raise ValueError(f"version must be 2 or 3, little-endian; got {version}")
  # The smallest entries: a tensor is name length, rank, one size, type and offset; a pair key length, type and a byte.
  num_tensors, num_pairs = cursor.count(8 + 4 + 8 + 4 + 8), cursor.count(8 + 4 + 1)
  metadata: dict[str, Any] = {}
  for _ in range(num_pairs):
    key = cursor.string()
    if key in metadata:
      raise ValueError(f"metadata key {key!r} occurs more than once")
    metadata[key] = cursor.value(cursor.scalar("I"))
  found: dict[str, GGUFTensor] = {}
  for _ in range(num_tensors):
    name = cursor.string()
    if name in found:
      raise ValueError(f"tensor {name!r} occurs more than once")
    found[name] = _read_tensor(cursor, name)
  alignment = metadata.get("general.alignment", 32)
  if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
    raise ValueError(f"general.alignment must be a power of two; got {alignment!r}")
  start = -(-cursor.at // alignment) * alignment
  tensors, end = {}, start
  for name, tensor in sorted(found.items(), key=lambda item: item[1].offset):
    offset = start + tensor.offset
    if offset < end or tensor.offset % alignment:
      raise ValueError(f"tensor {name!r} overlaps another or is not aligned to {alignment} (offset {tensor.offset})")
    end = offset + tensor.nbytes
    if end > len(cursor.data):
      raise ValueError(f"tensor {name!r}: {tensor.nbytes} bytes at {offset} end beyond the file's {len(cursor.data)}")
    tensors[name] = dataclasses.replace(tensor, offset=offset)
  return metadata, {name: tensors[name] for name in found}


def _read_tensor(cursor: _Cursor, name: str) -> GGUFTensor:
  from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

  if not 1 <= (rank := cursor.scalar("I")) <= _MAX_DIMS:
    raise ValueError(f"tensor {name!r} must have 1 to {_MAX_DIMS} axes; got {rank}")
  shape = tuple(reversed([cursor.scalar("Q") for _ in range(rank)]))
  kind = GGMLQuantizationType(cursor.scalar("I"))
  block, block_bytes = GGML_QUANT_SIZES[kind]
  if min(shape) < 1 or shape[-1] % block:
    raise ValueError(f"tensor {name!r}: the last axis must be whole blocks of {block} for {kind.name}; got {shape}")
  elements = 1
  for size in shape:  # Python integers: no product is too large to be compared with the file's size
    elements *= size
  return GGUFTensor(shape, kind, cursor.scalar("Q"), elements // block * block_bytes)
