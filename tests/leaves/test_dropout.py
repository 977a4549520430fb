"""Dropout of low-rank leaves: where it acts, and whose key it takes."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.leaves import LowRank, Scaled, dot, lazy, seed_dropout
from jaxft.leaves.products import dot_transposed

KEY = jax.random.key(0)
M, N = 12, 10


def draw(i, *shape):
  return jax.random.normal(jax.random.fold_in(KEY, i), shape)


def test_dropout_acts_where_a_key_is_set_and_keeps_the_mean():
  leaf = LowRank(jnp.zeros((M, N)), draw(1, M, 3), draw(2, 3, N), dropout=0.25)
  x = draw(7, 4, M)
  np.testing.assert_allclose(dot(x, leaf), x @ leaf.materialize(), rtol=1e-4, atol=1e-5)
  draws = jax.vmap(lambda key: dot(x, seed_dropout({"w": leaf}, key)["w"]))(jax.random.split(KEY, 4000))
  assert float(jnp.std(draws, axis=0).min()) > 0
  np.testing.assert_allclose(draws.mean(0), x @ leaf.materialize(), atol=0.35)


def test_dropout_within_another_leaf_gets_a_key_of_its_own():
  low_rank = lambda i: LowRank(draw(0, 2, M, N), draw(i, 2, M, 3), draw(2, 2, 3, N), dropout=0.5)
  outer = LowRank(Scaled(low_rank(1), draw(6, 2, 1, N)), draw(3, 2, M, 3), draw(4, 2, 3, N), dropout=0.5)
  seeded = seed_dropout({"layers": {"w": outer}}, KEY)["layers"]["w"]
  assert seeded.key.shape == seeded.w.w.key.shape == (2,)  # one a layer
  assert not jnp.any(jax.random.key_data(seeded.key) == jax.random.key_data(seeded.w.w.key))
  plain = {"w": Scaled(draw(5, M, N), draw(6, M, 1))}
  assert seed_dropout(plain, KEY)["w"] is plain["w"]


def test_dropout_of_a_table_that_is_multiplied_by_acts_on_what_enters_its_factors():
  """As the head that a tied table is: on the input of b, and not on what meets the table itself."""
  leaf = LowRank(draw(0, N, M), draw(1, N, 3), draw(2, 3, M), scale=0.5, dropout=0.5, key=KEY)
  x = draw(7, 4, M)
  dropped = jnp.where(jax.random.bernoulli(KEY, 0.5, x.shape), 2 * x, 0)
  np.testing.assert_allclose(
      dot_transposed(x, leaf), x @ leaf.w.T + 0.5 * (dropped @ leaf.b.T) @ leaf.a.T, rtol=1e-4, atol=1e-5)


def test_dropout_of_experts_differs_between_them_in_any_function():
  """A seeded stack has a key for each layer, and none for each expert."""
  leaf = LowRank(jnp.zeros((2, 3, M, N)), jnp.ones((2, 3, M, 1)), jnp.ones((2, 3, 1, N)), dropout=0.5)
  params = seed_dropout({"layers": {"w": leaf}}, KEY)
  x, groups = jnp.ones((3, 4, M)), jnp.array([4, 0, 8])

  def apply(p, x):
    w = p["layers"]["w"]
    layers = jax.lax.scan(lambda h, w: (h, jnp.einsum("ebi,eio->ebo", x, w)), 0, w)[1]
    return layers, jax.lax.ragged_dot(x.reshape(12, M), w[0], groups)

  layers, grouped = lazy(apply)(params, x)
  masks = layers[..., 0].reshape(6, 4)
  assert len({tuple(mask.tolist()) for mask in masks}) == 6 and float(jnp.std(grouped[:, 0])) > 0
  assert set(jnp.unique(masks % 2).tolist()) == {0.0}  # what is kept is doubled
