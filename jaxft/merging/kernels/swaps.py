"""Merges that choose entry by entry what to take of which model: nearswap and RAM."""

from collections.abc import Sequence

import numpy as np

from jaxft.merging.kernels.blocks import LeafMerge
from jaxft.merging.kernels.namespace import ArrayLike, float32, masked, namespace, rounded
from jaxft.merging.kernels.reductions import counts
from jaxft.merging.kernels.trims import difference


def nearswap_leaf(models: Sequence[ArrayLike], base: ArrayLike, *, t: float) -> LeafMerge:
  """`w b + (1 - w) a`, `w = clip(t / max(|a - b|, 1e-6), 0, 1)`: the model b where it is near the base a.

  Args:
    models: the one model b.
    base: a.
    t: the distance up to which b is taken whole.
  """
  del models, base

  def combine(start: int, models: Sequence[ArrayLike], base: ArrayLike) -> ArrayLike:
    del start
    a, b = float32(base), float32(models[0])
    xp = namespace(a)
    weight = xp.clip(np.float32(t) / xp.maximum(abs(a - b), np.float32(1e-6)), np.float32(0), np.float32(1))
    return rounded(weight * b) + rounded((1 - weight) * a)

  return LeafMerge(combine, carries=True)


def contributions(
    models: Sequence[ArrayLike], base: ArrayLike | None, *, epsilon: float = 1e-5
) -> list[ArrayLike]:
  """For each model, how many entries it changes together with others; then, for each, how many it alone changes."""

  def conditions(start: int, base: ArrayLike | None, *models: ArrayLike) -> list[ArrayLike]:
    del start
    changed = [abs(difference(m, base)) > np.float32(epsilon) for m in models]
    number = sum(c.astype(np.int32) for c in changed)
    return [c & (number > 1) for c in changed] + [c & (number == 1) for c in changed]

  return counts(conditions, (base, *models))


def ram_leaf(
    models: Sequence[ArrayLike], base: ArrayLike | None, *, epsilon: float = 1e-5,
    boosts: Sequence[ArrayLike] | None = None,
) -> LeafMerge:
  """Reinforced agent merging: a change that one model made alone is kept, changes of several are averaged.

  Args:
    models: arrays of one leaf.
    base: of the same shape, or None.
    epsilon: changes up to this size are none.
    boosts: for each model, a factor of the changes that it made alone; see `ram_boosts`.

  Source: arXiv 2601.13572, as in mergekit.
  """
  del models

  def combine(start: int, models: Sequence[ArrayLike], base: ArrayLike | None) -> ArrayLike:
    del start
    deltas = [difference(m, base) for m in models]
    changed = [abs(d) > np.float32(epsilon) for d in deltas]
    number = sum(c.astype(np.float32) for c in changed)
    shared = sum(masked(d, c) for d, c in zip(deltas, changed, strict=True))
    if boosts is None:
      merged = shared / (number + (number == 0))
    else:
      several = masked(shared, number > 1) / (number + (number == 0))
      unique = number == 1
      alone = [rounded(masked(d, c & unique) * boost) for d, c, boost in zip(deltas, changed, boosts, strict=True)]
      merged = sum(alone, several)
    return merged if base is None else float32(base) + merged

  return LeafMerge(combine)


def ram_boosts(
    contributions: Sequence[ArrayLike], *, r: float = 0.1, alpha: float = 0.2, epsilon: float = 1e-5
) -> list[np.float32]:
  """`1 + r clip(shared / unique, 0, alpha)` for each model: the more it shares, the more its own changes count.

  Args:
    contributions: see `contributions`.
    r, alpha: strength and bound.
    epsilon: least divisor.
  """
  shared, unique = np.split(np.asarray(contributions, np.float64), 2)
  return list((1 + r * np.clip(shared / np.maximum(unique, epsilon), 0, alpha)).astype(np.float32))
