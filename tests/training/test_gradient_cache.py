"""Chunked embedding: the gradient of the whole batch with the activations of a part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.losses import Mean, info_nce
from jaxft.training import Recipe, cached_value_and_grad, embed_cached, make_mesh, place_batch
from tests.training import toy

DIM, HIDDEN, ROWS = 16, 512, 64


def params():
  keys = jax.random.split(jax.random.key(0))
  return {"up": jax.random.normal(keys[0], (DIM, HIDDEN)) / 4, "down": jax.random.normal(keys[1], (HIDDEN, DIM)) / 20}


def batch(rows=ROWS):
  keys = jax.random.split(jax.random.key(1))
  return {"queries": jax.random.normal(keys[0], (rows, DIM)), "keys": jax.random.normal(keys[1], (rows, DIM))}


def embed(p, rows, key):
  del key
  return jax.tree.map(lambda x: jnp.tanh(jnp.tanh(x @ p["up"]) @ p["down"]), rows)


def losses(e):
  return info_nce(e["queries"] @ e["keys"].T, jnp.arange(len(e["queries"])), temperature=0.1)


def loss(embeddings, batch):
  del batch
  return Mean.of(*losses(embeddings)).value


def whole(p, b):
  return loss(embed(p, b, None), b)


@pytest.mark.parametrize("chunks, sharded", [
    pytest.param(1, False, marks=pytest.mark.exhaustive), (4, False), (16, True)])
def test_value_and_gradient_are_those_of_the_whole_batch(chunks, sharded):
  mesh = make_mesh(data=4) if sharded else None
  expected, expected_grads = jax.value_and_grad(whole)(params(), batch())
  value, grads = jax.jit(cached_value_and_grad(embed, loss, chunks=chunks, mesh=mesh))(
      params(), place_batch(batch(), mesh), jax.random.key(0))
  assert float(value) == pytest.approx(float(expected), rel=1e-6)
  for g, e in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
    np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-5)


def test_the_activations_of_one_chunk_are_held_at_a_time():
  def temporaries(f):
    return jax.jit(f).lower(params(), batch(2048), jax.random.key(0)).compile().memory_analysis().temp_size_in_bytes

  # A row leaves 2 x 512 floats of activations: the whole batch needs 16 MiB for them, a sixteenth of it 1 MiB.
  mean_loss = lambda e, b: jnp.mean(jnp.square(e["queries"] - e["keys"]))
  plain = temporaries(jax.value_and_grad(lambda p, b, k: mean_loss(embed(p, b, k), b)))
  cached = temporaries(cached_value_and_grad(embed, mean_loss, chunks=16))
  assert cached < 0.4 * plain


def test_one_chunk_is_embedded_once():
  def products(f):
    return str(jax.make_jaxpr(f)(params(), batch(), jax.random.key(0))).count("dot_general")

  plain = products(jax.value_and_grad(lambda p, b, k: loss(embed(p, b, k), b)))
  assert products(cached_value_and_grad(embed, loss, chunks=1)) == plain
  assert products(cached_value_and_grad(embed, loss, chunks=2)) > plain


def test_rows_keep_their_order_and_both_passes_draw_the_same():
  noisy = lambda p, rows, key: rows["id"] * p + 0 * jax.random.normal(key, rows["id"].shape)
  ids = jnp.arange(12.0)
  np.testing.assert_array_equal(embed_cached(noisy, 1.0, {"id": ids}, jax.random.key(0), chunks=3), ids)

  drop = lambda p, rows, key: p * rows["x"] * jax.random.bernoulli(key, 0.5, rows["x"].shape)
  total = lambda e, b: (jnp.sum(e), e)
  cached = cached_value_and_grad(drop, total, chunks=4, has_aux=True)
  (_, seen), grad = cached(2.0, {"x": jnp.ones(64)}, jax.random.key(3))
  assert 0 < float(grad) < 64 and float(grad) == float(jnp.sum(seen)) / 2
  assert len({tuple(np.asarray(seen[i::4])) for i in range(4)}) == 4  # each chunk draws its own


def test_chunks_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="chunks must divide the batch; got chunks=5 for 64 rows"):
    embed_cached(embed, params(), batch(), jax.random.key(0), chunks=5)


def test_it_stands_in_an_objective_of_the_step():
  from jaxft.training import init_state, make_train_step
  from jaxft.transforms import full

  def objective(chunks):
    def f(p, b, key):
      e = embed(p, b, key) if chunks is None else embed_cached(embed, p, b, key, chunks=chunks)
      return Mean.of(*losses(e)), {}

    return f

  after = []
  for chunks in (None, 4):
    recipe = Recipe(objective(chunks), full(), toy.optimizer())
    state, frozen = init_state(jax.random.key(0), params(), recipe)
    state, _ = make_train_step(recipe)(state, frozen, batch())
    after.append(state.trainable)
  for x, y in zip(*map(jax.tree.leaves, after), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
