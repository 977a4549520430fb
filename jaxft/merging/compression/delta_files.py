"""Sparse differences in files: one safetensors file of indices and values, whole or not at all.

    {path}/indices, {path}/values     of each leaf, as they are held
    metadata "jaxft_delta"            JSON: the axis of each leaf's rows or columns, null where entries are flat
"""

import json
import os
from pathlib import Path

import jax.numpy as jnp

from jaxft.formats.safetensors import open_checkpoint, save_file
from jaxft.leaves.row_delta import RowDelta
from jaxft.merging.compression.sparse_deltas import Entries, SparseDelta

KIND = "jaxft_delta"


def save_delta(path: str | os.PathLike, delta: SparseDelta) -> int:
  """Writes a delta; a file of that name is replaced when the new one is complete and on disk.

  Args:
    path: the file.
    delta: of `sparse_difference`, `chosen_entries` or `submatrix_delta`, or what `fuse` kept.

  Returns:
    The size of the file in bytes.
  """
  tensors, axes = {}, {}
  for name, entries in delta.items():
    strips = isinstance(entries, RowDelta)
    axes[name] = entries.axis if strips else None
    tensors[f"{name}/indices"], tensors[f"{name}/values"] = (
        (entries.indices, entries.values) if strips else tuple(entries))
  save_file(tensors, path, metadata={KIND: json.dumps(axes)})
  return Path(path).stat().st_size


def load_delta(path: str | os.PathLike) -> dict[str, Entries | RowDelta]:
  """Reads a delta back, to the last bit.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is corrupt or of another kind; names the file.
  """
  file = open_checkpoint(path)
  if KIND not in file.metadata:
    raise ValueError(f"{path} is not a delta of save_delta: its metadata lacks {KIND!r}")
  delta = {}
  for name, axis in json.loads(file.metadata[KIND]).items():
    indices, values = (jnp.asarray(file.read(f"{name}/{part}")) for part in ("indices", "values"))
    delta[name] = Entries(indices, values) if axis is None else RowDelta(indices, values, axis)
  return delta
