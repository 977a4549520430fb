"""Frozen weights in a narrow dtype: which they are, what they take, and that what is learnt stays what it was."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.decoding import stepwise_decoder
from jaxft.decoding.generate import _generate
from jaxft.leaves import materialize
from jaxft.models import decoder
from jaxft.recipes.methods import METHODS, make_transform
from jaxft.recipes.options import Adaptation, Compute, Finetune, Optimization
from jaxft.recipes.run import recipe_of
from jaxft.training import init_state, make_train_step, plan, training_cost
from jaxft.training.frozen import narrowed, unchanged, widened
from jaxft.training.step import cast_floating
from jaxft.transforms import ParamTransform

CONFIG = decoder.DecoderConfig(vocab_size=80, dim=64, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=32,
                               mlp_dim=128, max_length=64)  # as wide as the blocks that some methods cut
OPTIONS = {"train": {"select": ("norms",)}}
# What a method takes off a weight, or reorders, is none that was given; `quantize` holds its own in few bits.
CHANGED = {"full", "train", "freeze", "hft", "bitfit", "norm_tuning", "pissa", "olora", "mica", "qlora"}


def bytes_of(tree):
  return sum(x.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", [
    "lora", "dora", "mica", "pissa", "qlora", "hft",
    *(pytest.param(name, marks=pytest.mark.exhaustive) for name in METHODS
      if name not in ("lora", "dora", "mica", "pissa", "qlora", "hft"))])
def test_a_method_is_the_same_with_what_it_leaves_frozen_in_bfloat16(name):
  options = dataclasses.replace(Adaptation(name), **OPTIONS.get(name, {}))
  transform = make_transform(options)
  params = jax.tree.map(lambda x: x + 0.01, decoder.init(jax.random.key(0), CONFIG))
  if name == "bitfit":
    params["layers"]["attention"]["query"]["bias"] = jnp.ones((2, 64))
  frozen, trainable = transform.split(jax.random.key(1), params)
  trainable = jax.tree.map(lambda x: x + 0.01, trainable)
  held = narrowed(frozen, transform.split, params, jnp.bfloat16)
  flags = unchanged(transform.split, params)
  for one, x, same in zip(jax.tree.leaves(held), jax.tree.leaves(frozen), flags, strict=True):
    assert one.dtype == (jnp.bfloat16 if same else x.dtype)
    if not same:
      assert one is x
  assert bytes_of(held) == bytes_of(frozen) - sum(
      x.nbytes // 2 for x, same in zip(jax.tree.leaves(frozen), flags, strict=True) if same)
  if name not in CHANGED:  # all weights, but for what the method drew
    weights = sum(x.nbytes // 2 for x in jax.tree.leaves(params))
    assert bytes_of(frozen) - bytes_of(held) == weights
  near, exact = (materialize(transform.join(side, trainable)) for side in (held, frozen))
  for one, other in zip(jax.tree.leaves(near), jax.tree.leaves(exact), strict=True):
    np.testing.assert_allclose(np.asarray(one, np.float32), other, rtol=2e-2, atol=2e-2 * np.abs(other).max())
  again = widened(held, params)
  for one, x in zip(jax.tree.leaves(again), jax.tree.leaves(frozen), strict=True):
    assert one.dtype == x.dtype and np.array_equal(one, x)


def test_a_split_that_reads_values_is_left_alone():
  def split(key, params):
    del key
    return params if float(params["w"].sum()) > 0 else {"w": None}, {"w": None}

  transform = ParamTransform(split, lambda frozen, trainable: frozen)
  params = {"w": jnp.ones(2)}
  assert unchanged(split, params) == []
  assert narrowed(params, transform.split, params, jnp.bfloat16)["w"].dtype == jnp.float32


def test_a_run_in_bfloat16_holds_half_of_what_is_frozen_and_learns_the_same():
  run = Finetune(model="m", data="d", method=Adaptation("lora", rank=2), optimization=Optimization(learning_rate=1e-2))
  wide, narrow = (recipe_of(dataclasses.replace(run, compute=Compute(dtype=dtype)), CONFIG, 8, None)
                  for dtype in ("float32", "bfloat16"))
  params = decoder.init(jax.random.key(0), CONFIG)
  ids = jax.random.randint(jax.random.key(1), (4, 16), 1, 80)
  batch = {"ids": ids, "mask": jnp.ones_like(ids), "loss_mask": jnp.ones_like(ids)}
  plans, losses, sides = [], [], []
  for recipe in (wide, narrow):
    plans.append(plan(recipe, params, batch))
    state, frozen = init_state(jax.random.key(2), params, recipe)
    assert plans[-1].frozen_bytes == bytes_of(frozen) == training_cost(recipe, params).frozen_bytes
    step, seen = make_train_step(recipe), []
    for _ in range(4):
      state, metrics = step(state, frozen, batch)
      seen.append(float(metrics["loss"]))
    losses.append(seen)
    sides.append((frozen, state))
  whole = sum(x.nbytes for x in jax.tree.leaves(params))
  assert plans[0].frozen_bytes == whole and plans[1].frozen_bytes == whole // 2
  # By the compiler's account as well, and of nothing else.
  assert plans[0].compiled.arguments - plans[1].compiled.arguments == whole // 2
  assert plans[0].trained_bytes == plans[1].trained_bytes and plans[0].optimizer_bytes == plans[1].optimizer_bytes
  for _, state in sides:
    assert {x.dtype for x in jax.tree.leaves(state.trainable)} == {jnp.dtype(jnp.float32)}
  assert all(one is other for one, other in zip(jax.tree.leaves(sides[0][0]), jax.tree.leaves(params), strict=True))
  np.testing.assert_allclose(losses[1], losses[0], rtol=2e-2)
  assert losses[1][-1] < losses[1][0]
  # A run that tunes all has nothing to hold so.
  full = recipe_of(dataclasses.replace(run, method=Adaptation("full"), compute=Compute(dtype="bfloat16")), CONFIG, 8,
                   None)
  state, frozen = init_state(jax.random.key(2), params, full)
  assert not jax.tree.leaves(frozen)
  assert {x.dtype for x in jax.tree.leaves(state.trainable)} == {jnp.dtype(jnp.float32)}


def test_rollouts_hold_no_frozen_weight_twice():
  transform, config = make_transform(Adaptation("lora", rank=2)), dataclasses.replace(CONFIG, num_layers=8)
  params = decoder.init(jax.random.key(0), config)
  frozen, trainable = transform.split(jax.random.key(1), params)
  # What a policy samples by is cast for each step: what is narrow already is not copied for it.
  held = narrowed(frozen, transform.split, params, jnp.bfloat16)
  cast = {id(x) for x in jax.tree.leaves(cast_floating(transform.join(held, trainable), jnp.bfloat16))}
  assert all(id(x) in cast for x in jax.tree.leaves(held))
  # Nor does the loop of a stack: beside the weights there are one layer's, the cache and scores.
  model = stepwise_decoder(transform.join(frozen, trainable), config)
  ids, few = jnp.ones((2, 4), jnp.int32), {"max_new_tokens": 4, "samples": 1, "temperature": 1.0, "stop": (1,)}
  memory = _generate.lower(
      model, ids, ids > 0, jax.random.key(0), None, limits=(None,) * 3, **few).compile().memory_analysis()
  assert memory.argument_size_in_bytes >= bytes_of(frozen) > 4 * memory.temp_size_in_bytes > 0
