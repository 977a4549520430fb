"""How stable a way of fine-tuning is: the spread of its scores over seeds, and how many runs fail."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxft.signatures import explain_errors


class Stability(NamedTuple):
  """Of the scores of several seeds.

  Attributes:
    mean, std: over all of them; std with ddof 1, 0 for one seed.
    worst: the lowest score.
    failed: the share of runs that learned nothing.
    mean_of_others: the mean without these; NaN where all failed.
  """

  mean: float
  std: float
  worst: float
  failed: float
  mean_of_others: float


@explain_errors
def seed_stability(scores: Sequence[float], *, chance: float) -> Stability:
  """Mean, spread and failures of a set of runs that differ in nothing but the seed.

  >>> seed_stability([0.9, 0.8, 0.5, float("nan")], chance=0.5)
  Stability(mean=0.675, std=0.20615528128088306, worst=0.5, failed=0.5, mean_of_others=0.8500000000000001)

  Args:
    scores: one a seed, higher is better. A run that diverged, whose score is not finite, counts as failed and with the
      score of chance.
    chance: the score of the majority class, or of a constant prediction; a run that is not above it has failed.

  Raises:
    ValueError: there is no score, or chance is not finite.

  Source: Tinn et al. 2021 (arXiv 2112.07869); failed runs as in Mosbach et al. 2020 (arXiv 2006.04884).
  """
  values = np.asarray(scores, np.float64)
  if values.ndim != 1 or not values.size or not np.isfinite(chance):
    raise ValueError(f"scores must hold at least one number and chance be finite; got {scores!r} and {chance!r}")
  values = np.where(np.isfinite(values), values, chance)
  failed = values <= chance
  std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
  others = float(values[~failed].mean()) if not failed.all() else float("nan")
  return Stability(float(values.mean()), std, float(values.min()), float(failed.mean()), others)
