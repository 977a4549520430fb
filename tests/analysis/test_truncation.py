"""Dropping components: closed forms, and what each decomposition keeps of a context."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.analysis.truncation import scaled_svd, truncate_components
from jaxft.transforms.low_rank.corda import oriented_svd
from tests.draws import normal

KEY = jax.random.key(0)
W = normal(0, 12, 10)
SCALE = jax.device_put(np.exp(0.5 * np.asarray(normal(1, 12))))


def test_nothing_dropped_is_the_matrix_and_all_dropped_is_zero():
  parts = scaled_svd(W, SCALE)
  np.testing.assert_allclose(truncate_components(*parts, 0), W, atol=1e-4)
  np.testing.assert_array_equal(truncate_components(*parts, 10), jnp.zeros_like(W))


def test_a_scale_of_ones_is_the_plain_decomposition():
  values = jnp.linalg.svd(W, compute_uv=False)
  error = jnp.linalg.norm(W - truncate_components(*scaled_svd(W, jnp.ones(12)), 3))
  np.testing.assert_allclose(error, jnp.sqrt(jnp.sum(values[-3:] ** 2)), rtol=1e-5)


def test_the_scale_decides_which_inputs_are_kept():
  error = lambda scale: jnp.linalg.norm(SCALE[:, None] * (W - truncate_components(*scaled_svd(W, scale), 4)))
  assert error(SCALE) < error(jnp.ones(12))


def test_one_component_holds_a_context_of_one_direction():
  v = jax.random.normal(jax.random.fold_in(KEY, 2), (12,))
  kept = truncate_components(*oriented_svd(W, jnp.outer(v, v), damping=1e-4), 9)
  plain = truncate_components(*scaled_svd(W, jnp.ones(12)), 9)
  away = lambda w: float(jnp.linalg.norm(v @ w - v @ W) / jnp.linalg.norm(v @ W))
  assert away(kept) < 0.01 < 0.1 < away(plain)


def test_stacks():
  parts = jax.vmap(scaled_svd)(jnp.stack([W, 2 * W]), jnp.stack([SCALE, SCALE]))
  cut = truncate_components(*parts, 4)
  np.testing.assert_allclose(cut[1], 2 * truncate_components(*scaled_svd(W, SCALE), 4), atol=1e-4)


def test_errors():
  with pytest.raises(ValueError, match=r"drop must lie in \[0, 10\]; got 11"):
    truncate_components(*scaled_svd(W, SCALE), 11)
