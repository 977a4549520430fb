"""Accuracy in each of several environments, and in the worst: what a mean over all of them hides."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, check_arrays


class EnvironmentScores(NamedTuple):
  """The scores of a model in several environments.

  Attributes:
    each: the mean of each environment; NaN where it has no example.
    counts: examples of each.
    worst: the lowest mean of those that have examples.
    mean: of the environments' means, each counting once whatever its size.
    overall: of the examples.
  """

  each: Float[np.ndarray, " environments"]
  counts: Int[np.ndarray, " environments"]
  worst: float
  mean: float
  overall: float


@check_arrays
def by_environment(
    correct: Num[AnyArray, " examples"] | Bool[AnyArray, " examples"], environment: Int[AnyArray, " examples"],
    *, environments: int | None = None,
) -> EnvironmentScores:
  """The mean of each environment or group, the worst of these, and their mean.

  >>> scores = by_environment(np.array([True, True, False, True]), np.array([0, 0, 1, 1]))
  >>> scores.each, scores.worst
  (array([1. , 0.5]), 0.5)

  Args:
    correct: whether each example is told right, or any score of it.
    environment: which one it is from, counted from 0: a domain, or a group such as class and background together.
    environments: how many there are; None takes those up to the largest in `environment`.

  Raises:
    ValueError: no examples, a score that is not finite, or an environment out of range.

  Source: the worst group of Sagawa et al. 2019 (arXiv 1911.08731).
  """
  correct, environment = np.asarray(correct, np.float64), np.asarray(environment)
  require_finite(correct=correct)
  number = int(environment.max()) + 1 if environments is None else environments
  if environment.min() < 0 or environment.max() >= number:
    raise ValueError(f"environment must lie in [0, {number}); got {environment.min()} to {environment.max()}")
  counts = np.bincount(environment, minlength=number)
  sums = np.bincount(environment, weights=correct, minlength=number)
  each = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
  return EnvironmentScores(each, counts, float(np.nanmin(each)), float(np.nanmean(each)), float(correct.mean()))
