"""How sure a mean is where seeds and items are both samples: every seed's model was scored on the same items.

A test over seeds alone takes the items for all there are, and one over items alone takes the run for the only one. What
holds of another run and of other texts needs both.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable

import numpy as np
import scipy  # its parts load when they are used: stats takes half a second
from jaxtyping import Float, Num

from jaxft.finite import require_finite
from jaxft.signatures import explain_errors


@dataclasses.dataclass(frozen=True)
class CrossedMean:
  """A mean over seeds and items, and how sure it is.

  Attributes:
    mean: over all cells.
    stderr: of the mean as an estimate for other seeds and other items; infinite for one seed.
    df: degrees of freedom of Student's t for it.
    seeds, items: how many.
    of_seeds: the part of the squared standard error that more seeds make smaller.
    of_items: the part that only more items make smaller.
  """

  mean: float
  stderr: float
  df: float
  seeds: int
  items: int
  of_seeds: float
  of_items: float

  def interval(self, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided confidence interval of the mean."""
    if not math.isfinite(self.stderr):
      return -math.inf, math.inf
    half = float(scipy.stats.t.ppf((1 + confidence) / 2, self.df)) * self.stderr
    return self.mean - half, self.mean + half

  def p_above(self, bound: float) -> float:
    """The one-sided p value of "the mean is at most `bound`"."""
    if not math.isfinite(self.stderr):
      return 0.5
    if self.stderr == 0:
      return 0.5 if self.mean == bound else float(self.mean < bound)
    return float(scipy.stats.t.sf((self.mean - bound) / self.stderr, self.df))

  def p_below(self, bound: float) -> float:
    """The one-sided p value of "the mean is at least `bound`": one minus `p_above`, exact where that is all but 1."""
    if not math.isfinite(self.stderr) or self.stderr == 0:
      return 1 - self.p_above(bound)
    return float(scipy.stats.t.cdf((self.mean - bound) / self.stderr, self.df))

  def detectable(self, *, power: float = 0.8, level: float = 0.05) -> float:
    """The smallest true mean that a two-sided test at `level` tells from 0 with this power, at this standard error."""
    if not math.isfinite(self.stderr):
      return math.inf
    return float(scipy.stats.t.ppf(1 - level / 2, self.df) + scipy.stats.t.ppf(power, self.df)) * self.stderr

  def seeds_needed(self, effect: float, *, power: float = 0.8, level: float = 0.05) -> int | None:
    """How many seeds would make `effect` detectable, by these components of variance; None where the items forbid it.

    Raises:
      ValueError: effect is not above 0.
    """
    if not effect > 0:
      raise ValueError(f"effect must be > 0; got {effect}")
    if not math.isfinite(self.stderr):
      return None
    normal = scipy.stats.norm.ppf(1 - level / 2) + scipy.stats.norm.ppf(power)
    left = (effect / normal) ** 2 - self.of_items
    return None if left <= 0 else max(2, math.ceil(self.of_seeds * self.seeds / left))


@explain_errors
def crossed_mean(values: Float[np.ndarray, "seeds items"]) -> CrossedMean:
  """The mean of scores that cross seeds with items, with its standard error for other seeds and other items.

      d[s, i] = mean + a[s] + b[i] + e[s, i],    var(mean) = va / S + vb / I + ve / (S I)

  The components of variance come from the analysis of variance, negative ones as 0, and the degrees of freedom are
  Satterthwaite's. To compare two models give the differences of their scores, item by item and seed by seed. From five
  seeds on a 95% interval covers what it says; with two it may cover 88%.

  Args:
    values: of each seed on each item, the items in the same order; one column where a seed has one score of its own
      (its items were drawn anew, say): then this is Student's t over seeds.

  Raises:
    ValueError: not a matrix of at least one cell, or a value is not finite.

  Example:
    >>> d = crossed_mean(np.array([[0.1, 0.3, 0.2], [0.2, 0.4, 0.2], [0.1, 0.5, 0.3]]))
    >>> round(d.mean, 3), round(d.stderr, 3), round(d.df, 1)
    (0.256, 0.08, 2.2)

  Source: Searle, Casella and McCulloch 1992, chapter 4; Satterthwaite 1946; crossed with seeds as in Sellam et al.
  2021, MultiBERTs (arXiv 2106.16163), whose bootstrap over both is too narrow for few seeds.
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 2 or not values.size:
    raise ValueError(f"values must be a matrix [seeds, items] of at least one cell; got shape {values.shape}")
  require_finite(values=values)
  seeds, items = values.shape
  mean = float(values.mean())
  if seeds == 1:
    return CrossedMean(mean, math.inf, 0.0, seeds, items, math.inf, 0.0)
  if items == 1:
    variance = float(values.var(ddof=1)) / seeds
    return CrossedMean(mean, math.sqrt(variance), seeds - 1, seeds, items, variance, 0.0)
  rows, columns = values.mean(1), values.mean(0)
  rest = values - rows[:, None] - columns + mean
  of_rows = items * float(rows.var(ddof=1))
  of_columns = seeds * float(columns.var(ddof=1))
  of_rest = float((rest**2).sum()) / ((seeds - 1) * (items - 1))
  cells = seeds * items
  # Mean squares that enter the variance of the mean, each with its sign and its degrees of freedom.
  if of_rows > of_rest and of_columns > of_rest:
    parts = [(of_rows, seeds - 1), (of_columns, items - 1), (-of_rest, (seeds - 1) * (items - 1))]
  elif of_rows > of_rest or of_columns > of_rest:
    parts = [max((of_rows, seeds - 1), (of_columns, items - 1))]
  else:
    parts = [(of_rest, (seeds - 1) * (items - 1))]
  variance = sum(square for square, _ in parts) / cells
  spread = sum((square / cells) ** 2 / df for square, df in parts)
  of_items = max(0.0, of_columns - of_rest) / cells
  df = variance**2 / spread if spread else float(seeds - 1)
  return CrossedMean(mean, math.sqrt(variance), df, seeds, items, max(0.0, variance - of_items), of_items)


@explain_errors
def influences(
    items: Num[np.ndarray, "items ..."], statistic: Callable[[np.ndarray], float]
) -> Float[np.ndarray, " items"]:
  """A statistic as a mean over items: the mean of these numbers is the statistic, their spread its own (jackknife).

      T + (n - 1) (mean_j T_j - T_i),    T_i the statistic without item i

  So a correlation, an area under a curve or a ratio is compared by `crossed_mean` as a mean is. Of a mean they are the
  items. A statistic that jumps, as a median or a threshold does, has no such numbers: `jackknife_ratio` tells it.

  Args:
    items: what the statistic reads, one row an item.
    statistic: of such rows.

  Raises:
    ValueError: fewer than three items, or the statistic is not finite on them or without one.

  Example:
    >>> np.round(influences(np.array([[1.0, 2.0], [2.0, 1.0], [3.0, 4.0], [4.0, 3.0]]), lambda x: x[:, 0].mean()), 6)
    array([1., 2., 3., 4.])

  Source: Tukey 1958, Miller 1974.
  """
  items = np.asarray(items)
  n = len(items)
  if n < 3:
    raise ValueError(f"items must be at least three; got {n}")
  whole = float(statistic(items))
  keep = ~np.eye(n, dtype=bool)
  without = np.array([float(statistic(items[row])) for row in keep])
  require_finite(statistic=np.append(without, whole))
  return whole + (n - 1) * (without.mean() - without)


FEWEST_TO_TELL = 20  # items from which on a tenth is enough for `jackknife_ratio`


@explain_errors
def jackknife_ratio(items: Num[np.ndarray, "items ..."], statistic: Callable[[np.ndarray], float]) -> float:
  """How far a statistic moves without a tenth of the items, as a multiple of what its `influences` say of that.

      sd(T_S) / sd(mean_S of the influences),    S a hundred random nine tenths of the items

  About 1 of a statistic that moves a little with each item. Of one that jumps leaving out single items says nothing of
  leaving out more, and the ratio is far from 1 on some items and near it on others: look at several samples. Infinite
  where no single item moves it, but a tenth or a half of them does.

  Args:
    items: what the statistic reads, 20 rows or more.
    statistic: of such rows.

  Raises:
    ValueError: fewer than 20 items, or the statistic is not finite on them or without one.

  Example:
    >>> x = np.random.default_rng(0).normal(size=101)
    >>> bool(0.9 < jackknife_ratio(x, np.std) < 1.1), bool(jackknife_ratio(x, lambda x: float(x.mean() > 0)) > 1.1)
    (True, True)

  Source: Shao and Wu 1989, by whom leaving out many is consistent for a quantile where leaving out one is not.
  """
  items = np.asarray(items)
  if len(items) < FEWEST_TO_TELL:
    raise ValueError(f"items must be at least {FEWEST_TO_TELL}; got {len(items)}")
  influence, rng, n = influences(items, statistic), np.random.default_rng(0), len(items)

  def of(rows: np.ndarray) -> float:
    try:
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(statistic(items[rows]))
    except (ArithmeticError, ValueError):
      return math.nan

  def moves(left_out: int) -> tuple[float, float]:
    kept = [rng.permutation(n)[left_out:] for _ in range(100)]
    found = [(of(rows), influence[rows].mean()) for rows in kept]
    found = [pair for pair in found if math.isfinite(pair[0])]  # of some of the items it may not exist
    return (0.0, 0.0) if not found else tuple(np.std(found, axis=0).tolist())

  tiny = 1e-9 * float(np.abs(influence).mean())
  moved, told = moves(n // 10)
  if told <= tiny:
    return math.inf if max(moved, moves(n // 2)[0]) > tiny else 1.0
  return moved / told


@explain_errors
def ratio(
    numerator: Float[np.ndarray, "seeds items"], denominator: Float[np.ndarray, "seeds items"]
) -> Float[np.ndarray, "seeds items"]:
  """The ratio of two means as a matrix whose mean it is, linear in both, for `crossed_mean`.

  For scores in shares of a gain: `ratio(tuned - start, best - start)`.

  Raises:
    ValueError: the shapes differ, or the mean of the denominator is 0.

  Example:
    >>> ratio(np.array([[1.0, 2.0]]), np.array([[2.0, 4.0]]))
    array([[0.5, 0.5]])

  Source: the delta method; Cochran 1977, chapter 6.
  """
  numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
  if numerator.shape != denominator.shape:
    raise ValueError(f"numerator and denominator must have one shape; got {numerator.shape} and {denominator.shape}")
  below = float(denominator.mean())
  if below == 0:
    raise ValueError("denominator must have a mean other than 0")
  share = float(numerator.mean()) / below
  return share + (numerator - share * denominator) / below
