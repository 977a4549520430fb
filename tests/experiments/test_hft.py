"""The experiment's gates on gradients against `train` of the same choice, which splits before the gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.transforms import hft
from jaxft.choices import random_module_mask
from jaxft.losses import Mean
from jaxft.training import Recipe, init_state, make_train_step
from jaxft.transforms import train


@pytest.mark.parametrize("level", ["category", "layer", "model"])
def test_a_stage_is_a_stage_of_half_fine_tuning(level):
  config, key, rate = hft.SMOKE, jax.random.key(0), 1e-2
  params = hft.init(jax.random.key(1), config)
  rng = np.random.default_rng(0)
  images = hft.Images(jnp.array(rng.random((12, 8, 8)), jnp.float32), jnp.array(rng.integers(0, 2, 12), jnp.int32))
  rows, allowed = rng.integers(0, 12, (3, 4)), jnp.arange(10) < 2

  arm = {"category": hft.METHOD, "layer": "layer-level", "model": "model-level"}[level]
  choice = hft.choose(arm, 0, params)[0]
  gates = jax.tree.map(lambda x: x[0], hft.as_gates([choice], params))
  gated = hft.train(config, params, gates, images, allowed, rows, rate)

  transform = train(partial(random_module_mask, jax.random.fold_in(key, 0), level=level))
  optimizer = optax.adam(optax.linear_schedule(rate, 0.0, len(rows)))
  objective = lambda params, batch, key: (Mean.of(hft.loss(params, config, batch, allowed)), {})
  recipe = Recipe(objective, transform, optimizer)
  step = make_train_step(recipe)
  state, frozen = init_state(key, params, recipe)
  for row in rows:
    state, _ = step(state, frozen, jax.tree.map(lambda x: x[row], images))
  split = transform.join(frozen, state.trainable)

  changed = 0
  for a, b, start, gate in zip(*map(jax.tree.leaves, (gated, split, params, gates)), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)
    still = np.broadcast_to(gate == 0, start.shape)
    assert (np.asarray(a)[still] == np.asarray(start)[still]).all()  # bit for bit
    changed += int((np.asarray(a) != np.asarray(start)).sum())
  assert changed


def test_a_seed_draws_disjoint_images_and_every_digit_once():
  images = hft.Images(jnp.zeros((40, 8, 8)), jnp.arange(40) // 2 % 10)
  drawn = hft.draw(hft.SMOKE, images, 0)
  assert sorted(drawn.pairs.ravel()) == list(range(10))
  assert (drawn.base_rows % 2 == 0).all() and (drawn.rows % 2 == 1).all()
  for pair, rows in zip(drawn.pairs, drawn.rows, strict=True):
    assert np.isin(np.asarray(images.digits)[rows], pair).all()


def test_each_stage_of_the_method_draws_another_half():
  params = hft.init(jax.random.key(1), hft.SMOKE)
  trees = lambda arm: {str(jax.tree.map(np.asarray, choice)) for choice in hft.choose(arm, 0, params)}
  assert len(trees(hft.METHOD)) == hft.STAGES
  assert len(trees("category-level, the same half in all stages")) == 1
