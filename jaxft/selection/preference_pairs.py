"""Pairs of a chosen and a rejected text from scores of single ones."""

import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxft.checks import in_range
from jaxft.finite import require_finite
from jaxft.signatures import explain_errors


@explain_errors
def preference_pairs(
    scores: Float[np.ndarray, " texts"], groups: Shaped[np.ndarray, " texts"], *, min_gap: float = 0.0,
    per_group: int | None = None, seed: int = 0,
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
  """Pairs of texts of one group, the better one first: `score_chosen - score_rejected > min_gap`.

  >>> preference_pairs(np.array([1.0, 3.0, 2.0, 5.0]), np.array(["a", "a", "b", "b"]))
  (array([1, 3]), array([0, 2]))

  Args:
    scores: of each text; ties are no pair.
    groups: what each text answers, such as its prompt.
    min_gap: >= 0, what scores are to differ by more than.
    per_group: at most so many pairs of a group, drawn at random; None takes all, of a group of n texts n (n - 1) / 2.
    seed: of the draw.

  Returns:
    Indices of the chosen and of the rejected texts, group by group in the order of their first text; none where no two
    texts of a group differ enough.

  Raises:
    ValueError: scores that are not finite, groups of another length, a negative min_gap, or per_group below 1.

  Source: the pairs that Loghmani 2025 (arXiv 2506.00152) makes of corrected outcomes.
  """
  scores, groups = np.asarray(scores), np.asarray(groups)
  require_finite(scores=scores)
  in_range("min_gap", min_gap, "[0, inf)")
  if groups.shape != scores.shape:
    raise ValueError(f"groups must be one for each of the {len(scores)} scores; got shape {groups.shape}")
  if per_group is not None and per_group < 1:
    raise ValueError(f"per_group must be at least 1, or None for all; got {per_group}")
  rng = np.random.default_rng(seed)
  _, first, group = np.unique(groups, return_index=True, return_inverse=True)
  chosen, rejected = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
  for number in np.argsort(first):
    rows = np.flatnonzero(group == number)
    better, worse = np.nonzero(scores[rows][:, None] - scores[rows] > min_gap)
    if per_group is not None and len(better) > per_group:
      kept = np.sort(rng.choice(len(better), per_group, replace=False))
      better, worse = better[kept], worse[kept]
    chosen.append(rows[better])
    rejected.append(rows[worse])
  return np.concatenate(chosen), np.concatenate(rejected)
