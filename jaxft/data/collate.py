"""Records to a batch of arrays whose dtypes a device takes as they are."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxft.signatures import explain_errors


@explain_errors
def collate(records: Sequence[Any]) -> Any:
  """Stacks records leaf by leaf: numbers into int32, float32 or bool arrays, text into an object array of str.

  Python's and NumPy's 64-bit numbers become 32-bit ones, as JAX would make them with a warning; other dtypes stay.

  >>> records = [{"ids": np.array([i, i + 1]), "score": i / 2, "text": str(i)} for i in range(2)]
  >>> for name, column in collate(records).items():
  ...   print(name, column.tolist(), column.dtype)
  ids [[0, 1], [1, 2]] int32
  score [0.0, 0.5] float32
  text ['0', '1'] object

  Args:
    records: trees of one structure, of arrays of one shape per leaf, numbers or str.

  Raises:
    ValueError: records differ in structure, or a leaf (it is named) in shape or kind: text, booleans or numbers; or a
      number does not fit int32 or float32.
  """
  structures = {jax.tree.structure(record) for record in records}
  if len(structures) != 1:
    shown = "; ".join(str(structure) for structure in list(structures)[:2])
    raise ValueError(f"records of a batch must have one structure; got {len(structures)}: {shown}")
  columns = zip(*(jax.tree.leaves(record) for record in records), strict=True)
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(records[0])]
  names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
  stacked = [_stack(name, column) for name, column in zip(names, columns, strict=True)]
  return jax.tree.unflatten(structures.pop(), stacked)


def _kind(value: Any) -> str:
  if isinstance(value, str | bytes):
    return "text"
  return "booleans" if np.asarray(value).dtype == bool else "numbers"


def _stack(name: str, column: Sequence[Any]) -> np.ndarray:
  if len(kinds := {_kind(value) for value in column}) > 1:
    raise ValueError(f"{name}: records of a batch must have one kind of value; got {' and '.join(sorted(kinds))}")
  if kinds == {"text"}:
    out = np.empty(len(column), object)
    out[:] = column
    return out
  arrays = [np.asarray(value) for value in column]
  if len(shapes := {array.shape for array in arrays}) > 1:
    shown = ", ".join(str(shape) for shape in sorted(shapes)[:4])
    raise ValueError(
      f"{name}: records of a batch must have one shape; got {shown}; pad (tokenize to given lengths) or pack them"
    )
  array = np.stack(arrays)
  if array.dtype == np.float64:
    if (too_large := np.isfinite(array) & (np.abs(array) > np.finfo(np.float32).max)).any():
      raise ValueError(f"{name}: numbers must fit float32; got {array[too_large][0]}")
    return array.astype(np.float32)
  if array.dtype in (np.int64, np.uint64):
    if array.size and (array.max() > np.iinfo(np.int32).max or array.min() < np.iinfo(np.int32).min):
      raise ValueError(f"{name}: integers must fit int32; got {array.min()} to {array.max()}")
    return array.astype(np.int32)
  return array
