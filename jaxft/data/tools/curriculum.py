"""Easy first: an order of examples by difficulty, in stages, shuffled within each."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int, Num

from jaxft.checks import in_range
from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def curriculum(
    difficulty: Num[AnyArray, " n"], stages: int | Sequence[float] = 3, *, seed: int, epochs: int = 1,
) -> Int[np.ndarray, " places"]:
  """An order of examples: those of the first, easiest stage, as often as epochs say, then those of the next.

  >>> difficulty = np.array([3.0, 1.0, 2.0, 1.0, 9.0, 2.0])
  >>> order = curriculum(difficulty, 3, seed=0)
  >>> [sorted(difficulty[stage].tolist()) for stage in np.split(order, 3)]
  [[1.0, 1.0], [2.0, 2.0], [3.0, 9.0]]

  Args:
    difficulty: of each example, higher is harder: the tools to choose from, the length of their descriptions, the calls
      that are needed.
    stages: their number, as equal in size as may be; or the share of each, > 0, which sum to 1. Of equal difficulty the
      first examples are in the earlier stage.
    seed: of the order within the stages, another in each epoch.
    epochs: passes over a stage before the next begins.

  Returns:
    Rows of the examples, `epochs * n` of them.

  Raises:
    ValueError: more stages than examples or none, shares that are not above 0 or do not sum to 1, epochs below 1, or a
      difficulty that is not finite.

  Source: the warm-up of Zeng et al. 2025, iTool (arXiv 2501.09766); difficulty and shares are arguments here.
  """
  difficulty = np.asarray(difficulty)
  require_finite(difficulty=difficulty)
  n = len(difficulty)
  if epochs < 1:
    raise ValueError(f"epochs must be at least 1; got {epochs}")
  order = np.argsort(difficulty, kind="stable")
  return np.concatenate([
      stage[np.random.default_rng([seed, i, epoch]).permutation(len(stage))]
      for i, stage in enumerate(_cut(order, _ends(stages, n))) for epoch in range(epochs)])


def _ends(stages: int | Sequence[float], n: int) -> Int[np.ndarray, " stages"]:
  if isinstance(stages, (int, np.integer)):
    if not 1 <= stages <= n:
      raise ValueError(f"stages must lie in [1, {n}], the number of examples; got {stages}")
    shares: Float[np.ndarray, " stages"] = np.full(stages, 1 / stages)
  else:
    in_range("stages", list(stages), "(0, 1]")
    shares = np.asarray(stages, np.float64)
    if not len(shares) or abs(shares.sum() - 1) > 1e-6:
      raise ValueError(f"stages must be shares that sum to 1; got {list(stages)}")
  return np.round(np.cumsum(shares) * n).astype(np.int64)


def _cut(order: Int[np.ndarray, " n"], ends: Int[np.ndarray, " stages"]) -> Iterator[Int[np.ndarray, " stage"]]:
  for start, end in zip([0, *ends[:-1]], ends, strict=True):
    yield order[start:end]
