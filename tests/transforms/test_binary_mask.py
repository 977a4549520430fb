"""Learned binary masks, and gradient dropout by agreement."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.optimizers.agreement import agreement, agreement_dropout
from jaxft.transforms.entries.binary_mask import (
  binary_mask,
  harden,
  masked_fraction,
  pack_mask,
  straight_through_threshold,
  unpack_mask,
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
  kept = np.asarray(np.random.default_rng(0).random(shape) < 0.5)
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


def test_a_gradient_is_gated_as_the_source_does():
  rng = np.random.default_rng(0)
  g, r = rng.normal(size=(2, 300)).astype(np.float32)
  key, strength = jax.random.key(4), 0.3
  got = np.asarray(agreement_dropout(key, {"w": jnp.asarray(g)}, {"w": jnp.asarray(r)}, strength=strength)["w"])
  kept = np.isclose(got, g, rtol=1e-6)
  np.testing.assert_allclose(got[~kept], (1 - strength) * g[~kept], rtol=1e-5)
  assert kept[np.sign(g) == np.sign(r)].all(), "what agrees stays"
  against = np.sign(g) != np.sign(r)
  larger = np.abs(g) > 3 * np.abs(r)
  assert kept[against & larger].mean() > 0.8 and kept[against & (3 * np.abs(g) < np.abs(r))].mean() < 0.25


def test_each_leaf_and_step_draws_for_itself():
  g, r = jnp.ones(500), -jnp.ones(500)
  drop = lambda key: agreement_dropout(key, {"a": g, "b": g}, {"a": r, "b": r})
  first, again, other = drop(KEY), drop(KEY), drop(jax.random.key(1))
  np.testing.assert_array_equal(first["a"], again["a"])
  for x, y in ((first["a"], first["b"]), (first["a"], other["a"])):
    assert 0.3 < float(jnp.mean(x == y)) < 0.7
  alone = agreement_dropout(KEY, {"b": g}, {"b": r})
  np.testing.assert_array_equal(alone["b"], first["b"])


def test_two_gradients_of_one_forward_pass():
  transform = binary_mask("w")
  frozen, scores = transform.split(KEY, {"w": W})
  x = jax.random.normal(jax.random.key(1), (4, 5))
  task = lambda s: jnp.sum(jnp.sin(x @ transform.join(frozen, s)["w"]))
  keep = lambda s: jnp.sum(jnp.square(x @ transform.join(frozen, s)["w"]))
  _, pull = jax.vjp(lambda s: (task(s), keep(s)), scores)
  for cotangents, loss in (((1.0, 0.0), task), ((0.0, 1.0), keep)):
    np.testing.assert_allclose(pull(cotangents)[0]["w"], jax.grad(loss)(scores)["w"], rtol=1e-5, atol=1e-5)


def test_gradient_of_a_score_by_differences_of_the_masked_weight():
  transform = binary_mask("w")
  frozen, scores = transform.split(KEY, {"w": W})
  loss = lambda w: jnp.sum(jnp.sin(w))
  got = jax.grad(lambda s: loss(transform.join(frozen, s)["w"]))(scores)["w"]
  step = lambda i: jnp.zeros(W.size).at[i].set(1e-2).reshape(W.shape)
  for i in (0, 9, 34):
    slope = (loss(W + step(i)) - loss(W - step(i))) / 2e-2
    np.testing.assert_allclose(got.ravel()[i], slope * W.ravel()[i], rtol=2e-2, atol=1e-3)


def test_scores_are_float32_beside_weights_that_are_not():
  transform = binary_mask("w")
  params = {"w": W.astype(jnp.bfloat16), "bias": jnp.zeros(7)}
  frozen, scores = transform.split(KEY, params)
  assert scores["w"].dtype == jnp.float32 and scores["bias"] is None
  joined = transform.join(frozen, scores)
  assert joined["w"].dtype == jnp.bfloat16
  np.testing.assert_array_equal(joined["w"], params["w"])


def test_a_weight_goes_after_sixty_three_steps_of_adam_in_one_direction():
  transform = binary_mask("w")
  frozen, scores = transform.split(KEY, {"w": jnp.abs(W)})
  adam = optax.adam(8e-5)
  state = adam.init(scores)

  @jax.jit
  def step(scores, state):
    grads = jax.grad(lambda s: jnp.sum(transform.join(frozen, s)["w"]))(scores)
    updates, state = adam.update(grads, state)
    return optax.apply_updates(scores, updates), state

  deleted = []
  for _ in range(64):
    scores, state = step(scores, state)
    deleted.append(float(masked_fraction(scores)))
  assert deleted[:62] == [0.0] * 62 and deleted[-1] == 1.0


def test_errors():
  with pytest.raises(ValueError, match="threshold must lie below init"):
    binary_mask(init=0.1, threshold=0.1)
  with pytest.raises(ValueError, match="strength must lie in"):
    agreement_dropout(KEY, {}, {}, strength=1.5)
