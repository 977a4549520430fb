"""Sums and weights add up: parts of unequal size give the mean of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxft.losses import Mean, Terms


def test_parts_of_unequal_size_add_up_to_the_whole():
  values = jnp.asarray(np.random.default_rng(0).normal(size=11), jnp.float32)
  parts = Mean.of(values[:2]) + Mean.of(values[2:3]) + Mean.of(values[3:])
  np.testing.assert_allclose(parts.value, values.mean(), rtol=1e-5)
  mean_of_means = np.mean([values[:2].mean(), values[2:3].mean(), values[3:].mean()])
  assert abs(mean_of_means - parts.value) > 0.05
  np.testing.assert_allclose(sum([Mean.of(values[:4]), Mean.of(values[4:])]).value, values.mean(), rtol=1e-5)
  np.testing.assert_allclose((Mean.zero() + Mean.of(values)).value, values.mean(), rtol=1e-5)


def test_it_is_a_pair_and_no_tuple_concatenation():
  both = Mean.of(jnp.ones(2)) + Mean.of(jnp.ones(3))
  assert isinstance(both, Mean) and len(both) == 2
  with pytest.raises(TypeError):
    Mean.of(jnp.ones(2)) + (1.0, 2.0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(-10, 10, width=32), st.floats(0, 3, width=32)), min_size=1, max_size=8))
def test_weighted_mean_is_numpys(pairs):
  values, weights = np.array(pairs, np.float32).T
  got = Mean.of(jnp.asarray(values), where=jnp.asarray(weights))
  if weights.sum() > 1e-3:
    np.testing.assert_allclose(got.value, np.average(values, weights=weights), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_what_does_not_count_reaches_neither_value_nor_gradient(garbage):
  where = jnp.array([True, False, True])
  mean = lambda x: Mean.of(x, where=where).value
  value, gradient = jax.value_and_grad(mean)(jnp.array([1.0, garbage, 3.0]))
  assert value == 2.0
  np.testing.assert_array_equal(gradient, [0.5, 0.0, 0.5])


def test_nothing_counted_is_zero_with_zero_gradient():
  mean = lambda x: Mean.of(x, where=jnp.zeros(3, bool)).value
  value, gradient = jax.value_and_grad(mean)(jnp.array([1.0, 2.0, 3.0]))
  assert value == 0 and not gradient.any()


def test_sums_of_low_precision_values_are_float32():
  values = jnp.ones(4096, jnp.bfloat16)
  got = Mean.of(values)
  assert got.total == 4096 and got.total.dtype == jnp.float32  # a bfloat16 sum stops at 256


def test_row_mask_broadcasts_over_columns():
  values = jnp.arange(6.0).reshape(2, 3)
  got = Mean.of(values, where=jnp.array([[True], [False]]))
  assert got == Mean(3.0, 3.0)


def test_runs_through_scan_as_a_carry():
  values = jnp.arange(12.0).reshape(4, 3)
  total, _ = jax.lax.scan(lambda carry, row: (carry + Mean.of(row, where=row > 3), None), Mean.zero(), values)
  assert total.value == values[values > 3].mean()


def test_what_does_not_fit_is_refused_by_name():
  values = jnp.ones((4, 4))
  with pytest.raises(ValueError, match=r"where must broadcast against values, \[4, 4\], axis by axis; got \[4\]"):
    Mean.of(values, where=jnp.ones(4, bool))
  with pytest.raises(ValueError, match=r"where must broadcast .*; got \[4, 3\]"):
    Mean.of(values, where=jnp.ones((4, 3), bool))
  with pytest.raises(TypeError, match=r"values must be an array; got a tuple of 2: unpack a loss's pair"):
    Mean.of((values, values))


def test_terms_add_mean_by_mean():
  parts = [Terms.of((2.0, Mean.of(jnp.array(x))), (0.5, Mean.of(jnp.array(y)))) for x, y in (
      ([1.0], [8.0, 0.0, 1.0]), ([2.0, 6.0], [3.0]))]
  assert float(sum(parts).value) == 2 * 3 + 0.5 * 3
  with pytest.raises(TypeError):
    parts[0] + (1.0, 2.0)
  with pytest.raises(ValueError, match="as many on both sides; got 2 and 1"):
    parts[0] + Terms.of((1.0, Mean.zero()))
  with pytest.raises(ValueError, match="at least one"):
    Terms.of()
  with pytest.raises(TypeError, match="pairs of a scale and a Mean"):
    Terms.of(Mean.zero())
