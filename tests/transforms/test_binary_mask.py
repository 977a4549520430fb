"""Learned binary masks, and gradient dropout by agreement."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.training.agreement import agreement, agreement_dropout
from jaxft.transforms.binary_mask import (
    binary_mask, harden, masked_fraction, pack_mask, straight_through_threshold, unpack_mask,
)

KEY = jax.random.key(0)
W = jax.random.normal(KEY, (5, 7))


def test_starts_whole_and_masks_at_the_threshold():
  transform = binary_mask("w")
  frozen, scores = transform.split(KEY, {"w": W})
  np.testing.assert_array_equal(transform.join(frozen, scores)["w"], W)
  assert masked_fraction(scores) == 0
  half = {"w": scores["w"].at[0].set(5e-3).at[1].set(-1.0)}
  np.testing.assert_array_equal(transform.join(frozen, half)["w"], W.at[:2].set(0))
  np.testing.assert_allclose(masked_fraction(half), 2 / 5, rtol=1e-6)
  np.testing.assert_array_equal(jnp.where(harden(half)["w"], W, 0), transform.join(frozen, half)["w"])


def test_gradient_is_that_of_the_masked_weight_times_the_weight():
  transform = binary_mask("w")
  frozen, scores = transform.split(KEY, {"w": W})
  scores = {"w": scores["w"].at[2].set(0.0)}
  loss = lambda w: jnp.sum(jnp.sin(w))
  got = jax.grad(lambda s: loss(transform.join(frozen, s)["w"]))(scores)["w"]
  np.testing.assert_allclose(got, jax.grad(loss)(transform.join(frozen, scores)["w"]) * W, rtol=1e-5)
  assert got[2].all(), "a weight can come back"
  assert set(np.unique(straight_through_threshold(jnp.linspace(-3, 3, 999), 0.005)).tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("shape", [(5, 7), (8,), (3,), ()])
def test_packing(shape):
  kept = np.random.default_rng(0).random(shape) < 0.5
  np.testing.assert_array_equal(unpack_mask(pack_mask(kept), shape), kept)
  with pytest.raises(ValueError, match="packed must have"):
    unpack_mask(pack_mask(kept), (*shape, 99))


def test_agreement():
  g, r = jnp.array([2.0, 2.0, -1.0, 3.0, 0.0, -2.0]), jnp.array([5.0, -2.0, 3.0, 0.0, 1.0, -4.0])
  np.testing.assert_allclose(agreement(g, r), [1.0, 0.5, 0.25, 1.0, 0.5, 1.0], atol=1e-6)
  drops = jax.vmap(lambda key: agreement_dropout(key, {"w": g}, {"w": r}, strength=0.6)["w"])(
      jax.random.split(KEY, 4000))
  p = agreement(g, r)
  sigma = 0.6 * jnp.abs(g) * jnp.sqrt(p * (1 - p) / 4000)
  assert (jnp.abs(drops.mean(0) - (0.4 + 0.6 * p) * g) <= 3.5 * sigma + 1e-4).all()
  unchanged = agreement_dropout(KEY, {"w": g}, {"w": r}, strength=0.0)["w"]
  np.testing.assert_array_equal(unchanged, g)
  np.testing.assert_array_equal(agreement_dropout(KEY, {"w": g}, {"w": 3 * g})["w"], g)


def test_errors():
  with pytest.raises(ValueError, match="threshold must lie below init"):
    binary_mask(init=0.1, threshold=0.1)
  with pytest.raises(ValueError, match="strength must lie in"):
    agreement_dropout(KEY, {}, {}, strength=1.5)
