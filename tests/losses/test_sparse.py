"""Sparse and spread embeddings: what the penalties count."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import losses
from jaxft.losses import Mean


def test_shares_add_up_to_the_penalty():
  w = np.maximum(np.random.default_rng(0).normal(size=(5, 7)), 0).astype(np.float32)
  mean = Mean.of(*losses.flops(w))
  assert mean.value == pytest.approx((w.mean(0) ** 2).sum(), rel=1e-5) and mean.weight == 5
  some = np.array([True, True, False, True, True])
  assert Mean.of(*losses.flops(w, where=some)).value == pytest.approx((w[some].mean(0) ** 2).sum(), rel=1e-5)
  few = (w != 0).sum(1) > 3
  assert 0 < few.sum() < 5
  left = np.where(few[:, None], w, 0)
  assert Mean.of(*losses.flops(w, threshold=3)).value == pytest.approx((left.mean(0) ** 2).sum(), rel=1e-5)


def test_spread_embeddings_cost_nothing():
  """Both signs of a basis: cosines have the mean -1/7 and the second moment 1/7, below 1/4."""
  basis = jnp.concatenate([jnp.eye(4), -jnp.eye(4)])
  cost = lambda **weights: float(Mean.of(*losses.global_orthogonal(basis, **weights)).value)
  assert cost(mean_weight=0.0) == 0 and cost() == pytest.approx(1 / 49, rel=1e-5)
  assert not losses.global_orthogonal(jnp.ones((1, 4)))[0].any()  # one row has no other


def test_words_of_a_text():
  logits = jnp.array([[[1.0, -1.0], [3.0, jnp.nan]]])
  np.testing.assert_allclose(losses.splade_weights(logits, jnp.array([[True, False]])), [[np.log(2), 0]], rtol=1e-6)


def test_reconstruction_of_what_does_not_vary():
  x = jnp.ones((3, 4))
  values, _ = losses.csr_reconstruction(x, x, x + 2, x, x, beta=5.0)  # the residual has no variance to divide by
  np.testing.assert_allclose(values, 0.5)
  with pytest.raises(ValueError, match="residual must be given with auxiliary; got None"):
    losses.csr_reconstruction(x, x, x, x)
