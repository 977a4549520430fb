"""SCE: select the entries in which the models differ most, calculate a weight for each model, erase minority signs."""

from collections.abc import Sequence

import numpy as np

from jaxft.merging.kernels.blocks import LeafMerge
from jaxft.merging.kernels.namespace import ArrayLike, float32, masked, namespace, rounded, select
from jaxft.merging.kernels.reductions import counts, tree_sums
from jaxft.merging.kernels.thresholds import admits, largest
from jaxft.merging.kernels.trims import difference


def spread(start: int, base: ArrayLike | None, *models: ArrayLike) -> ArrayLike:
  """K times the variance of the task vectors over the K models, at each entry; exactly 0 where they are equal."""
  del start
  deltas = [difference(m, base) for m in models]
  share = np.float32(1 / len(deltas))
  offset = sum(d - deltas[0] for d in deltas[1:]) if len(deltas) > 1 else deltas[0] - deltas[0]
  mean = deltas[0] + rounded(offset * share)
  return sum(rounded((d - mean) * (d - mean)) for d in deltas)


def differing(models: Sequence[ArrayLike], base: ArrayLike | None) -> ArrayLike:
  """The number of entries in which the models are not all equal."""
  return counts(lambda start, *xs: [spread(start, *xs) > 0], (base, *models))[0]


def sce_leaf(
    models: Sequence[ArrayLike], base: ArrayLike | None, *, selected: int | ArrayLike | None = None
) -> LeafMerge:
  """`base + sum_i c_i m_i delta_i / max(sum_i c_i m_i, 1e-6)` over the selected entries.

  c_i is the share of model i in the sum of the squares of the selected entries, m_i whether its entry has the sign of
  `sum_i delta_i`, a sum of zero counting as positive. Where the mean squares add up to less than 1e-6 all models weigh
  alike.

  Args:
    models: arrays of one leaf.
    base: of the same shape, or None.
    selected: how many entries to select, those of largest variance; None selects all. May be traced.

  Source: Wan et al. 2024, FuseChat (arXiv 2408.07990).
  """
  threshold = None if selected is None else largest(spread, selected, (base, *models))

  def chosen(start: int, base: ArrayLike | None, models: Sequence[ArrayLike]) -> list[ArrayLike]:
    deltas = [difference(m, base) for m in models]
    if threshold is None:
      return deltas
    keep = admits(threshold, start, spread(start, base, *models))
    return [masked(d, keep) for d in deltas]

  def squares(start: int, base: ArrayLike | None, *models: ArrayLike) -> list[ArrayLike]:
    return [rounded(d * d) for d in chosen(start, base, models)]

  weights = _shares(tree_sums(squares, (base, *models)), models[0].size)

  def combine(start: int, models: Sequence[ArrayLike], base: ArrayLike | None) -> ArrayLike:
    votes, up, down, up_weight, down_weight = 0, 0, 0, 0, 0
    for delta, weight in zip(chosen(start, base, models), weights, strict=True):
      positive = delta > 0
      rise = masked(delta, positive)
      votes, up, down = votes + delta, up + rounded(rise * weight), down + rounded((delta - rise) * weight)
      up_weight, down_weight = up_weight + positive * weight, down_weight + (delta < 0) * weight
    elected = votes >= 0
    share = namespace(votes).maximum(select(elected, up_weight, down_weight), np.float32(1e-6))
    merged = select(elected, up, down) / share
    return merged if base is None else float32(base) + merged

  return LeafMerge(combine)


def _shares(sums: Sequence[ArrayLike], size: int) -> list[ArrayLike]:
  xp = namespace(sums[0])
  total = sum(sums[1:], sums[0])
  small = total < np.float32(1e-6 * size)
  even = np.float32(1 / len(sums))
  return [xp.where(small, even, s / xp.where(small, np.float32(1), total)) for s in sums]
