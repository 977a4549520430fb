"""Arcee fusion: only those changes are kept that matter, by their size and by how much their row's softmax moved."""

from collections.abc import Sequence

import numpy as np

from jaxft.merging.kernels.blocks import LeafMerge, blocks
from jaxft.merging.kernels.elementary import exp, log, polynomial
from jaxft.merging.kernels.namespace import ArrayLike, float32, is_numpy, masked, namespace, rounded
from jaxft.merging.kernels.reductions import fold
from jaxft.merging.kernels.thresholds import largest


def importance(model: ArrayLike, base: ArrayLike) -> ArrayLike:
  """`|model - base| * KL(softmax(model) || softmax(base))`, the divergence taken over each row. A function of rows.

      KL = sum p x,   x = log(p / q),   p, q = softmax + 1e-8

  is summed as `sum p (x + exp(-x) - 1)`: the same, as p and q have the same sum, but without its cancellation, which
  for the small updates of fine-tuning is larger than the divergence in float32.
  """
  a, b = float32(model), float32(base)
  p, q = (_softmax(x) + np.float32(1e-8) for x in (a, b))
  x = log(p / q)
  xp = namespace(x)
  small = rounded(rounded(x * x) * polynomial(-x, [1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720]))
  excess = xp.where(abs(x) < np.float32(0.25), small, exp(-x) - 1 + x)
  return rounded(abs(a - b) * _row_sum(rounded(p * excess)))


def arcee_fusion_leaf(models: Sequence[ArrayLike], base: ArrayLike) -> LeafMerge:
  """`base + (model - base)` where the importance is at least `median + 1.5 (third quartile - first quartile)`.

  Quartiles are exact; mergekit draws a million entries of larger leaves.

  Args:
    models: the one model.
    base: of the same shape.

  Source: mergekit (arXiv 2403.13257).
  """
  score = lambda start, b, m: importance(m, b)
  if is_numpy(base):
    scores = np.concatenate([score(start, *xs).reshape(-1) for start, xs in blocks((base, models[0]), rows=True)])
  else:
    scores = importance(models[0], base).reshape(-1)
  # The index that mergekit takes, rounded to float32 as there, counted from the largest.
  rank = lambda q: scores.size - int(np.float32(q) * np.float32(scores.size - 1))
  first, median, third = (largest(lambda start, x: x, rank(q), (scores,)).value for q in (0.25, 0.5, 0.75))
  threshold = median + rounded(np.float32(1.5) * (third - first))

  def combine(start: int, models: Sequence[ArrayLike], base: ArrayLike) -> ArrayLike:
    keep = importance(models[0], base) >= threshold
    a = float32(base)
    return a + masked(float32(models[0]) - a, keep)

  return LeafMerge(combine, rows=True)


def _softmax(x: ArrayLike) -> ArrayLike:
  e = exp(x - x.max(axis=-1, keepdims=True))
  return rounded(e * (np.float32(1) / _row_sum(e)))


def _row_sum(x: ArrayLike) -> ArrayLike:
  return fold(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], 1)
