"""95% intervals of what is measured over records: of means, ratios, correlations and root mean squares."""

import math
from typing import Any

import numpy as np

from jaxft.recipes.tasks import Z, wilson_interval


def with_interval(name: str, value: float, low: float, high: float) -> dict[str, float]:
  """The three under the names that a summary gives them; without the ends where there is no interval (NaN)."""
  found = {name: value, f"{name}_low": low, f"{name}_high": high}
  return {key: x for key, x in found.items() if key == name or not math.isnan(x)}


def of_mean(name: str, values: Any, *, within: tuple[float, float] = (-math.inf, math.inf)) -> dict[str, float]:
  """The mean of one number a record and its interval, by the normal distribution; one record has none.

  >>> of_mean("ndcg", [1.0, 1.0, 0.4], within=(0.0, 1.0))["ndcg_high"]
  1.0

  Args:
    name: of the number.
    values: of the records.
    within: what it can be at least and at most, where few records would make the interval reach further.
  """
  found = of_ratio(name, values, np.ones(len(values)))
  return {key: x if key == name else min(max(x, within[0]), within[1]) for key, x in found.items()}


def of_share(name: str, values: Any) -> dict[str, float]:
  """The share of records, Wilson's interval."""
  share = float(np.mean(values))
  return with_interval(name, share, *wilson_interval(share, len(values)))


def of_ratio(name: str, totals: Any, weights: Any) -> dict[str, float]:
  """`sum(totals) / sum(weights)` over records and its interval, by the residuals of the records.

  The tokens of a record are not independent of one another, so it is records that are counted: with
  `r = total - ratio * weight` of each, the variance is `n / (n - 1) * sum(r^2) / sum(weights)^2`.
  """
  totals, weights = np.asarray(totals, np.float64), np.asarray(weights, np.float64)
  counted = weights > 0
  totals, weights = totals[counted], weights[counted]
  if not len(weights):
    return {}
  ratio, n = float(totals.sum() / weights.sum()), len(totals)
  if n < 2:
    return {name: ratio}
  half = Z * math.sqrt(n / (n - 1) * float(np.sum((totals - ratio * weights) ** 2))) / float(weights.sum())
  return with_interval(name, ratio, ratio - half, ratio + half)


def of_correlation(name: str, r: float, n: int) -> dict[str, float]:
  """A correlation over n records and its interval, by Fisher's transformation; below four records there is none.

  Of Spearman's the variance is larger, 1.06 / (n - 3) (Fieller, Hartley and Pearson, 1957).
  """
  if n < 4 or abs(r) >= 1:
    return {name: r}
  middle, half = math.atanh(r), Z * math.sqrt((1.06 if name == "spearman" else 1.0) / (n - 3))
  return with_interval(name, r, math.tanh(middle - half), math.tanh(middle + half))


def of_root(name: str, squares: Any, scale: float = 1.0) -> dict[str, float]:
  """The root of a mean of squares, times a scale, and its interval, that of the mean."""
  found = of_mean("mean", squares)
  return {key.replace("mean", name): scale * math.sqrt(max(x, 0.0)) for key, x in found.items()}
