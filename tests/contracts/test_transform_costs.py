"""One training step of every transform costs what it declares, by the compiler's own count.

`test_transforms.py` counts the products of every case in its jaxpr; here a few of two layers are compiled in the quick
tier, as the counts of XLA's versions differ, and all of eight in the exhaustive one.
"""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxft.leaves import lazy, materialize
from jaxft.transforms import full, lora, train
from jaxft.tree import map_with_path, unstack_layers
from tests.contracts.costs import BIG, TOKENS, compiled_flops, matmul_flops, size, step_cost
from tests.contracts.foreign_models import FOREIGN
from tests.contracts.transform_cases import BY_NAME, CASES, KEY
from tests.contracts.transforms import forward, stack_params

every_model = pytest.mark.parametrize("model", FOREIGN, ids=lambda model: model.__name__)
every_count = pytest.mark.parametrize("count", [
    pytest.param(matmul_flops, id="jaxpr"),
    pytest.param(compiled_flops, id="compiled", marks=pytest.mark.exhaustive),
])


def unrolled(layers=BIG["layers"]):
  return jax.eval_shape(lambda key: unstack_layers(stack_params(key, **{**BIG, "layers": layers})), KEY)


def check_declared(case, cost):
  assert cost <= case.flops, f"{case.name} declares {case.flops} FLOPs per parameter and token; it costs {cost:.3f}"
  assert cost > case.flops - 0.35 - case.counted_apart, f"the case declares more than it needs, which is {cost:.3f}"


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", [case for case in CASES if not case.layout], ids=lambda case: case.name)
def test_declared_flops(case):
  check_declared(case, step_cost(case.transform, unrolled(), forward, compiled_flops))


@pytest.mark.interpreter
@pytest.mark.parametrize("name", ["train", "lora_dropout", "dora", "rand_lora", "submatrix_both"])
def test_declared_flops_of_two_layers(name):
  cost = step_cost(BY_NAME[name].transform, unrolled(2), forward, compiled_flops, layers=2)
  # The first block hands on no gradient by its first matrix: a half of one product, of two layers and not of eight.
  check_declared(BY_NAME[name], cost + 1 / 2 - 1 / 8)


@every_count
@every_model
def test_lora_on_foreign_models_costs_what_it_does_in_the_library(model, count):
  transform = lora("**/{kernel,weight}", rank=8)
  params, apply = model(**BIG, scan=False)
  assert step_cost(transform, params, lazy(apply), count) <= 4.3
  plain = step_cost(transform, params, lambda p, x: apply(materialize(p), x), count)
  assert plain > 5.8


@every_model
def test_lora_on_foreign_scanned_and_rematerialized_models_skips_the_weight_gradients(model):
  params, apply = model(**BIG, scan=True)
  whole = step_cost(full(), params, apply, matmul_flops)
  adapted = step_cost(lora("**/{kernel,weight}", rank=8), params, lazy(apply), matmul_flops)
  assert 6.9 < whole < 7.1  # forward, two gradients, and the first product of each block once more
  assert adapted <= whole - 2 + 0.35  # one gradient, and the factors


@every_count
def test_freezing_by_an_optimizer_mask_saves_nothing_once_the_norm_is_logged(count):
  """What `split` is there to avoid: the mask freezes, but the norm reads, and so the step forms, every gradient."""
  params = unrolled()
  labels = map_with_path(lambda path, x: "train" if "/up/" in path else "freeze", params)
  masked = optax.chain(optax.clip_by_global_norm(1.0), optax.partition(
      {"train": optax.adam(1e-2), "freeze": optax.set_to_zero()}, labels))

  def step(params, state, x, y):
    value, grads = jax.value_and_grad(lambda p: jnp.mean(jnp.square(forward(p, x) - y)))(params)
    updates, state = masked.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value, optax.tree.norm(grads)

  tokens = jax.ShapeDtypeStruct((TOKENS, BIG["dim"]), jnp.float32)
  cost = count(step, params, jax.eval_shape(masked.init, params), tokens, tokens) / (size(BIG["layers"]) * TOKENS)
  assert cost > 5.8
  assert step_cost(train("**/up/*"), params, forward, count) <= 4.95


@every_count
def test_forming_the_update_inside_the_loss_costs_a_full_step(count):
  plain = lambda params, x: forward(materialize(params), x)
  assert step_cost(lora(rank=8), unrolled(), plain, count) > 5.8
