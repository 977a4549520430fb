"""The planned cost against the real arrays and the compiler."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxft.losses.reduction import Mean
from jaxft.models import decoder
from jaxft.training import DECODER_RULES, Recipe, bytes_per_device, init_state, make_mesh, plan, training_cost
from jaxft.transforms import chain, full, lora, quantize
from jaxft.tree.paths import array_paths
from tests.training import toy

CONFIG = decoder.DecoderConfig(
    vocab_size=64, dim=64, num_layers=6, num_heads=2, num_kv_heads=2, head_dim=32, mlp_dim=256, tie_embeddings=False)
MATRICES = 6 * (4 * 64 * 64 + 3 * 64 * 256) + 64 * 64
ROWS, LENGTH = 8, 32


def objective(params, batch, key):
  del key
  return Mean.of(*decoder.token_nll(params, CONFIG, batch["ids"])), {}


def shapes():
  return jax.eval_shape(lambda k: decoder.init(k, CONFIG), jax.random.key(0))


def plan_of(change, *, compile=True, **options):
  batch = {"ids": jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)}
  return plan(Recipe(objective, change, optax.adamw(1e-3), **options), shapes(), batch, compile=compile)


def test_bytes_are_those_of_the_real_state_on_a_mesh():
  mesh = make_mesh(data=1, fsdp=4, tensor=2)
  change = chain(lora("layers/**/kernel", rank=4), quantize("layers/**/kernel", format="int8"))
  got = plan_of(change, mesh=mesh, rules=DECODER_RULES, compile=False)
  params = decoder.init(jax.random.key(0), CONFIG)
  recipe = Recipe(objective, change, optax.adamw(1e-3), mesh=mesh, rules=DECODER_RULES)
  state, frozen = init_state(jax.random.key(0), params, recipe)
  on_first = lambda tree: sum(
      s.data.nbytes for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == mesh.devices.flat[0])
  assert got.trained_bytes == on_first(state.trainable) == got.gradient_bytes
  assert got.frozen_bytes == on_first(frozen)
  size = lambda **of: sum(x.nbytes for path, x in array_paths(frozen) if ("norm" in path) == of["vectors"])
  assert got.frozen_bytes == size(vectors=True) + size(vectors=False) // 8, "codes and scales are cut as all matrices"
  assert got.optimizer_bytes == on_first(state.opt_state)
  assert got.frozen == sum(x.size for x in jax.tree.leaves(params)), "what is quantized counts as what it stands for"
  assert got.trained == 6 * 4 * (4 * 128 + 3 * 320)
  assert got.params == got.frozen and got.share == got.trained / got.params == training_cost(recipe, params).share
  assert f"trained ({got.share:.2%} of the model's {got.params:,})" in str(got)
  assert got.batch_bytes == ROWS * LENGTH * 4 // 4 and got.devices == 8
  assert got.compiled is None


def test_operations_follow_the_cost_model_with_layers_multiplied_out():
  whole, low = plan_of(full()), plan_of(lora("layers/**/kernel", rank=1), compile=False)
  per_parameter = lambda p: p.flops.matmul / (MATRICES * ROWS * LENGTH)
  assert not whole.flops.uncounted
  # 6 and 4 for the matrices, and some for attention over 32 positions and for the head's second forward pass.
  assert 5.9 < per_parameter(whole) < 6.6
  assert 4.0 < per_parameter(low) < 4.7
  assert whole.compiled.flops < 0.5 * whole.flops.total, "the compiler no longer counts the body of a scan once"
  assert whole.compiled.arguments >= whole.state_bytes
  assert whole.compiled.peak >= whole.state_bytes
  assert "402,240 trained (100.00% of the model's 402,240)" in str(whole)


def test_accumulation_leaves_the_operations_as_they_are():
  one, four = plan_of(full(), compile=False), plan_of(full(), compile=False, accumulate=4)
  assert four.flops.matmul == pytest.approx(one.flops.matmul, rel=1e-3)


def test_bytes_of_keys_and_small_integers():
  tree = (jax.random.key(0), jax.ShapeDtypeStruct((3,), jnp.int4), jax.ShapeDtypeStruct((5,), jnp.bfloat16))
  assert bytes_per_device(tree) == 8 + 2 + 10
  assert bytes_per_device(toy.params()) == 4 * 2 * 2 * toy.DIM * toy.HIDDEN
