"""The k largest entries of a leaf, exactly k, without sorting it; of equal ones, the first or the last.

NumPy brackets the k-th largest from a sample, counts what lies above the bracket, and partitions only what lies inside:
two passes over a leaf, in cache. JAX finds it bit by bit: the order of non-negative floats is that of their bit
patterns, and each bit costs one count, which is a sum wherever the leaf lies.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxft.merging.kernels.blocks import blocks, of_rows, positions
from jaxft.merging.kernels.namespace import ArrayLike, is_numpy

# Entries looked at to bracket a threshold: six standard deviations of its rank in the sample to both sides are 2.3% of
# all at most.
SAMPLE = 1 << 16


class Threshold(NamedTuple):
  """Admits the entries above `value`, and of those equal to it the ones up to flat index `bound`, or from there on.

  Attributes:
    value: a number, or `[..., 1]` for each row.
    bound: likewise; None admits all equal entries.
    from_end: whether the bound is the first index admitted rather than the last.
  """

  value: ArrayLike
  bound: ArrayLike | None
  from_end: bool = False


def admits(threshold: Threshold, start: int, x: ArrayLike) -> ArrayLike:
  """The mask of the entries of a block that are among the k largest.

  Args:
    threshold: of the leaf, or `[..., 1]` of its rows.
    start: flat index of the block.
    x: the block of what was compared, such as magnitudes.
  """
  value, bound = of_rows(threshold.value, start, x), of_rows(threshold.bound, start, x)
  if bound is None:
    return x >= value
  if is_numpy(x) and not np.ndim(bound) and not start <= bound < start + x.size:  # all equal entries, or none
    return x >= value if (bound < start) == threshold.from_end else x > value
  index = positions(start, x)
  return (x > value) | ((x == value) & (index >= bound if threshold.from_end else index <= bound))


def largest(
    f: Callable[..., ArrayLike], k: int | ArrayLike, arrays: Sequence[ArrayLike | None], *, rows: bool = False,
    from_end: bool = False,
) -> Threshold:
  """The threshold that admits exactly the k largest values of a function of a leaf.

  Args:
    f: `(start, *blocks) -> values`, float32, not negative, whatever the position; NaN is never admitted.
    k: at least 0; all are admitted where there are no more. May be traced.
    arrays: of one shape; None stays None.
    rows: the k largest of each row rather than of all.
    from_end: of equal values take those with the highest flat index rather than the lowest.
  """
  first = next(x for x in arrays if x is not None)
  if not isinstance(k, (int, np.integer)):
    return _by_bits(f(0, *arrays), k, rows, from_end)
  k, competing = int(k), first.shape[-1] if rows else first.size
  if k <= 0:
    return Threshold(np.float32(np.nan), None)
  if k >= competing:
    return Threshold(np.float32(0), None)
  if not is_numpy(first):
    return _by_bits(f(0, *arrays), k, rows, from_end)
  return _of_rows(f, k, arrays, from_end) if rows else _by_bracket(f, k, arrays, competing, from_end)


def _by_bits(x: ArrayLike, k: int | ArrayLike, rows: bool, from_end: bool) -> Threshold:
  value, bound = _compiled_search()(x, k, rows=rows, from_end=from_end)
  return Threshold(value, bound, from_end)


@functools.cache
def _compiled_search() -> Callable[..., tuple[Any, Any]]:
  """Made once: a loop that is not compiled with what is around it is lowered anew at every call."""
  import jax

  return jax.jit(_search_bits, static_argnames=("rows", "from_end"))


def _search_bits(x: Any, k: Any, *, rows: bool, from_end: bool) -> tuple[Any, Any]:
  import jax
  import jax.numpy as jnp

  bits = jnp.where(x == x, jax.lax.bitcast_convert_type(x, np.int32), -1)
  index = positions(0, x)
  count = lambda mask: jnp.sum(mask, axis=-1 if rows else None, keepdims=rows, dtype=np.int32)

  def raise_value(i: Any, value: ArrayLike) -> ArrayLike:
    higher = value | (np.int32(1) << (30 - i))
    return jnp.where(count(bits >= higher) >= k, higher, value)

  value = jax.lax.fori_loop(0, 31, raise_value, jnp.zeros_like(count(bits > 0)))
  tied, wanted = bits == value, k - count(bits > value)

  def raise_bound(i: Any, bound: ArrayLike) -> ArrayLike:
    higher = bound | (np.uint32(1) << (31 - i).astype(np.uint32))
    if from_end:  # the highest index from which on there are enough
      return jnp.where(count(tied & (index >= higher)) >= wanted, higher, bound)
    return jnp.where(count(tied & (index < higher)) < wanted, higher, bound)  # the index of the last one wanted

  bound = jax.lax.fori_loop(0, 32, raise_bound, jnp.zeros(value.shape, np.uint32))
  return jax.lax.bitcast_convert_type(value, np.float32), bound


def _by_bracket(f: Callable[..., ArrayLike], k: int, arrays: Sequence[Any], size: int, from_end: bool) -> Threshold:
  low, high = _bracket(f, k, arrays, size)
  above, inside = 0, []
  for start, xs in blocks(arrays):
    x = f(start, *xs)
    over = x > high
    above += np.count_nonzero(over)
    inside.append(x[(x >= low) ^ over])
  candidates = np.concatenate(inside)
  if not above < k <= above + len(candidates):  # the sample misled
    above, candidates = 0, np.concatenate([f(start, *xs) for start, xs in blocks(arrays)])
    candidates = candidates[candidates == candidates]
    if len(candidates) <= k:
      return Threshold(np.float32(0), None)
  place = len(candidates) - (k - above)
  value = np.partition(candidates, place)[place]
  wanted = k - above - np.count_nonzero(candidates > value)
  if wanted == np.count_nonzero(candidates == value):
    return Threshold(value, None)
  for start, xs in reversed(list(blocks(arrays))) if from_end else blocks(arrays):
    tied = np.flatnonzero(f(start, *xs) == value)
    if len(tied) >= wanted:
      return Threshold(value, np.uint32(start + tied[-wanted if from_end else wanted - 1]), from_end)
    wanted -= len(tied)
  raise AssertionError("f must give the same values each time it is called")


def _bracket(f: Callable[..., ArrayLike], k: int, arrays: Sequence[Any], size: int) -> tuple[Any, Any]:
  """Two values between which the k-th largest lies, with near certainty."""
  if size <= 4 * SAMPLE:
    return np.float32(-1), np.float32(np.inf)
  # Whole cache lines at random places: runs of a model's leaf are alike, so that a regular grid may miss some.
  starts = np.random.default_rng(size).integers(0, size // 16, SAMPLE // 16) * 16
  places = (starts[:, None] + np.arange(16)).reshape(-1)
  sample = f(0, *(x if x is None else x.reshape(-1)[places] for x in arrays))
  share = k / size
  margin = 6 * np.sqrt(share * (1 - share) * SAMPLE) + 16
  ranks = np.array([share * SAMPLE + margin, share * SAMPLE - margin])
  low, high = SAMPLE - np.clip(ranks, 1, SAMPLE).astype(int)
  ordered = np.partition(sample, sorted({low, high}))
  return ordered[low] if ranks[0] < SAMPLE else np.float32(-1), ordered[high] if ranks[1] > 1 else np.float32(np.inf)


def _of_rows(f: Callable[..., ArrayLike], k: int, arrays: Sequence[Any], from_end: bool) -> Threshold:
  values, bounds = [], []
  for start, xs in blocks(arrays, rows=True):
    x = f(start, *xs)
    place = x.shape[-1] - k
    value = np.partition(x, place, axis=-1)[:, place, None]
    tied = x == value
    wanted = k - np.count_nonzero(x > value, axis=-1, keepdims=True)
    order = tied[:, ::-1] if from_end else tied
    column = np.argmax(order & (np.cumsum(order, axis=-1) == wanted), axis=-1)
    column = x.shape[-1] - 1 - column if from_end else column
    values.append(value)
    bounds.append(start + np.arange(len(x)) * x.shape[-1] + column)
  shape = (*next(x for x in arrays if x is not None).shape[:-1], 1)
  return Threshold(
      np.concatenate(values).reshape(shape), np.concatenate(bounds).astype(np.uint32).reshape(shape), from_end)
