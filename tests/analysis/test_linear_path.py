"""The loss along a line, and the soup's loss against the ensemble's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.analysis.linear_path import barrier, linear_path, soup_ensemble_gap
from jaxft.tree import apply_task_vector

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (200, 6))
Y = jax.random.randint(jax.random.key(2), (200,), 0, 4)


def network(seed):
  keys = jax.random.split(jax.random.key(seed), 3)
  sizes = (6, 32, 32, 4)
  return [jax.random.normal(k, (m, n)) / m**0.5 for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)]


def logits(params, x, activation=jnp.tanh):
  for w in params[:-1]:
    x = activation(x @ w)
  return x @ params[-1]


def near(seed, size):
  step = [size * jax.random.normal(jax.random.fold_in(KEY, seed * 9 + i), w.shape) / w.shape[0] ** 0.5
          for i, w in enumerate(network(0))]
  return apply_task_vector(network(0), step)


def test_path_and_barrier():
  hill = lambda params: 1.0 - (params["x"] - 0.5) ** 2 + 2 * params["x"]
  losses = linear_path(hill, {"x": jnp.array(0.0)}, {"x": jnp.array(1.0)}, ts=(0, 0.25, 0.5, 1))
  np.testing.assert_allclose(losses, [0.75, 1.4375, 2.0, 2.75])
  np.testing.assert_allclose(barrier(losses, ts=(0, 0.25, 0.5, 1)), 0.25)
  assert barrier(np.array([1.0, 0.2, 2.0])) == 0.0
  assert linear_path(hill, {"x": jnp.array(0.0)}, {"x": jnp.array(1.0)}).shape == (11,)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("t,beta,size", [(0.5, 1.0, 0.2), (0.3, 2.0, 0.05)])  # off the middle third order comes in
def test_approximation_for_nearby_endpoints(seed, t, beta, size):
  gap = jax.jit(functools.partial(soup_ensemble_gap, logits, t=t, beta=beta))(
      near(2 * seed, size), near(2 * seed + 1, size), X, Y)
  assert abs(gap.true) > 1e-6
  assert abs(gap.approximation / gap.true - 1) < 0.15
  np.testing.assert_allclose(gap.approximation, gap.curvature + gap.variance, rtol=1e-6)
  assert gap.variance > 0


def test_true_gap_is_that_of_the_two_losses():
  a, b = near(0, 0.5), near(1, 0.5)
  loss = lambda z: -float(jnp.mean(jax.nn.log_softmax(2.0 * z)[jnp.arange(200), Y]))
  soup = loss(logits([0.7 * x + 0.3 * y for x, y in zip(a, b, strict=True)], X))
  ensemble = loss(0.7 * logits(a, X) + 0.3 * logits(b, X))
  np.testing.assert_allclose(soup_ensemble_gap(logits, a, b, X, Y, t=0.3, beta=2.0).true, soup - ensemble, atol=1e-6)


def test_linear_model_has_no_gap():
  linear = lambda params, x: x @ params
  a, b = (jax.random.normal(jax.random.key(i), (6, 4)) for i in (3, 4))
  gap = soup_ensemble_gap(linear, a, b, X, Y)
  np.testing.assert_allclose(gap.true, 0.0, atol=1e-6)
  np.testing.assert_allclose(gap.approximation, 0.0, atol=1e-5)


def test_differences_see_the_kinks_that_derivatives_miss():
  relu = functools.partial(logits, activation=jax.nn.relu)
  a, b = near(0, 0.4), near(1, 0.4)
  smooth, kinks = soup_ensemble_gap(relu, a, b, X, Y), soup_ensemble_gap(relu, a, b, X, Y, step=0.25)
  assert abs(kinks.approximation - kinks.true) < abs(smooth.approximation - smooth.true)
  # On a smooth network both are the same.
  c, d = (soup_ensemble_gap(logits, a, b, X, Y, step=step).curvature for step in (None, 0.02))
  np.testing.assert_allclose(c, d, rtol=0.05)


def test_ends_have_no_gap():
  for t in (0.0, 1.0):
    gap = soup_ensemble_gap(logits, near(0, 0.3), near(1, 0.3), X, Y, t=t)
    np.testing.assert_allclose([gap.true, gap.approximation], 0.0, atol=1e-6)


def test_errors():
  with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]; got 1.5"):
    soup_ensemble_gap(logits, near(0, 0.1), near(1, 0.1), X, Y, t=1.5)
  with pytest.raises(ValueError, match=r"step must lie in \(0, inf\); got 0"):
    soup_ensemble_gap(logits, near(0, 0.1), near(1, 0.1), X, Y, step=0)
  with pytest.raises(ValueError, match="at least 2 values at ts that rise from 0 to 1"):
    barrier(np.array([1.0]))
  with pytest.raises(ValueError, match="must have the same leaves"):
    linear_path(lambda p: 0.0, {"x": jnp.ones(2)}, {"x": jnp.ones(3)})
