"""Losses without labels: closed forms, what counts as certain, gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.losses import Mean, entropy, pseudo_label

LOGITS = jnp.array([[2.0, 0.0, -1.0], [0.1, 0.0, 0.0], [-5.0, 4.0, 0.0]])


def test_entropy_closed_forms():
  np.testing.assert_allclose(entropy(jnp.zeros((2, 5))), math.log(5), rtol=1e-6)
  np.testing.assert_allclose(entropy(jnp.array([[0.0, -jnp.inf], [100.0, 0.0]])), 0.0, atol=1e-6)
  p = np.asarray(jax.nn.softmax(LOGITS), np.float64)
  np.testing.assert_allclose(entropy(LOGITS), -(p * np.log(p)).sum(-1), rtol=1e-5)
  assert jnp.isfinite(jax.grad(lambda x: entropy(x).sum())(jnp.array([[0.0, -jnp.inf]]))[0, 0])


def test_hard_labels_are_cross_entropy_where_certain():
  strong = LOGITS[::-1] * 0.5
  losses, weights = pseudo_label(LOGITS, strong, threshold=0.8)
  p = jax.nn.softmax(LOGITS)
  np.testing.assert_array_equal(weights, (p.max(-1) > 0.8).astype(np.float32))
  want = -jax.nn.log_softmax(strong)[jnp.arange(3), p.argmax(-1)]
  np.testing.assert_allclose(losses, want * weights, rtol=1e-6)
  assert weights.sum() == 2 and Mean.of(losses, weights).value > Mean.of(losses).value


def test_soft_targets():
  losses, weights = pseudo_label(LOGITS, LOGITS, threshold=0.0, power=0.5)
  root = np.sqrt(np.asarray(jax.nn.softmax(LOGITS), np.float64))
  q = root / root.sum(-1, keepdims=True)
  np.testing.assert_allclose(losses, -(q * np.log(root**2)).sum(-1), rtol=1e-5)
  np.testing.assert_array_equal(weights, 1.0)
  # Sharpened without end, the predicted class.
  sharp, _ = pseudo_label(LOGITS, LOGITS, threshold=0.0, power=1e4)
  np.testing.assert_allclose(sharp, pseudo_label(LOGITS, LOGITS, threshold=0.0)[0], rtol=1e-5)
  # Flattened targets are less certain: the same threshold admits fewer.
  assert pseudo_label(LOGITS, LOGITS, threshold=0.8, power=0.5)[1].sum() < 2


def test_no_gradient_through_the_target_and_none_where_nothing_is_certain():
  target = lambda weak: pseudo_label(weak, LOGITS, threshold=0.0, power=0.5)[0].sum()
  np.testing.assert_array_equal(jax.grad(target)(LOGITS), 0.0)
  nothing = lambda strong: Mean.of(*pseudo_label(LOGITS, strong, threshold=1.0)).value
  np.testing.assert_array_equal(nothing(LOGITS), 0.0)
  np.testing.assert_array_equal(jax.grad(nothing)(LOGITS), 0.0)


def test_power_must_be_positive():
  with pytest.raises(ValueError, match="power must be > 0"):
    pseudo_label(LOGITS, LOGITS, power=0.0)
