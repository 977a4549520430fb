"""Cosine of each layer's input and output, and of two updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.analysis import delta_similarity, layer_cosines


def test_layers_that_scale_turn_or_do_nothing():
  x = jax.random.normal(jax.random.key(0), (2, 3, 4))
  turned = jnp.stack([-x[..., 1], x[..., 0], -x[..., 3], x[..., 2]], axis=-1)
  states = jnp.stack([x, x, 3 * x, -x, jnp.stack([-(-x)[..., 1], (-x)[..., 0], -(-x)[..., 3], (-x)[..., 2]], axis=-1)])
  np.testing.assert_allclose(layer_cosines(states), [1, 1, -1, 0], atol=1e-6)
  np.testing.assert_allclose(layer_cosines(jnp.stack([x, turned])), [0], atol=1e-6)


def test_padding_does_not_count():
  x = jax.random.normal(jax.random.key(0), (2, 1, 4, 8))
  mask = jnp.array([[1, 1, 0, 0]])
  np.testing.assert_allclose(layer_cosines(x, mask), layer_cosines(x[:, :, :2]), rtol=1e-5)


def test_similarity_of_updates():
  a = {"u": jnp.array([1.0, 0.0]), "v": jnp.array([0.0, 2.0]), "w": None}
  b = {"u": jnp.array([3.0, 0.0]), "v": jnp.array([2.0, 0.0]), "w": None}
  found = delta_similarity(a, b)
  assert set(found) == {"u", "v", ""}
  np.testing.assert_allclose(found["u"], (1, 1 / 3), rtol=1e-6)
  np.testing.assert_allclose(found["v"], (0, 1))
  np.testing.assert_allclose(found[""].cosine, 3 / (5 * 13) ** 0.5, rtol=1e-6)
  assert delta_similarity(a, jax.tree.map(jnp.zeros_like, a))["u"] == (0.0, float("inf"))
  with pytest.raises(ValueError, match="v must have one shape"):
    delta_similarity(a, b | {"v": jnp.ones(3)})
  with pytest.raises(ValueError, match="second lacks the leaf v"):
    delta_similarity(a, {"u": b["u"]})
