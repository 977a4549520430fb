"""Sparse differences in files: one safetensors file of indices and values, whole or not at all.

    {path}/indices, {path}/values     of each leaf, as they are held
    metadata "jaxft_delta"            JSON: the axis of each leaf's rows or columns, null where entries are flat
    metadata "jaxft_crc32"            a checksum of all of it
"""

import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxft.formats.safetensors import check_content, open_checkpoint, save_file
from jaxft.leaves.row_delta import RowDelta
from jaxft.merging.compression.sparse_deltas import Entries, SparseDelta
from jaxft.signatures import explain_errors

KIND = "jaxft_delta"


@explain_errors
def save_delta(path: str | os.PathLike, delta: SparseDelta) -> int:
  """Writes a delta; a file of that name is replaced when the new one is complete and on disk.

  >>> import tempfile
  >>> delta = {"up/kernel": Entries(np.arange(1000), np.ones(1000, np.float32))}
  >>> with tempfile.TemporaryDirectory() as at:
  ...   save_delta(f"{at}/delta.safetensors", delta)  # 8 bytes an entry, and a header
  8248

  Args:
    path: the file.
    delta: of `sparse_difference`, `chosen_entries` or `submatrix_delta`, or what `fuse` kept.

  Returns:
    The size of the file in bytes.

  Raises:
    ValueError: indices are no integers in 0..2**31 - 1, or not as many as values, or values are wider than 32 bits,
      which would not come back as they are.
  """
  tensors, axes = {}, {}
  for name, entries in delta.items():
    axes[name] = entries.axis if isinstance(entries, RowDelta) else None
    indices, values = (np.asarray(x) for x in (
        (entries.indices, entries.values) if isinstance(entries, RowDelta) else entries))
    _check(name, indices, values, axes[name])
    tensors[f"{name}/indices"], tensors[f"{name}/values"] = indices.astype(np.int32), values
  save_file(tensors, path, metadata={KIND: json.dumps(axes)}, checksum=True)
  return Path(path).stat().st_size


@explain_errors
def load_delta(path: str | os.PathLike) -> dict[str, Entries | RowDelta]:
  """Reads a delta back, to the last bit.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as at:
  ...   size = save_delta(f"{at}/delta.safetensors", {"up/kernel": (np.array([5]), np.array([0.5], np.float32))})
  ...   load_delta(f"{at}/delta.safetensors")
  {'up/kernel': Entries(indices=Array([5], dtype=int32), values=Array([0.5], dtype=float32))}

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is corrupt, which its checksum tells, or of another kind; names the file.
  """
  file = open_checkpoint(path)
  if KIND not in file.metadata:
    raise ValueError(f"{path} is not a delta of save_delta: its metadata lacks {KIND!r}")
  check_content(file, path)
  delta = {}
  for name, axis in json.loads(file.metadata[KIND]).items():
    indices, values = (jnp.asarray(file.read(f"{name}/{part}")) for part in ("indices", "values"))
    delta[name] = Entries(indices, values) if axis is None else RowDelta(indices, values, axis)
  return delta


def _check(name: str, indices: np.ndarray, values: np.ndarray, axis: int | None) -> None:
  """Raises ValueError where a leaf's part of a delta would not come back as it is."""
  if axis is None:
    fits = indices.ndim == 1 and indices.shape == values.shape
  else:
    fits = values.ndim == indices.ndim + 1 >= 2 and (*values.shape[:-2], values.shape[axis]) == indices.shape
  if not fits:
    raise ValueError(f"delta must have an index for each of its values; {name} has {indices.shape} and {values.shape}")
  if not np.issubdtype(indices.dtype, np.integer):
    raise ValueError(f"delta must have integer indices; {name} has {indices.dtype}")
  if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < 1 << 31:
    raise ValueError(f"delta must have indices in 0..2**31 - 1; {name} has {indices.min()}..{indices.max()}")
  if values.dtype.itemsize > 4:
    raise ValueError(f"delta must have values of at most 32 bits; {name} has {values.dtype}")
