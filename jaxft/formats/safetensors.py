"""Checkpoints in safetensors files: mapped, tensor by tensor, and written so that no half of one is ever seen.

The `safetensors` library checks the format; this module adds what a checkpoint of several files needs (the index of
shards, in and out), the checks that the format leaves to the reader, and one kind of error: `ValueError`, naming the
file and the tensor. Pickled checkpoints are never opened, because opening one runs the code inside it. JAX is not
imported.
"""

import dataclasses
import json
import mmap
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from jaxft.files import write_atomically

SINGLE = "model.safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
INDEX = "model" + INDEX_SUFFIX
CHECKSUM = "jaxft_crc32"  # of the metadata: the format has no checksum of its own
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack")

_DTYPES = {
  "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
  "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
  "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """Where a tensor lies, `offset` bytes into its file, and what it is, known without reading it."""

  file: Path
  shape: tuple[int, ...]
  dtype: np.dtype
  offset: int

  @property
  def nbytes(self) -> int:
    return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """An open checkpoint of one or several files.

  Attributes:
    tensors: what it holds, by name.
    metadata: the free text of its first file.
  """

  tensors: Mapping[str, TensorInfo]
  metadata: Mapping[str, str]
  _maps: Mapping[Path, mmap.mmap] = dataclasses.field(repr=False)

  def view(self, name: str) -> np.ndarray:
    """One tensor, read-only, where the file is mapped; bfloat16 comes in the dtype that JAX has for it."""
    info = self._info(name)
    return np.ndarray(info.shape, info.dtype, buffer=self._maps[info.file], offset=info.offset)

  def read(self, name: str) -> np.ndarray:
    """One tensor, copied from the file."""
    return self.view(name).copy()

  def prefetch(self, name: str) -> None:
    """Tells the system to read a tensor ahead of its use."""
    self._advise(name, "MADV_WILLNEED")

  def release(self, name: str) -> None:
    """Tells the system that a tensor is no longer needed: its pages stop counting as this process's memory."""
    self._advise(name, "MADV_DONTNEED")

  def _info(self, name: str) -> TensorInfo:
    if name not in self.tensors:
      raise ValueError(f"the checkpoint holds no tensor {name!r}")
    return self.tensors[name]

  def _advise(self, name: str, advice: str) -> None:
    info = self._info(name)
    if info.nbytes and hasattr(mmap, advice):
      start = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
      self._maps[info.file].madvise(getattr(mmap, advice), start, info.offset + info.nbytes - start)


def open_checkpoint(path: str | os.PathLike) -> Checkpoint:
  """Opens a safetensors file, an index of shards, or a folder that holds either; reads headers only.

  Raises:
    FileNotFoundError: there is nothing at `path`.
    ValueError: a file is corrupt or pickled, or the index and its shards do not fit; names the file and the tensor.
  """
  path = Path(path)
  if path.is_dir():
    path = _checkpoint_in(path)
  if path.suffix in PICKLED:
    raise ValueError(_pickled(path))
  if not path.is_file():
    raise FileNotFoundError(f"no checkpoint at {path}")
  if path.name.endswith(".index.json"):
    return _open_index(path)
  tensors, metadata, mapped = _open_file(path)
  return Checkpoint(tensors, metadata, {path: mapped})


def _checkpoint_in(folder: Path) -> Path:
  for name in (SINGLE, INDEX):
    if (folder / name).is_file():
      return folder / name
  files = sorted(f for f in folder.iterdir() if f.is_file())
  # A part of a diffusion pipeline has an index of its own name.
  if len(found := [f for f in files if f.name.endswith(INDEX_SUFFIX)]) == 1:
    return found[0]
  if len(found := [f for f in files if f.suffix == ".safetensors"]) == 1:
    return found[0]
  if found:
    raise ValueError(f"{folder} holds {len(found)} safetensors files and no {INDEX}; name one of them")
  if pickled := [f for f in files if f.suffix in PICKLED and f.name != "training_args.bin"]:
    raise ValueError(_pickled(pickled[0]))
  raise ValueError(f"{folder} holds no {SINGLE} and no {INDEX}")


def _pickled(path: Path) -> str:
  return (
    f"{path} is a pickled checkpoint, which can run any code when opened, and is never opened here; convert it where "
    "it was trained: model.save_pretrained(folder, safe_serialization=True)"
  )


def _open_file(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str], mmap.mmap]:
  try:
    # The library refuses what lies: sizes, offsets and shapes that do not fit each other and the file.
    with safetensors.safe_open(path, framework="np"), open(path, "rb") as f:
      size = int.from_bytes(f.read(8), "little")
      header = parse_json(f.read(size))
      mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    metadata, tensors = header.pop("__metadata__", None) or {}, {}
    for name, entry in header.items():
      if entry["dtype"] not in _DTYPES:
        raise ValueError(f"tensor {name!r} has dtype {entry['dtype']}; supported: {', '.join(_DTYPES)}")
      offset = 8 + size + entry["data_offsets"][0]
      tensors[name] = TensorInfo(path, tuple(entry["shape"]), np.dtype(_DTYPES[entry["dtype"]]), offset)
    return tensors, metadata, mapped
  except (safetensors.SafetensorError, ValueError, OSError, OverflowError, RecursionError) as e:
    raise ValueError(f"{path}: {'the file is empty' if path.stat().st_size == 0 else e}") from None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """A JSON object; the library keeps the last of a key that occurs more than once, in silence."""
  out: dict[str, Any] = {}
  for key, value in pairs:
    if key in out:
      raise ValueError(f"{key!r} occurs more than once")
    out[key] = value
  return out


def parse_json(text: str | bytes) -> Any:
  """The value of a JSON text.

  Raises:
    ValueError: it is not valid JSON, or an object in it repeats a key.
  """
  return json.loads(text, object_pairs_hook=_pairs)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """A JSON file that holds an object.

  Raises:
    ValueError: it is not valid JSON, not an object, or repeats a key; names the file.
  """
  try:
    value = parse_json(Path(path).read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as e:
    raise ValueError(f"{path} is not valid JSON: {e}") from None
  if not isinstance(value, dict):
    raise ValueError(f"{path} must hold a JSON object; got {type(value).__name__}")
  return value


def _open_index(path: Path) -> Checkpoint:
  weight_map = read_json(path).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise ValueError(f"{path}: weight_map must map tensor names to files; got {str(weight_map)[:80]}")
  for name, file in weight_map.items():
    # A shard lies beside its index: a path could point a reader at any file of the machine.
    if not isinstance(file, str) or not re.fullmatch(r"[^/\\:\0]+\.safetensors", file):
      raise ValueError(f"{path}: tensor {name!r} must lie in a .safetensors file of the same folder; got {file!r}")
  tensors, metadata, maps = {}, {}, {}
  for file in sorted(set(weight_map.values())):
    shard = path.parent / file
    if not shard.is_file():
      raise ValueError(f"{path}: shard {file!r} is missing (tensor {_first(weight_map, file)!r} lies in it)")
    found, extra, maps[shard] = _open_file(shard)
    metadata = metadata or extra
    for name, info in found.items():
      if weight_map.get(name) != file:
        raise ValueError(f"{shard}: tensor {name!r} is not the one that {path.name} lists ({weight_map.get(name)!r})")
      tensors[name] = info
  if missing := [name for name in weight_map if name not in tensors]:
    raise ValueError(f"{path}: tensor {missing[0]!r} is not in its shard {weight_map[missing[0]]!r}")
  return Checkpoint(tensors, metadata, maps)


def _first(weight_map: Mapping[str, str], file: str) -> str:
  return next(name for name, shard in weight_map.items() if shard == file)


def save_file(
    tensors: Mapping[str, Any], path: str | os.PathLike, *, metadata: Mapping[str, str] | None = None,
    checksum: bool = False,
) -> None:
  """Writes one safetensors file, seen under its name only when it is complete and on disk.

  Args:
    tensors: arrays by name.
    path: the file to write or replace; a process that has the old one open keeps the old content.
    metadata: free text for the header.
    checksum: add one of the content to the metadata, for `check_content`.
  """
  # order="C" and not ascontiguousarray, which turns a scalar into a vector.
  arrays = {name: np.asarray(x, order="C") for name, x in tensors.items()}
  text = dict(metadata or {})
  if checksum:
    text[CHECKSUM] = _content_checksum(arrays, text)

  def write(part: Path) -> None:
    try:
      safetensors.numpy.save_file(arrays, part, metadata=text or None)
    except safetensors.SafetensorError as e:  # what the library makes of a full disk
      raise OSError(f"{path} cannot be written: {e}") from None
    _sort_metadata(part)

  write_atomically(path, write)


def _sort_metadata(path: Path) -> None:
  """Orders the metadata of a file, which the library writes in another order each time: equal content, equal bytes."""
  with path.open("r+b") as file:
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    if len(header.get("__metadata__", ())) > 1:
      header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
      text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
      if len(text) <= size:  # the rest is room, as the library leaves it to align what follows
        file.seek(8)
        file.write(text.ljust(size))


def check_content(checkpoint: Checkpoint, path: str | os.PathLike, *, required: bool = True) -> None:
  """Reads one file whole and compares it with the checksum that `save_file` added.

  Args:
    checkpoint: an open checkpoint of one file.
    path: the file, for the error.
    required: whether a file without one, which others may have written, is an error too.

  Raises:
    ValueError: the content is not what was written, or has no checksum; names the file.
  """
  if (said := checkpoint.metadata.get(CHECKSUM)) is None:
    if required:
      raise ValueError(f"{path} has no checksum of its content: its metadata lacks {CHECKSUM!r}")
    return
  rest = {key: value for key, value in checkpoint.metadata.items() if key != CHECKSUM}
  if _content_checksum({name: checkpoint.view(name) for name in checkpoint.tensors}, rest) != said:
    raise ValueError(f"{path} is corrupt: its checksum does not fit its content")


def _content_checksum(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
  """CRC-32 of metadata, names, dtypes, shapes and bits."""
  crc = zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
  for name, x in sorted(arrays.items()):
    crc = zlib.crc32(f"{name} {x.dtype} {x.shape}\n".encode(), crc)
    crc = zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data, crc)
  return f"{crc:08x}"


def save_shards(
    tensors: Mapping[str, Any], folder: str | os.PathLike, *, max_shard_bytes: int = 5 * 10**9,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
  """Writes a checkpoint as `model.safetensors`, or as numbered shards and their index where it is larger.

  One shard is held in memory at a time beside the arrays given. The index is written last: without it no reader takes
  the shards for a checkpoint.

  Args:
    tensors: arrays by name, in the order in which they are to lie.
    folder: an existing folder.
    max_shard_bytes: upper bound of a shard's tensor bytes; one tensor that is larger has a shard to itself.
    metadata: free text for the headers.

  Returns:
    The files that hold tensors.
  """
  folder = Path(folder)
  sizes = {name: x.size * x.dtype.itemsize for name, x in tensors.items()}
  shards = assign_shards(sizes, max_shard_bytes)
  for file, names in shards.items():
    save_file({name: tensors[name] for name in names}, folder / file, metadata=metadata)
  if len(shards) > 1:
    write_atomically(folder / INDEX, lambda part: part.write_text(index_text(shards, sum(sizes.values()))))
  return [folder / file for file in shards]


def assign_shards(
    sizes: Mapping[str, int], max_shard_bytes: int, *, stem: str = SINGLE.removesuffix(".safetensors")
) -> dict[str, list[str]]:
  """File -> the names of its tensors: one file, or as many numbered ones as it takes, filled in order.

  Args:
    sizes: bytes of each tensor, in the order in which they are to lie.
    max_shard_bytes: upper bound of a file's tensor bytes; one tensor that is larger has a file to itself.
    stem: of the files' names.
  """
  if max_shard_bytes < 1:
    raise ValueError(f"max_shard_bytes must be >= 1; got {max_shard_bytes}")
  shards: list[list[str]] = [[]]
  filled = 0
  for name, size in sizes.items():
    if shards[-1] and filled + size > max_shard_bytes:
      shards.append([])
      filled = 0
    shards[-1].append(name)
    filled += size
  if len(shards) == 1:
    return {f"{stem}.safetensors": shards[0]}
  return {f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards)}


def index_text(shards: Mapping[str, Sequence[str]], total_size: int) -> str:
  """What the index of a checkpoint of several files holds."""
  weight_map = {name: file for file, names in shards.items() for name in names}
  return json.dumps({"metadata": {"total_size": total_size}, "weight_map": weight_map}, indent=2) + "\n"
