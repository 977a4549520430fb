"""Which layers to take, by one score of each."""

import math

import numpy as np
from jaxtyping import Bool, Float

from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, explain_errors


@explain_errors
def top_layers(
    scores: Float[AnyArray, " layers"], *, k: int, largest: bool = True
) -> Bool[np.ndarray, " layers"]:
  """The k layers of the largest scores, or of the smallest; of equal ones those that come first.

  >>> top_layers(np.array([3.0, 1.0, 2.0]), k=2)
  array([ True, False,  True])

  Args:
    scores: of the layers, in their order, such as those of `jaxft.analysis.layer_snr`.
    k: from 0 to all.
    largest: False takes the smallest.

  Raises:
    ValueError: k out of range, or a score that is not finite.

  Source: NoiseFiT, Khadangi et al. 2025 (arXiv 2504.03302), takes 3 layers, and tries both ends.
  """
  require_finite(scores=scores)
  scores = np.asarray(scores, np.float64)
  if not 0 <= k <= len(scores):
    raise ValueError(f"k must lie in 0..{len(scores)}, the number of layers; got {k}")
  chosen = np.zeros(len(scores), bool)
  chosen[np.argsort(-scores if largest else scores, kind="stable")[:k]] = True
  return chosen


@explain_errors
def robust_threshold_layers(
    scores: Float[AnyArray, " layers"], *, max_layers: int | None = None, bands: int = 3
) -> Bool[np.ndarray, " layers"]:
  """Layers of outstanding scores, at least `median + median |score - median|`, spread over the depth.

  The depth is cut into bands of equal size. The best layers are taken first, but of each band no more than its share of
  `max_layers`, rounded up; what is then left of `max_layers` goes to the best ones that remain, wherever they are.

  >>> robust_threshold_layers(np.array([0.0, 5.0, 6.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0]), max_layers=2)  # by band
  array([False, False,  True, False, False, False, False, False,  True])

  Args:
    scores: of the layers, in their order.
    max_layers: at most so many; None takes the square root of the number of layers, rounded up.
    bands: how many there are.

  Returns:
    The layers, at least one where there are any; of equal scores those that come first.

  Raises:
    ValueError: max_layers or bands below 1, or a score that is not finite.

  Source: the second version of the code of NoiseFiT, Khadangi et al. 2025 (arXiv 2504.03302).
  """
  require_finite(scores=scores)
  scores = np.asarray(scores, np.float64)
  layers = len(scores)
  most = math.isqrt(max(layers - 1, 0)) + 1 if max_layers is None else max_layers
  if most < 1 or bands < 1:
    raise ValueError(f"max_layers and bands must be at least 1; got {most} and {bands}")
  chosen = np.zeros(layers, bool)
  if not layers:
    return chosen
  median = np.median(scores)
  # The best is always among them; rounding must not leave it out.
  least = min(median + np.median(np.abs(scores - median)), scores.max())
  able = [i for i in np.argsort(-scores, kind="stable") if scores[i] >= least]
  band, quota = np.arange(layers) * bands // layers, math.ceil(most / bands)
  for of_band in (quota, layers):
    for i in able:
      if not chosen[i] and chosen.sum() < most and chosen[band == band[i]].sum() < of_band:
        chosen[i] = True
  return chosen
