"""Losses of labelled and scored pairs: closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import losses
from jaxft.losses import Mean


def pairs(cosines):
  """Pairs of unit vectors with these cosines."""
  cosines = np.asarray(cosines, np.float32)
  return np.tile([[1.0, 0.0]], (len(cosines), 1)).astype(np.float32), np.stack([cosines, np.sqrt(1 - cosines**2)], 1)


def test_cosent_counts_every_pair_of_pairs_that_is_out_of_order():
  cosines, scores = np.array([0.9, 0.1, -0.5, 0.3]), np.array([0.0, 1.0, 1.0, 0.5], np.float32)
  out = [np.exp((cosines[j] - cosines[i]) / 0.5) for i in range(4) for j in range(4) if scores[i] > scores[j]]
  values, weights = losses.cosent(*pairs(cosines), scores, temperature=0.5)
  np.testing.assert_allclose(values, np.log1p(sum(out)), rtol=1e-5)
  assert len(out) == 5 and weights.tolist() == [1] * 4
  values, _ = losses.cosent(*pairs(cosines), np.ones(4, np.float32))  # all of one score
  assert not values.any()


def test_the_angle_does_not_see_a_common_turn_and_pads_odd_dimensions():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 5, 3)).astype(np.float32)
  scores = rng.normal(size=5).astype(np.float32)
  loss = jax.jit(losses.angle)
  wide = lambda x: np.pad(x, ((0, 0), (0, 1)))
  np.testing.assert_allclose(loss(a, b, scores)[0], loss(wide(a), wide(b), scores)[0], rtol=1e-6)
  z = lambda x: wide(x)[:, :2] + 1j * wide(x)[:, 2:]
  turned = [np.concatenate([(z(x) * np.exp(0.7j)).real, (z(x) * np.exp(0.7j)).imag], 1).astype(np.float32)
            for x in (a, b)]
  np.testing.assert_allclose(loss(*turned, scores)[0], loss(a, b, scores)[0], rtol=1e-4)


def test_online_pairs_are_the_hard_ones():
  a, b = pairs([0.9, 0.2, 0.8, -0.4])  # distances 0.1, 0.8, 0.2, 1.4
  labels = np.array([True, True, False, False])
  values, weights = losses.online_contrastive_pairs(a, b, labels)
  np.testing.assert_allclose(values, [0, 0.64, 0.09, 0], atol=1e-6)
  assert weights.tolist() == [1] * 4
  values, _ = losses.online_contrastive_pairs(a, b, np.ones(4, bool))  # the mean distance is 0.625
  np.testing.assert_allclose(values, [0, 0.64, 0, 1.96], rtol=1e-5, atol=1e-6)


def test_closed_forms():
  a, b = pairs([0.5, 0.5])
  labels = np.array([True, False])
  np.testing.assert_allclose(losses.contrastive_pairs(a, b, labels, margin=1.0)[0], [0.125, 0.125], rtol=1e-5)
  np.testing.assert_allclose(losses.contrastive_tension(a, b, labels)[0], np.log1p(np.exp([-0.5, 0.5])), rtol=1e-5)
  assert losses.pair_features(a, b, product=True).shape == (2, 8)
  mean = Mean.of(*losses.cosine_regression(a, b, jnp.array([0.0, jnp.nan]), where=labels))
  assert mean.value == pytest.approx(0.25) and mean.weight == 1
  for loss in (losses.cosent, losses.angle):
    with pytest.raises(ValueError, match="temperature must lie in"):
      loss(a, b, jnp.zeros(2), temperature=0.0)
