"""Losses of tokens by their log-probabilities."""

import jax
import numpy as np
import pytest

from jaxft import losses

LOG_PROBS = np.log(np.array([[0.5, 0.1, 0.9, 0.2], [0.3, 0.3, 0.3, 0.3]], np.float32))


def test_dynamic_fine_tuning_has_the_gradient_of_probability():
  got, weights = losses.dynamic_fine_tuning(LOG_PROBS)
  np.testing.assert_allclose(got, -np.exp(LOG_PROBS) * LOG_PROBS, rtol=1e-6)
  slope = jax.grad(lambda x: losses.dynamic_fine_tuning(x)[0].sum())(LOG_PROBS)
  np.testing.assert_allclose(slope, -np.exp(LOG_PROBS), rtol=1e-6)
  where, dirty = np.arange(4) < np.array([[2], [0]]), np.where(np.arange(4) < np.array([[2], [0]]), LOG_PROBS, np.nan)
  masked, weights = losses.dynamic_fine_tuning(dirty, where=where)
  np.testing.assert_array_equal(masked, np.where(where, got, 0))
  np.testing.assert_array_equal(weights, where)
  slope = jax.grad(lambda x: losses.dynamic_fine_tuning(x, where=where)[0].sum())(dirty)
  assert np.isfinite(slope).all()


def test_a_penalty_lowers_the_tokens_of_risky_spans_alone():
  starts, ends = np.array([[0, 3], [2, 2]]), np.array([[2, 4], [2, 1]])  # the second row's hold no token
  risks = np.array([[2.0, 1.0], [5.0, 5.0]], np.float32)
  p = np.exp(LOG_PROBS)
  want = {"likelihood": 2 * np.sqrt(p[0, 0] * p[0, 1]) + p[0, 3],
          "unlikelihood": -2 * np.log((1 - p[0, 0]) * (1 - p[0, 1])) - np.log(1 - p[0, 3])}
  for kind, value in want.items():
    penalty = lambda x, c, kind=kind: losses.span_penalty(x, starts, ends, c, kind=kind)[0]
    np.testing.assert_allclose(penalty(LOG_PROBS, risks), [value, 0], rtol=1e-5)
    slopes = jax.grad(lambda x, c: penalty(x, c).sum(), argnums=(0, 1))(LOG_PROBS, risks)
    assert (slopes[0] > 0).tolist() == [[True, True, False, True], [False] * 4] and not slopes[1].any()
  certain = jax.value_and_grad(lambda x: losses.span_penalty(
      x, starts[:1], ends[:1], risks[:1], kind="unlikelihood")[0].sum())(np.zeros((1, 4), np.float32))
  assert all(np.isfinite(x).all() for x in certain)


def test_replaced_tokens():
  logits = np.array([[2.0, -1.0, 0.5]], np.float32)
  got, _ = losses.replaced_token_detection(logits, np.array([[7, 5, 5]]), np.array([[5, 5, 5]]))
  np.testing.assert_allclose(got, np.log1p(np.exp([[-2.0, -1.0, 0.5]])), rtol=1e-6)


def test_errors_name_the_argument():
  starts = np.zeros((2, 1), np.int32)
  with pytest.raises(ValueError, match="kind must be one of likelihood, unlikelihood; got 'odds'"):
    losses.span_penalty(LOG_PROBS, starts, starts + 1, np.ones((2, 1), np.float32), kind="odds")
