"""How sure a number is: standard errors over items, and paired comparisons over items or over seeds."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts load when they are used: stats takes half a second
from jaxtyping import Array, Float

from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, explain_errors


@dataclasses.dataclass(frozen=True)
class PairedTest:
  """A paired comparison of `a` with `b`.

  Attributes:
    mean_difference: mean of a - b.
    low, high: confidence interval of it, by Student's t.
    p_value: two-sided paired t test.
    p_wilcoxon: two-sided Wilcoxon signed-rank test; no smaller than 2^(1-n) however clear the difference.
    wins: how many pairs have a > b.
    n: number of pairs.
  """

  mean_difference: float
  low: float
  high: float
  p_value: float
  p_wilcoxon: float
  wins: int
  n: int

  @property
  def sign(self) -> int:
    """1 where a is above b by p < 0.05, -1 where it is below, 0 where neither can be said."""
    return int(np.sign(self.mean_difference)) if self.p_value < 0.05 else 0

  def __str__(self) -> str:
    return f"{self.mean_difference:+.4f} (p = {self.p_value:.2g})"


@explain_errors
def paired_test(
    a: Sequence[float] | AnyArray, b: Sequence[float] | AnyArray, *, confidence: float = 0.95
) -> PairedTest:
  """Compares two arms that ran with the same seeds, one value a seed.

  Args:
    a: values of one arm, `[n]`.
    b: values of the other, in the same order of seeds.
    confidence: of the interval.

  Returns:
    The test. With one pair the interval is unbounded and both p values are 1: one run is no evidence. With equal
    values throughout, both are 1 too.

  Raises:
    ValueError: the shapes differ, there is no pair, or a value is not finite.

  Example:
    >>> test = paired_test([0.9, 0.8, 0.7, 0.9], [0.8, 0.6, 0.6, 0.8])
    >>> test.wins, test.n, round(test.mean_difference, 3), round(test.p_value, 3)
    (4, 4, 0.125, 0.015)
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape or a.ndim != 1 or not a.size:
    raise ValueError(f"a and b must be two vectors of one length >= 1; got shapes {a.shape} and {b.shape}")
  if not (np.isfinite(a).all() and np.isfinite(b).all()):
    raise ValueError(f"a and b must be finite; got a = {a.tolist()}, b = {b.tolist()}")
  if not 0 < confidence < 1:
    raise ValueError(f"confidence must lie in (0, 1); got {confidence}")
  difference = a - b
  n, mean, wins = len(a), float(difference.mean()), int((difference > 0).sum())
  if n == 1:
    return PairedTest(mean, -math.inf, math.inf, 1.0, 1.0, wins, n)
  if not difference.any():
    return PairedTest(0.0, 0.0, 0.0, 1.0, 1.0, wins, n)
  half = float(scipy.stats.t.ppf((1 + confidence) / 2, n - 1)) * stderr(difference)
  # From the statistic and not from scipy's `ttest_rel`, which warns where all differences are equal: then p is 0.
  p = 0.0 if half == 0 else float(2 * scipy.stats.t.sf(abs(mean) / stderr(difference), n - 1))
  return PairedTest(mean, mean - half, mean + half, p, _wilcoxon(difference), wins, n)


@dataclasses.dataclass(frozen=True)
class PairedComparison:
  """How often `a` beats `b`; see `paired_comparison`.

  Attributes:
    wins, ties, losses: how many pairs have a above, equal to and below b.
    p_value: two-sided Wilcoxon signed-rank test, ties left out; 1 where all are ties.
  """

  wins: int
  ties: int
  losses: int
  p_value: float


@explain_errors
def paired_comparison(a: np.ndarray, b: np.ndarray, *, tolerance: float = 0.0) -> PairedComparison:
  """Wins, ties and losses over units that two models share: projects, problems, users.

  Asks how many units gain, where `paired_test` asks how much they gain in the mean.

  Args:
    a: one model's score of each unit, higher is better, `[n]`.
    b: the other's, in the same order.
    tolerance: differences up to this size are ties.

  Raises:
    ValueError: the shapes differ, there is no pair, a value is not finite, or the tolerance is negative or not finite.

  Example:
    >>> paired_comparison(np.array([3.0, 2.0, 1.0]), np.array([1.0, 2.0, 0.0]))
    PairedComparison(wins=2, ties=1, losses=0, p_value=0.5)

  Source: Wilcoxon 1945; by scipy, whose p value is no smaller than 2^(1-n) for n pairs without ties.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape or a.ndim != 1 or not a.size:
    raise ValueError(f"a and b must be two vectors of one length >= 1; got shapes {a.shape} and {b.shape}")
  if not (np.isfinite(a).all() and np.isfinite(b).all()):
    raise ValueError(f"a and b must be finite; got a = {a.tolist()}, b = {b.tolist()}")
  if not 0 <= tolerance < math.inf:
    raise ValueError(f"tolerance must be >= 0 and finite; got {tolerance}")
  difference = a - b
  decided = difference[np.abs(difference) > tolerance]
  wins, losses = int((decided > 0).sum()), int((decided < 0).sum())
  p = _wilcoxon(decided) if decided.size else 1.0
  return PairedComparison(wins, len(a) - wins - losses, losses, p)


def _wilcoxon(difference: np.ndarray) -> float:
  result: Any = scipy.stats.wilcoxon(difference)  # to its annotations a bare tuple
  return float(result.pvalue)


@explain_errors
def stderr(values: Sequence[float] | AnyArray) -> float:
  """Standard error of a mean: sample standard deviation (ddof 1) over sqrt(n); 0 for a single value.

  Raises:
    ValueError: not a vector of at least one value, or a value is not finite.

  Example:
    >>> round(stderr([1.0, 2.0, 3.0]), 3)
    0.577
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or not values.size:
    raise ValueError(f"values must be a vector of at least one value; got shape {values.shape}")
  require_finite(values=values)
  return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


@dataclasses.dataclass(frozen=True)
class Bootstrap:
  """A paired bootstrap of mean(a) - mean(b) over items.

  Attributes:
    mean_difference: on the items themselves.
    low, high: percentile interval.
    p_value: two-sided; at least 1 / (draws + 1).
    n: number of items.
  """

  mean_difference: float
  low: float
  high: float
  p_value: float
  n: int


@explain_errors
def paired_bootstrap(
    a: Float[AnyArray, " items"], b: Float[AnyArray, " items"], key: jax.Array, *, draws: int = 1000,
    confidence: float = 0.95,
) -> Bootstrap:
  """Compares two models on the same items by resampling the items.

  `p = 2 min(P(d* <= 0), P(d* >= 0))` over the resampled mean differences d*, with one added to each count.

  Args:
    a: one model's score of each item.
    b: the other's, in the same order.
    key: typed key; the same key gives the same answer.
    draws: number of resamples.
    confidence: of the interval.

  Raises:
    ValueError: the shapes differ, there is no item, a value is not finite, draws < 1, or confidence outside (0, 1).

  The differences are taken in float64, their resampled means in float32 and in units of the largest difference.

  Example:
    >>> a, b = jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([0.0, 0.0, 1.0, 0.0])
    >>> result = paired_bootstrap(a, b, jax.random.key(0))
    >>> result.mean_difference, result.n
    (0.5, 4)

  Source: Efron and Tibshirani 1993. This is the uncertainty over items; the one over seeds is `paired_test`'s.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape or a.ndim != 1 or not a.size:
    raise ValueError(f"a and b must be two vectors of one length >= 1; got shapes {a.shape} and {b.shape}")
  require_finite(a=a, b=b)
  if draws < 1:
    raise ValueError(f"draws must be >= 1; got {draws}")
  if not 0 < confidence < 1:
    raise ValueError(f"confidence must lie in (0, 1); got {confidence}")
  difference = a - b
  unit = np.abs(difference).max() or 1.0
  means = _resampled_means(jnp.asarray(difference / unit, jnp.float32), jax.random.split(key, draws))
  resampled = unit * np.asarray(means, np.float64)
  tail = min((resampled <= 0).sum(), (resampled >= 0).sum())
  low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
  p = min(1.0, 2 * (tail + 1) / (draws + 1))
  return Bootstrap(float(difference.mean()), float(low), float(high), float(p), a.size)


@jax.jit
def _resampled_means(values: Float[AnyArray, " items"], keys: jax.Array) -> Float[Array, " draws"]:
  draw = lambda key: jnp.mean(values[jax.random.randint(key, values.shape, 0, values.shape[0])])
  # One draw after the other: all at once would hold draws x items indices.
  return jax.lax.map(draw, keys)
