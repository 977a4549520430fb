"""How far rewards order responses as their ranks do."""

import numpy as np
from jaxtyping import Bool, Float, Num

from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, explain_errors


@explain_errors
def pairwise_consistency(
    rewards: Float[AnyArray, "prompts responses"], ranks: Num[AnyArray, "prompts responses"], *,
    valid: Bool[AnyArray, "prompts responses"] | None = None,
) -> tuple[Float[np.ndarray, " prompts"], Float[np.ndarray, " prompts"]]:
  """The share of pairs of responses, of those whose ranks differ, that rewards order as the ranks; a tie is a half.

  Args:
    rewards: higher is better.
    ranks: 1 is best; equal ones are no pair.
    valid: responses that exist.

  Returns:
    `(shares, pairs)` of the prompts, float64: `np.average(shares, weights=pairs)` gives each pair one voice. A prompt
    without a pair has 0 and 0.

  Raises:
    ValueError: shapes that differ, or a value that is not finite.

  Example:
    >>> pairwise_consistency(np.array([[3.0, 1.0, 2.0]]), np.array([[1, 2, 2]]))
    (array([1.]), array([2.]))
  """
  rewards, ranks = np.asarray(rewards, np.float64), np.asarray(ranks, np.float64)
  kept = np.ones(rewards.shape, bool) if valid is None else np.asarray(valid)
  if rewards.ndim != 2 or not rewards.shape == ranks.shape == kept.shape:
    raise ValueError("rewards, ranks and valid must be [prompts, responses]; got "
                     f"{rewards.shape}, {ranks.shape} and {kept.shape}")
  require_finite(kept, rewards=rewards, ranks=ranks)
  rewards, ranks = np.where(kept, rewards, 0.0), np.where(kept, ranks, 0.0)
  better = (ranks[:, :, None] < ranks[:, None]) & kept[:, :, None] & kept[:, None]
  lead = np.sign(rewards[:, :, None] - rewards[:, None])
  pairs = better.sum(axis=(1, 2)).astype(np.float64)
  return np.where(better, (1 + lead) / 2, 0.0).sum(axis=(1, 2)) / np.maximum(pairs, 1), pairs
