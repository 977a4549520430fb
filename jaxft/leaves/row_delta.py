"""Rows and columns of a matrix with what is added there: the delta of a `submatrix`, and its products alone."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jaxft.leaves.products import lookup
from jaxft.signatures import AnyArray


@partial(jax.tree_util.register_dataclass, data_fields=["indices", "values"], meta_fields=["axis"])
@dataclasses.dataclass(frozen=True)
class RowDelta:
  """Rows (axis -2) or columns (axis -1) of one leaf, and what is added there or stands there.

  indices `[*layers, k]`, where the size of the axis stands for none; values `[*layers, k, n]` or `[*layers, m, k]`.
  A mapping from paths to these is a delta: what is stored of a trained `submatrix`, and what `jaxft.merging` adds,
  fuses and switches and `jaxft.transforms.serve` serves.
  """

  indices: Any
  values: Any
  axis: int = -2

  def __post_init__(self):
    check_axis(self.axis)

  def problem(self, shape: tuple[int, ...]) -> str:
    """What keeps the strips from fitting a leaf of this shape; '' where they do."""
    if len(shape) < 2:
      return f"has shape {shape}: rows and columns are of matrices"
    want = list(shape)
    want[self.axis] = self.indices.shape[-1]
    if self.indices.shape[:-1] != tuple(shape[:-2]) or self.values.shape != tuple(want):
      return f"has shape {shape}: {self.indices.shape} indices and {self.values.shape} values do not fit it"
    if not jnp.issubdtype(self.indices.dtype, jnp.integer):
      return f"takes integer indices; got {self.indices.dtype}"
    if isinstance(self.indices, Tracer) or not self.indices.size:
      return ""
    known = np.asarray(self.indices)  # on the host: inside jit an operation on a constant would be traced
    low, high, size = int(known.min()), int(known.max()), shape[self.axis]
    return "" if 0 <= low and high <= size else f"takes indices in 0..{size - 1}, or {size} for none; got {low}..{high}"


def check_axis(axis: Any) -> None:
  """Raises ValueError unless an axis is -2 or -1."""
  if isinstance(axis, bool) or axis not in (-2, -1):
    raise ValueError(f"axis must be -2 (rows) or -1 (columns); got {axis!r}")


def read_row_delta(w: Array, strips: RowDelta) -> Array:
  """What stands in the rows or columns of an array, shaped like `strips.values`; 0 in those that stand for none."""
  read = lambda w, indices: _at(w, indices, strips.axis).get(mode="fill", fill_value=0)
  return _over_layers(read, w.ndim)(w, strips.indices)


def change_row_delta(w: AnyArray, strips: RowDelta, change: Callable[[Array, Array], Array]) -> Array:
  """The array with `change(what stands there, strips.values)` in those rows or columns."""

  def put(w: Any, indices: Any, values: Any) -> Array:
    at = _at(w, indices, strips.axis)
    return at.set(change(at.get(mode="fill", fill_value=0), values), mode="drop")

  return _over_layers(put, w.ndim)(w, strips.indices, strips.values)


def _at(w: Any, indices: Any, axis: int) -> Any:  # a constant of a jaxpr is an array of its own class
  return w.at[indices] if axis == -2 else w.at[:, indices]


def _over_layers(f: Callable[..., Array], ndim: int) -> Callable[..., Array]:
  for _ in range(ndim - 2):
    f = jax.vmap(f)
  return f


def delta_product(x: Array, d: Array, indices: Any, product: Any, contracted: bool, n_out: int) -> Array:
  """The product of x with d alone, where `contracted` says that d's cut axis is the one summed over."""
  if contracted:
    return product(jnp.take(x, indices, axis=-1, mode="fill", fill_value=0), d)
  return jnp.zeros((*x.shape[:-1], n_out), x.dtype).at[..., indices].add(product(x, d), mode="drop")


def delta_rows(ids: AnyArray, d: Array, indices: Any, *, axis: int, shape: tuple[int, int]) -> Array:
  """Rows `ids` of d alone, put into a matrix of zeros of this shape."""
  if axis == -1:
    rows = lookup(d, ids)
    return jnp.zeros((*ids.shape, shape[1]), rows.dtype).at[..., indices].add(rows, mode="drop")
  k = indices.shape[0]
  place = jnp.full(shape[0], k, jnp.int32).at[indices].set(jnp.arange(k, dtype=jnp.int32), mode="drop")
  return jnp.take(d, place[ids], axis=0, mode="fill", fill_value=0)
