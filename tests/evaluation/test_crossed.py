"""Means over seeds and items: agreement with scipy where one of the two is fixed, coverage where both are drawn."""

import math

import numpy as np
import pytest
import scipy.stats

from jaxft.evaluation import benjamini_hochberg, crossed_mean, holm, influences, jackknife_ratio, ratio

RNG = np.random.default_rng(0)


def test_one_column_is_the_t_test_over_seeds():
  x = RNG.normal(0.3, 1, 12)
  mean = crossed_mean(x[:, None])
  want = scipy.stats.ttest_1samp(x, 0.0)
  np.testing.assert_allclose(2 * min(mean.p_above(0), 1 - mean.p_above(0)), want.pvalue, rtol=1e-12)
  np.testing.assert_allclose(mean.interval(), want.confidence_interval(), rtol=1e-12)


def test_seeds_that_agree_leave_the_t_test_over_items():
  x = np.tile(RNG.normal(0.1, 1, 40), (6, 1)) + 1e-9 * RNG.normal(size=(6, 40))
  want = scipy.stats.ttest_1samp(x[0], 0).confidence_interval()
  np.testing.assert_allclose(crossed_mean(x).interval(), want, rtol=1e-6)


@pytest.mark.parametrize("seeds, items, of_seeds, of_items, of_cells", [
    (10, 200, 1.0, 10.0, 10.0), (5, 50, 1.0, 3.0, 3.0), (10, 100, 0.0, 1.0, 1.0), (10, 100, 1.0, 0.0, 5.0),
    (8, 30, 0.3, 1.0, 3.0), (5, 300, 0.1, 1.0, 1.0)])
def test_intervals_cover_95_percent_of_crossed_data(seeds, items, of_seeds, of_items, of_cells):
  rng = np.random.default_rng(1)
  draws = 1500

  def covers() -> bool:
    x = of_seeds * rng.normal(size=(seeds, 1)) + of_items * rng.normal(size=items) + of_cells * rng.normal(
        size=(seeds, items))
    low, high = crossed_mean(x).interval()
    return low <= 0 <= high

  # Two and a half standard errors of 1,500 draws beyond 93 to 97%.
  assert 0.93 - 0.014 < np.mean([covers() for _ in range(draws)]) < 0.97 + 0.014


def test_components_of_variance_and_seeds_needed():
  rng = np.random.default_rng(2)
  x = rng.normal(size=(400, 1)) + 2 * rng.normal(size=400) + 3 * rng.normal(size=(400, 400))
  mean = crossed_mean(x)
  np.testing.assert_allclose(mean.of_seeds * 400, 1 + 9 / 400, rtol=0.2)
  np.testing.assert_allclose(mean.of_items * 400, 4, rtol=0.2)
  assert mean.seeds_needed(0.05) is None, "with items whose own error is above it, no number of seeds is enough"
  few = crossed_mean(rng.normal(size=(10, 1)))
  needed = few.seeds_needed(0.1)
  assert needed is not None and math.isclose(needed, few.of_seeds * 10 * (2.8016 / 0.1) ** 2, rel_tol=0.01)


def test_one_seed_is_no_evidence():
  mean = crossed_mean(np.ones((1, 5)))
  assert mean.interval() == (-math.inf, math.inf) and mean.p_above(0) == 0.5 and mean.detectable() == math.inf
  assert mean.seeds_needed(0.1) is None


def test_equal_cells_are_certain():
  mean = crossed_mean(np.full((4, 3), 0.25))
  assert mean.interval() == (0.25, 0.25) and mean.p_above(0) == 0 and mean.p_above(0.25) == 0.5 and mean.p_above(1) == 1


def test_influences_give_a_correlation_its_own_spread():
  rng = np.random.default_rng(3)
  statistic = lambda rows: float(np.corrcoef(rows.T)[0, 1])
  draw = lambda: rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 150)
  rows = draw()
  found = influences(rows, statistic)
  np.testing.assert_allclose(found.mean(), statistic(rows), rtol=1e-12)
  among_samples = np.std([statistic(draw()) for _ in range(600)])
  np.testing.assert_allclose(found.std(ddof=1) / 150**0.5, among_samples, rtol=0.15)


@pytest.mark.parametrize("statistic", [
    lambda rows: float(np.corrcoef(rows.T)[0, 1]), lambda rows: rows[:, 1].var() / rows[:, 0].var(),
    lambda rows: float((rows[rows[:, 0] > 0, 1][:, None] > rows[rows[:, 0] <= 0, 1]).mean())],
    ids=["correlation", "ratio", "area under the curve"])
@pytest.mark.parametrize("items", [20, 60, 300])
def test_the_jackknife_is_right_of_what_moves_a_little_with_each_item(statistic, items):
  rng = np.random.default_rng(4)
  for _ in range(10):
    assert 0.8 < jackknife_ratio(rng.normal(size=(items, 2)) @ [[1, 0.6], [0, 0.8]], statistic) < 1.25


def test_the_jackknife_is_wrong_of_a_median_and_a_threshold_and_that_is_told():
  rng = np.random.default_rng(5)
  for statistic in (np.median, lambda x: float(x.mean() > 0)):
    found = [jackknife_ratio(rng.normal(size=100), statistic) for _ in range(40)]
    assert sum(not 0.5 <= r <= 2 for r in found) >= 8
  assert jackknife_ratio(np.arange(30.0), lambda x: 0.0) == 1.0  # nothing moves it
  with pytest.raises(ValueError, match="items must be at least 20; got 3"):
    jackknife_ratio(np.arange(3.0), np.mean)


def test_both_p_values_are_exact_where_they_are_small():
  values = np.random.default_rng(6).normal(1, 1, (12, 50))
  mean, mirrored = crossed_mean(values), crossed_mean(-values)
  assert 0 < mean.p_above(0) < 1e-18
  np.testing.assert_allclose(mirrored.p_below(0), mean.p_above(0), rtol=1e-9)


def test_ratio_is_linear_in_both_and_has_the_ratio_as_mean():
  a, b = RNG.normal(2, 1, (4, 50)), RNG.normal(5, 1, (4, 50))
  np.testing.assert_allclose(ratio(a, b).mean(), a.mean() / b.mean(), rtol=1e-12)
  # The delta method: var(a/b) = var(a - (a/b) b) / b^2.
  np.testing.assert_allclose(ratio(a, b).std(), (a - a.mean() / b.mean() * b).std() / b.mean(), rtol=1e-12)


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03], [0.5], [], [0.2, 0.2, 0.001, 1.0], list(RNG.random(20))])
def test_adjusted_p_values_are_those_of_statsmodels(p):
  multitest = pytest.importorskip("statsmodels.stats.multitest")
  for ours, method in ((holm, "holm"), (benjamini_hochberg, "fdr_bh")):
    np.testing.assert_allclose(ours(p), multitest.multipletests(p, method=method)[1] if p else [], rtol=1e-12)


@pytest.mark.parametrize("call, message", [
    (lambda: crossed_mean(np.zeros((0, 3))), "values must be a matrix"),
    (lambda: crossed_mean(np.array([[1.0, np.nan]])), "values must be finite"),
    (lambda: crossed_mean(np.ones((2, 2))).seeds_needed(0.0), "effect must be > 0"),
    (lambda: influences(np.ones((2, 2)), np.mean), "items must be at least three"),
    (lambda: ratio(np.ones((2, 2)), np.zeros((2, 2))), "denominator must have a mean"),
    (lambda: ratio(np.ones((2, 2)), np.ones((2, 3))), "one shape"),
    (lambda: holm([0.1, 1.2]), "p_values must be"),
    (lambda: benjamini_hochberg([float("nan")]), "p_values must be"),
])
def test_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call()
