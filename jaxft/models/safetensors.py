"""Checkpoints in safetensors files: read lazily, tensor by tensor, and written so that no half of one is ever seen.

The `safetensors` library does the format; this module adds what a checkpoint of several files needs (the index of
shards, in and out), the checks that the format leaves to the reader, and one kind of error: `ValueError`, naming the
file and the tensor. Pickled checkpoints are never opened, because opening one runs the code inside it.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack")

_DTYPES = {
  "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16,
  "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
  "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """Where a tensor lies and what it is, known without reading it."""

  file: Path
  shape: tuple[int, ...]
  dtype: np.dtype

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
  _handles: Mapping[Path, Any] = dataclasses.field(repr=False)

  def read(self, name: str) -> np.ndarray:
    """One tensor, copied from the file; bfloat16 comes in the dtype that JAX has for it."""
    if name not in self.tensors:
      raise ValueError(f"the checkpoint holds no tensor {name!r}")
    info = self.tensors[name]
    try:
      return self._handles[info.file].get_tensor(name)
    except Exception as e:  # the library's error class, and what numpy raises, vary with the fault
      raise ValueError(f"{info.file}: tensor {name!r} cannot be read: {e}") from None


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
  tensors, metadata, handle = _open_file(path)
  return Checkpoint(tensors, metadata, {path: handle})


def _checkpoint_in(folder: Path) -> Path:
  for name in (SINGLE, INDEX):
    if (folder / name).is_file():
      return folder / name
  files = sorted(f for f in folder.iterdir() if f.is_file())
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


def _open_file(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str], Any]:
  try:
    handle = safetensors.safe_open(path, framework="np")
    names = _header_names(path)
    tensors = {}
    for name in handle.keys():
      view = handle.get_slice(name)
      dtype = _DTYPES.get(view.get_dtype())
      if dtype is None:
        raise ValueError(f"tensor {name!r} has dtype {view.get_dtype()}; supported: {', '.join(_DTYPES)}")
      tensors[name] = TensorInfo(path, tuple(view.get_shape()), np.dtype(dtype))
    if len(names) != len(set(names)):
      raise ValueError(f"tensor {next(n for n in names if names.count(n) > 1)!r} occurs more than once in the header")
    return tensors, dict(handle.metadata() or {}), handle
  except (safetensors.SafetensorError, ValueError, OSError, OverflowError, RecursionError) as e:
    raise ValueError(f"{path}: {'the file is empty' if path.stat().st_size == 0 else e}") from None


def _header_names(path: Path) -> list[str]:
  """The names in a header that the library has accepted, repeated ones included: it keeps the last in silence."""
  with open(path, "rb") as f:
    size = int.from_bytes(f.read(8), "little")
    pairs = json.loads(f.read(size), object_pairs_hook=list)
  return [name for name, _ in pairs]


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """A JSON file that holds an object.

  Raises:
    ValueError: it is not valid JSON, not an object, or repeats a key; names the file.
  """

  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(out := dict(pairs)) != len(pairs):
      raise ValueError("a key occurs more than once")
    return out

  try:
    value = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=unique)
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
  tensors, metadata, handles = {}, {}, {}
  for file in sorted(set(weight_map.values())):
    shard = path.parent / file
    if not shard.is_file():
      raise ValueError(f"{path}: shard {file!r} is missing (tensor {_first(weight_map, file)!r} lies in it)")
    found, extra, handles[shard] = _open_file(shard)
    metadata = metadata or extra
    for name, info in found.items():
      if weight_map.get(name) != file:
        raise ValueError(f"{shard}: tensor {name!r} is not the one that {path.name} lists ({weight_map.get(name)!r})")
      tensors[name] = info
  if missing := [name for name in weight_map if name not in tensors]:
    raise ValueError(f"{path}: tensor {missing[0]!r} is not in its shard {weight_map[missing[0]]!r}")
  return Checkpoint(tensors, metadata, handles)


def _first(weight_map: Mapping[str, str], file: str) -> str:
  return next(name for name, shard in weight_map.items() if shard == file)


def save_file(
    tensors: Mapping[str, Any], path: str | os.PathLike, *, metadata: Mapping[str, str] | None = None
) -> None:
  """Writes one safetensors file, seen under its name only when it is complete and on disk.

  Args:
    tensors: arrays by name.
    path: the file to write or replace; a process that has the old one open keeps the old content.
    metadata: free text for the header.
  """
  # order="C" and not ascontiguousarray, which turns a scalar into a vector.
  arrays = {name: np.asarray(x, order="C") for name, x in tensors.items()}
  text = dict(metadata) if metadata else None

  def write(part: Path) -> None:
    try:
      safetensors.numpy.save_file(arrays, part, metadata=text)
    except safetensors.SafetensorError as e:  # what the library makes of a full disk
      raise OSError(f"{path} cannot be written: {e}") from None

  write_atomically(path, write)


def write_atomically(path: str | os.PathLike, write: Callable[[Path], Any]) -> None:
  """Lets `write(part)` fill a file beside `path`, then moves it to `path` in one step; leaves nothing on failure."""
  path = Path(path)
  part = path.with_name(f".{path.name}.{os.getpid()}.part")
  try:
    part.touch()
    mode = part.stat().st_mode
    write(part)
    part.chmod(mode)  # safetensors makes its files private to the user
    with open(part, "rb") as f:
      os.fsync(f.fileno())
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


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
  if max_shard_bytes < 1:
    raise ValueError(f"max_shard_bytes must be >= 1; got {max_shard_bytes}")
  folder = Path(folder)
  shards: list[dict[str, Any]] = [{}]
  size = total = 0
  for name, x in tensors.items():
    nbytes = x.size * x.dtype.itemsize
    if shards[-1] and size + nbytes > max_shard_bytes:
      shards.append({})
      size = 0
    shards[-1][name] = x
    size += nbytes
    total += nbytes
  if len(shards) == 1:
    save_file(shards[0], folder / SINGLE, metadata=metadata)
    return [folder / SINGLE]
  weight_map = {}
  files = [folder / f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
  for file, shard in zip(files, shards, strict=True):
    save_file(shard, file, metadata=metadata)
    weight_map.update(dict.fromkeys(shard, file.name))
  index = {"metadata": {"total_size": total}, "weight_map": weight_map}
  write_atomically(folder / INDEX, lambda part: part.write_text(json.dumps(index, indent=2) + "\n"))
  return files
