"""Scaling singular components: limits, and that all others stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.merging.spectral import reduce_intruders, scale_singular_components, truncated_factors
from tests.analysis.test_spectra import W, count, planted

KEY = jax.random.key(0)


def test_only_the_chosen_components_are_scaled():
  w = jax.random.normal(KEY, (2, 12, 8))
  chosen = jnp.array([[False, True, False], [False, False, False]])
  edited = scale_singular_components(w, chosen, 0.25)
  before, after = (jnp.linalg.svd(x, compute_uv=False) for x in (w, edited))
  np.testing.assert_allclose(after[0], np.sort(before[0].at[1].multiply(0.25))[::-1], rtol=1e-4)
  np.testing.assert_array_equal(edited[1], w[1])


def test_reducing_a_planted_intruder():
  base, tuned = {"kernel": W}, {"kernel": planted(3.0)}
  np.testing.assert_array_equal(reduce_intruders(base, tuned, factor=1.0, select="kernel")["kernel"], tuned["kernel"])
  reduced = reduce_intruders(base, tuned, factor=0.0, select="kernel")["kernel"]
  assert count(planted(3.0)) == 1 and count(reduced) == 0
  assert jnp.linalg.norm(reduced - W) < 0.3 * jnp.linalg.norm(planted(3.0) - W)


def test_factors_of_an_update():
  delta = jax.random.normal(KEY, (9, 3)) @ jax.random.normal(jax.random.key(1), (3, 7))
  a, b = truncated_factors(delta, 3)
  np.testing.assert_allclose(a @ b, delta, atol=1e-4)
  np.testing.assert_allclose(a.T @ a, b @ b.T, atol=1e-3)
  with pytest.raises(ValueError, match="rank must lie in 1..7"):
    truncated_factors(delta, 8)
