"""Sparsifiers of one leaf of a task vector: by magnitude, at random, at random by rank, in a band of magnitudes.

A trim is made from the whole leaf, and then applied to each block: `trim.apply(start, delta) -> delta`. The four of
them and a sign election are TIES, DARE, DELLA and breadcrumbs.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from jaxft.checks import in_range
from jaxft.merging.kernels.blocks import blocks
from jaxft.merging.kernels.namespace import ArrayLike, float32, is_numpy, masked, namespace, rounded
from jaxft.merging.kernels.random_bits import ONE, probability, random_integers
from jaxft.merging.kernels.reductions import fold, tree_sums
from jaxft.merging.kernels.thresholds import admits, largest

Mask = Callable[[int, ArrayLike], ArrayLike]
Rescale = Literal["inverse_probability", "l1"] | None

# Probabilities that depend on a rank are multiples of 2**-16, so that a table tells which ranks a number drawn admits.
COARSE = 1 << 16

# Norms below it are not matched: the value of mergekit.
SMALLEST_NORM = np.float32(1e-7)


class Trim(NamedTuple):
  """Attributes: apply, a function of a block of the delta; rows, whether blocks must hold whole rows."""

  apply: Callable[[int, ArrayLike], ArrayLike]
  rows: bool = False


WHOLE = Trim(lambda start, delta: delta)
NOTHING = Trim(lambda start, delta: namespace(delta).zeros_like(delta))


def check_density(density: float) -> None:
  """Raises ValueError for a density outside [0, 1]. At 0 nothing is kept, as where a gradient over depth begins."""
  in_range("density", density, "[0, 1]")


def check_gamma(gamma: float) -> None:
  """Raises ValueError for a share of outliers outside [0, 1)."""
  in_range("gamma", gamma, "[0, 1)")


def check_epsilon(density: float, epsilon: float) -> None:
  """Raises ValueError where probabilities from `density - epsilon` to `density + epsilon` would leave (0, 1).

  At a density of 0 or 1 nothing is drawn.
  """
  in_range("epsilon", epsilon)
  if 0 < density < 1 and not (0 <= epsilon < density and density + epsilon < 1):
    raise ValueError("epsilon must be at least 0 and leave density - epsilon and density + epsilon inside (0, 1); "
                     f"got density {density}, epsilon {epsilon}")


def difference(model: ArrayLike, base: ArrayLike | None) -> ArrayLike:
  """`model - base` in float32; `model` where it is a task vector already."""
  return float32(model) if base is None else float32(model) - float32(base)


def magnitude(start: int, model: ArrayLike, base: ArrayLike | None) -> ArrayLike:
  """`|model - base|`, a function of a block."""
  del start
  return abs(difference(model, base))


def by_magnitude(
    model: ArrayLike, base: ArrayLike | None, *, density: float, rows: bool = False, rescale: Rescale = None
) -> Trim:
  """Keeps the `max(1, int(density * n))` entries of largest magnitude, of n in the leaf or in each row."""
  if density in (0.0, 1.0):
    return WHOLE if density else NOTHING
  n = model.shape[-1] if rows else model.size
  threshold = largest(magnitude, max(1, int(density * n)), (model, base), rows=rows)
  return _rescaled(lambda start, d: admits(threshold, start, abs(d)), model, base, rescale, rows=rows)


def band(
    model: ArrayLike, base: ArrayLike | None, *, density: float, gamma: float, rows: bool = False,
    rescale: Rescale = None,
) -> Trim:
  """Drops the `int(gamma * n)` entries of largest magnitude and keeps the `int(density * n)` largest of the rest.

  Where fewer are left than that, fewer outliers are dropped. Of equal entries the last count as the larger, as in a
  stable sort from the smallest up.
  """
  if density in (0.0, 1.0):
    return WHOLE if density else NOTHING
  n = model.shape[-1] if rows else model.size
  kept = int(density * n)
  dropped = min(int(gamma * n), n - kept)
  outliers, either = (
      largest(magnitude, k, (model, base), rows=rows, from_end=True) for k in (dropped, dropped + kept))
  inside = lambda start, d: admits(either, start, abs(d)) & ~admits(outliers, start, abs(d))
  return _rescaled(inside, model, base, rescale, rows=rows)


def at_random(
    model: ArrayLike, base: ArrayLike | None, *, density: float, stream: ArrayLike,
    rescale: Rescale = "inverse_probability",
) -> Trim:
  """Keeps each entry with probability `density`."""
  if density in (0.0, 1.0):
    return WHOLE if density else NOTHING
  bound = probability(density)
  keep = lambda start, d: random_integers(stream, start, d) < np.uint32(bound)
  if rescale == "inverse_probability":
    return Trim(lambda start, d: rounded(masked(d, keep(start, d)) * np.float32(ONE / bound)))
  return _rescaled(_stored(keep, model, base) if rescale == "l1" else keep, model, base, rescale)


def by_rank(
    model: ArrayLike, base: ArrayLike | None, *, density: float, epsilon: float, stream: ArrayLike,
    rescale: Rescale = "inverse_probability",
) -> Trim:
  """Keeps each entry with a probability that grows linearly with the rank of its magnitude in its row.

      p = density - epsilon + 2 epsilon (rank - 1) / (n - 1),   rank = the number of entries of the row up to its size

  so that equal entries are equally likely to stay. The entry of a row of one has p = density.

  Args:
    model, base: see `difference`.
    density: mean of p.
    epsilon: half the range of p.
    stream: of random numbers.
    rescale: divide by p, or to the L1 norm that the leaf had.
  """
  if density in (0.0, 1.0):
    return WHOLE if density else NOTHING
  table = keep_probabilities(model.shape[-1], density=density, epsilon=epsilon)
  if rescale != "inverse_probability":
    keep = _stored(lambda start, d: _kept_by_rank(start, d, table, stream), model, base, rows=True)
    return _rescaled(keep, model, base, rescale, rows=True)
  inverse = (ONE / table).astype(np.float32)

  def scaled(start: int, d: ArrayLike) -> ArrayLike:
    at = _ranks(abs(d)) - 1
    keep = random_integers(stream, start, d) < _look_up(table, at)
    return rounded(masked(d, keep) * _look_up(inverse, at))

  return Trim(scaled, rows=True)


def keep_probabilities(n: int, *, density: float, epsilon: float) -> np.ndarray:
  """`uint32[n]`: the probabilities of the ranks 1 to n in units of 2**-24, multiples of 2**-16."""
  low, high = (round(p * COARSE) for p in ((density, density) if n == 1 else (density - epsilon, density + epsilon)))
  return ((low + np.arange(n, dtype=np.int64) * (high - low) // max(n - 1, 1)) * (ONE // COARSE)).astype(np.uint32)


def _look_up(table: np.ndarray, at: ArrayLike) -> ArrayLike:
  xp = namespace(at)
  return xp.take(xp.asarray(table), at)


def _ranks(x: ArrayLike) -> ArrayLike:
  """The number of entries of the same row that are no larger, 1 to n."""
  xp = namespace(x)
  rows = x.reshape(-1, x.shape[-1])
  if is_numpy(x):
    ranks = np.stack([np.searchsorted(np.sort(row), row, side="right") for row in rows])
  else:
    import jax

    ranks = jax.vmap(lambda row: xp.searchsorted(xp.sort(row), row, side="right"))(rows)
  return ranks.reshape(x.shape)


def _kept_by_rank(start: int, d: ArrayLike, table: np.ndarray, stream: ArrayLike) -> ArrayLike:
  """`drawn < table[rank - 1]`. NumPy asks the other way round, which takes one sort and no search.

  An entry stays if it is at least as large as the one that stands, in the sorted row, where the table passes the number
  drawn. The upper 16 bits of that number say where.
  """
  drawn = random_integers(stream, start, d)
  if not is_numpy(d):
    return drawn < _look_up(table, _ranks(abs(d)) - 1)
  place = np.take(_places(table.tobytes()), np.right_shift(drawn, 8, out=drawn).astype(np.intp))
  place += (np.arange(len(d)) * (len(table) + 1))[:, None]
  size = abs(d)
  ordered = np.full((len(d), len(table) + 1), np.inf, np.float32)
  ordered[:, :-1] = size
  ordered[:, :-1].sort(axis=-1)
  return size >= np.take(ordered.reshape(-1), place)


@lru_cache(64)
def _places(table: bytes) -> np.ndarray:
  """For the upper 16 bits of a number, how many entries of a table of probabilities it is not below."""
  first = np.arange(COARSE, dtype=np.uint32) * np.uint32(ONE // COARSE)
  return np.searchsorted(np.frombuffer(table, np.uint32), first, side="right").astype(np.intp)


def _stored(keep: Mask, model: ArrayLike, base: ArrayLike | None, *, rows: bool = False) -> Mask:
  """A mask that is dear to compute and asked for twice: NumPy keeps it, one bit an entry."""
  if not is_numpy(model):
    mask = keep(0, difference(model, base))
    return lambda start, d: mask
  pieces = {start: np.packbits(keep(start, difference(*xs))) for start, xs in blocks((model, base), rows=rows)}
  return lambda start, d: np.unpackbits(pieces[start], count=d.size).view(bool).reshape(d.shape)


def _rescaled(keep: Mask, model: ArrayLike, base: ArrayLike | None, rescale: Rescale, rows: bool = False) -> Trim:
  if rescale is None:
    return Trim(lambda start, d: masked(d, keep(start, d)), rows)

  def norms(start: int, m: ArrayLike, b: ArrayLike | None) -> tuple[ArrayLike, ArrayLike]:
    d = difference(m, b)
    return abs(d), abs(masked(d, keep(start, d)))

  before, after = (fold(x.reshape(-1)) for x in tree_sums(norms, (model, base), rows=rows))
  xp = namespace(model)
  small = (before < SMALLEST_NORM) | (after < SMALLEST_NORM)
  factor = xp.where(small, np.float32(1), before / xp.where(small, np.float32(1), after))
  return Trim(lambda start, d: rounded(masked(d, keep(start, d)) * factor), rows)
