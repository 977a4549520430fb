"""Paired comparisons: against scipy, in their edge cases, and in how often they cry wolf."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxft.evaluation.uncertainty import paired_bootstrap, paired_comparison, paired_test, stderr


def test_paired_test_is_scipys():
  rng = np.random.default_rng(0)
  a = rng.normal(size=10)
  b = a - 0.4 + 0.5 * rng.normal(size=10)
  got, expected = paired_test(a, b), scipy.stats.ttest_rel(a, b)
  assert got.p_value == pytest.approx(expected.pvalue)
  assert (got.low, got.high) == pytest.approx(tuple(expected.confidence_interval()))
  assert got.p_wilcoxon == pytest.approx(scipy.stats.wilcoxon(a, b).pvalue)
  assert got.mean_difference == pytest.approx((a - b).mean()) and got.n == 10 and got.wins == (a > b).sum()
  back = paired_test(b, a)
  assert (back.mean_difference, back.low, back.high) == pytest.approx((-got.mean_difference, -got.high, -got.low))


def test_edge_cases_have_answers():
  one = paired_test([0.9], [0.1])
  assert one.p_value == one.p_wilcoxon == 1 and (one.low, one.high) == (-math.inf, math.inf)
  equal = paired_test([0.5, 0.6], [0.5, 0.6])
  assert equal.p_value == equal.p_wilcoxon == 1 and equal.mean_difference == equal.low == equal.high == 0
  constant = paired_test([1.5, 2.5, 3.5], [1.0, 2.0, 3.0])
  assert constant.p_value == 0 and constant.low == constant.high == 0.5


@pytest.mark.parametrize("a, b", [([1.0], [1.0, 2.0]), ([], []), ([np.nan], [1.0])])
def test_bad_values_are_named(a, b):
  for compare in (paired_test, paired_comparison):
    with pytest.raises(ValueError, match="a and b must be"):
      compare(a, b)


def test_paired_comparison_counts_and_agrees_with_scipy():
  a, b = np.array([0.5, 0.7, 0.2, 0.4, 0.9]), np.array([0.4, 0.7, 0.5, 0.39, 0.1])
  got = paired_comparison(a, b)
  assert (got.wins, got.ties, got.losses) == (3, 1, 1)
  assert got.p_value == pytest.approx(scipy.stats.wilcoxon((a - b)[[0, 2, 3, 4]]).pvalue)
  back = paired_comparison(b, a)
  assert (back.wins, back.losses, back.p_value) == (got.losses, got.wins, pytest.approx(got.p_value))
  coarse = paired_comparison(a, b, tolerance=0.02)
  assert (coarse.wins, coarse.ties, coarse.losses) == (2, 2, 1)
  assert paired_comparison(a, a) == paired_comparison(b, b) and paired_comparison(a, a).p_value == 1
  assert paired_comparison(np.arange(6) + 0.5, np.arange(6)).p_value == pytest.approx(2 / 2**6)
  for tolerance in (-1, math.nan, math.inf):  # with NaN or infinity all would be ties
    with pytest.raises(ValueError, match=f"tolerance must be >= 0 and finite; got {tolerance}"):
      paired_comparison(a, b, tolerance=tolerance)


def test_stderr():
  assert stderr([1.0, 2.0, 3.0, 4.0]) == pytest.approx(scipy.stats.sem([1, 2, 3, 4]))
  assert stderr([1.0]) == 0


def test_bootstrap_interval_agrees_with_the_normal_one_and_is_reproducible():
  rng = np.random.default_rng(0)
  difference = rng.normal(0.3, 1, 400).astype("f")
  b = rng.normal(size=400).astype("f")
  a = b + difference
  got = paired_bootstrap(jnp.asarray(a), jnp.asarray(b), jax.random.key(0), draws=2000)
  half = 1.96 * stderr(difference)
  assert (got.low, got.high) == pytest.approx((difference.mean() - half, difference.mean() + half), abs=0.015)
  assert got.p_value < 0.01 and got.n == 400
  assert got == paired_bootstrap(jnp.asarray(a), jnp.asarray(b), jax.random.key(0), draws=2000)
  assert paired_bootstrap(jnp.asarray(b), jnp.asarray(b), jax.random.key(0)).p_value == 1


@pytest.mark.parametrize("offset, scale", [(1e8, 1.0), (0.0, 1e-60), (0.0, 1e60)])
def test_bootstrap_differences_are_those_of_float64(offset, scale):
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 50))
  plain = paired_bootstrap(a, b, jax.random.key(0), draws=200)
  got = paired_bootstrap(scale * a + offset, scale * b + offset, jax.random.key(0), draws=200)
  assert plain.mean_difference == pytest.approx((a - b).mean(), rel=1e-12)
  assert got.mean_difference / scale == pytest.approx(plain.mean_difference, rel=1e-6)
  assert (got.low / scale, got.high / scale, got.p_value) == pytest.approx((plain.low, plain.high, plain.p_value), 1e-5)
  with pytest.raises(ValueError, match=r"confidence must lie in \(0, 1\); got 1.5"):
    paired_bootstrap(a, b, jax.random.key(0), confidence=1.5)


def test_bootstrap_of_equal_models_rejects_about_as_often_as_it_says():
  rng = np.random.default_rng(0)
  p = [
      paired_bootstrap(*jnp.asarray(rng.normal(size=(2, 60)), jnp.float32), jax.random.key(i), draws=200).p_value
      for i in range(100)
  ]
  assert 0 < np.mean(np.array(p) < 0.1) < 0.2
