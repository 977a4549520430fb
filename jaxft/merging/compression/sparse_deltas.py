"""Sparse differences of checkpoints: kept as indices and values, added, subtracted, composed, switched."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxft.checks import in_range, nearest
from jaxft.leaves.row_delta import RowDelta, change_row_delta, read_row_delta
from jaxft.signatures import AnyArray, explain_errors
from jaxft.tree.finite_leaves import check_finite
from jaxft.tree.paths import Tree, is_float, is_structured, leaves_with_paths, map_with_path
from jaxft.tree.task_vectors import check_same_leaves


class Entries(NamedTuple):
  """Entries of one leaf: flat int32 indices, and what is added there or stands there."""

  indices: Int[AnyArray, " K"]
  values: Float[AnyArray, " K"]


# By path. `jaxft.transforms.chosen_entries` gives one of a trained `sparse_delta`, `submatrix_delta` of a `submatrix`:
# whole rows or columns, with an index for each of them and not for each entry.
SparseDelta = Mapping[str, Entries | RowDelta | tuple[AnyArray, AnyArray]]


@explain_errors
def sparse_difference(base: Tree, tuned: Tree, *, eps: float = 1e-7) -> dict[str, Entries]:
  """`tuned - base` in float32, without the entries of `|.| <= eps`.

  >>> params, tuned = {"w": jnp.zeros(3)}, {"w": jnp.array([0.0, 2.0, 0.0])}
  >>> sparse_difference(params, tuned)["w"]
  Entries(indices=Array([1], dtype=int32), values=Array([2.], dtype=float32))

  Args:
    base, tuned: checkpoints with the same leaves; those that are not floating point have no difference.
    eps: of absolute size; the source's value. 0 keeps every entry that differs.

  Returns:
    The leaves that differ, by path.

  Raises:
    ValueError: a leaf is missing on one side, has another shape, has 2**31 entries or more, or holds NaN or infinity;
      eps is negative or not finite.

  Source: Ansell et al. 2022, LT-SFT (arXiv 2110.07560).
  """
  check_same_leaves("base", base, "tuned", tuned)
  check_finite({"base": base, "tuned": tuned})
  in_range("eps", eps, "[0, inf)")
  delta: dict[str, Entries] = {}
  for (path, b), (_, t) in zip(leaves_with_paths(base), leaves_with_paths(tuned), strict=True):
    if not is_float(b):
      continue
    if b.size >= 1 << 31:
      raise ValueError(f"{path} {tuple(b.shape)} is too large for int32 indices: cut its stack with cut_layers")
    difference = np.asarray(t.astype(jnp.float32) - b.astype(jnp.float32)).ravel()
    indices = np.flatnonzero(np.abs(difference) > eps)
    if len(indices):
      delta[path] = Entries(jnp.asarray(indices, jnp.int32), jnp.asarray(difference[indices]))
  return delta


@explain_errors
def apply_delta(params: Tree, delta: SparseDelta, *, sign: int = 1, scale: float = 1.0) -> Tree:
  """`params + sign * scale * delta`, each entry summed in float32 and rounded once to the params' dtype.

  Adding and then subtracting gives the params back to rounding; `fuse` and `unfuse` to the last bit.

  >>> apply_delta({"w": jnp.ones(3)}, {"w": Entries(jnp.array([1]), jnp.array([2.0]))}, scale=0.5)
  {'w': Array([1., 2., 1.], dtype=float32)}

  Args:
    params: a checkpoint.
    delta: its entries must be leaves of the checkpoint; a repeated index counts once.
    sign: 1 or -1.
    scale: a factor.

  Raises:
    ValueError: sign is neither, scale is not finite, or delta has a path that the params lack, or an index out of
      range, or a shape that does not fit; a leaf that is not a plain array.
  """
  if sign not in (1, -1):
    raise ValueError(f"sign must be 1 or -1; got {sign!r}")
  in_range("scale", scale)
  _check(params, delta)
  change = lambda old, values: (old.astype(jnp.float32) + sign * scale * values).astype(old.dtype)
  return _at_entries(params, delta, change)


@explain_errors
def compose(base: Tree, deltas: Sequence[SparseDelta]) -> Tree:
  """`base + sum of deltas`, without weights: a language's difference with a task's, in any order.

  >>> delta = {"w": Entries(jnp.array([1]), jnp.array([2.0]))}
  >>> compose({"w": jnp.ones(3)}, [delta, delta])
  {'w': Array([1., 5., 1.], dtype=float32)}

  Raises:
    ValueError: see `apply_delta`.
  """
  return reduce(apply_delta, deltas, base)


@explain_errors
def fuse(params: Tree, delta: SparseDelta) -> tuple[Tree, dict[str, Entries | RowDelta]]:
  """Adds a delta and keeps what stood there.

  >>> fused, old = fuse({"w": jnp.ones(3)}, {"w": Entries(jnp.array([1]), jnp.array([2.0]))})
  >>> fused, old["w"].values
  ({'w': Array([1., 3., 1.], dtype=float32)}, Array([1.], dtype=float32))

  Returns:
    The fused params, and the old entries: `unfuse(fused, old)` gives the params back to the last bit in any dtype,
    where subtracting would not.

  Raises:
    ValueError: see `apply_delta`.
  """
  _check(params, delta)
  leaves = dict(leaves_with_paths(params))
  return apply_delta(params, delta), {path: _standing(leaves[path], entries) for path, entries in delta.items()}


@explain_errors
def unfuse(fused: Tree, old: SparseDelta) -> Tree:
  """Puts back the entries that `fuse` kept.

  >>> unfuse(*fuse({"w": jnp.ones(3)}, {"w": Entries(jnp.array([1]), jnp.array([2.0]))}))
  {'w': Array([1., 1., 1.], dtype=float32)}
  """
  _check(fused, old)
  return _at_entries(fused, old, lambda _, values: values)


@explain_errors
def switch(fused: Tree, old: SparseDelta, delta: SparseDelta) -> tuple[Tree, dict[str, Entries | RowDelta]]:
  """From one fused delta to another: `fuse(unfuse(fused, old), delta)`, touching only their entries.

  >>> one, other = ({"w": Entries(jnp.array([i]), jnp.array([2.0]))} for i in (1, 2))
  >>> switch(*fuse({"w": jnp.ones(3)}, one), other)[0]
  {'w': Array([1., 1., 3.], dtype=float32)}
  """
  return fuse(unfuse(fused, old), delta)


def _at_entries(params: Tree, delta: SparseDelta, change: Any) -> Tree:
  def at(path: str, leaf: Any) -> Any:
    if path not in delta:
      return leaf
    entries = delta[path]
    if isinstance(entries, RowDelta):
      return change_row_delta(leaf, entries, change)
    indices, values = entries
    flat = leaf.reshape(-1)
    return flat.at[indices].set(change(flat[indices], values)).reshape(leaf.shape)

  return map_with_path(at, params)


def _standing(leaf: Array, entries: Entries | RowDelta | tuple[AnyArray, AnyArray]) -> Entries | RowDelta:
  """What stands where a delta changes a leaf."""
  if isinstance(entries, RowDelta):
    return RowDelta(entries.indices, read_row_delta(leaf, entries), entries.axis)
  indices, _ = entries
  return Entries(indices, leaf.reshape(-1)[indices])


def _check(params: Tree, delta: SparseDelta) -> None:
  leaves = dict(leaves_with_paths(params))
  for path, entries in delta.items():
    if leaves.get(path) is None:
      raise ValueError(f"delta has a path that the params lack: {path}; {nearest(path, list(leaves))}")
    if is_structured(leaves[path]):
      raise ValueError(f"params must hold a plain array at {path}; got {type(leaves[path]).__name__}: materialize it")
    if isinstance(entries, RowDelta):
      if problem := entries.problem(tuple(leaves[path].shape)):
        raise ValueError(f"delta does not fit the params: {path} {problem}")
      continue
    indices, values = entries
    if indices.ndim != 1 or indices.shape != values.shape or not jnp.issubdtype(indices.dtype, jnp.integer):
      raise ValueError(f"delta must have a vector of integer indices, one for each value; {path} has {indices.dtype} "
                       f"{indices.shape} and values {values.shape}")
    if isinstance(indices, Tracer) or not len(indices):
      continue
    known = np.asarray(indices)  # on the host: inside jit an operation on a constant would be traced
    low, high = int(known.min()), int(known.max())
    if low < 0 or high >= leaves[path].size:
      raise ValueError(f"delta has indices {low}..{high} for {path}, which has {leaves[path].size} entries")
