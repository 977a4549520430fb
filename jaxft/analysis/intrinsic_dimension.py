"""The intrinsic dimension of a task: the smallest subspace in which fine-tuning does nearly as well."""

import math
from collections.abc import Mapping


def intrinsic_dimension(
    scores: Mapping[int, float], full: float, *, target: float = 0.9, baseline: float = 0.0, interpolate: bool = False
) -> float | None:
  """d90: the smallest measured d whose score is at least `baseline + target * (full - baseline)`.

  Args:
    scores: by dimension, the best over learning rates.
    full: the score of full fine-tuning.
    target: in (0, 1].
    baseline: 0 as in the source; the score of the majority class gives a figure that trivial tasks do not lower.
    interpolate: between the dimensions on either side, linear in log d.

  Returns:
    The dimension, None where no score reaches the target.

  Raises:
    ValueError: no scores, a dimension < 1, or target outside (0, 1].

  Source: Li et al. 2018 (arXiv 1804.08838); Aghajanyan et al. 2020 (arXiv 2012.13255).
  """
  if not scores or min(scores) < 1:
    raise ValueError(f"scores must have at least one dimension, each >= 1; got {sorted(scores)}")
  if not 0.0 < target <= 1.0:
    raise ValueError(f"target must lie in (0, 1]; got {target}")
  threshold = baseline + target * (full - baseline)
  dims = sorted(scores)
  for below, dim in zip([None, *dims], dims):
    if scores[dim] < threshold:
      continue
    if not interpolate or below is None:
      return float(dim)
    share = (threshold - scores[below]) / (scores[dim] - scores[below])
    return math.exp(math.log(below) + share * (math.log(dim) - math.log(below)))
  return None
