"""What a training step of the library's decoder costs, in FLOPs per parameter and token: full tuning 6, and the rest.

Counted from the jaxpr of the step that users run: norms logged, gradients clipped, AdamW with weight decay. N is all
parameters that a token is multiplied by, the head included and the embedding, which is looked up, not. Attention's own
products, which grow with the length and not with N, are in the count: at 8 tokens they are 0.02 of it at most.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxft.analysis.flops import count_jaxpr
from jaxft.choices import cut_at_changes, random_module_mask, s2ft_units
from jaxft.losses.reduction import Mean
from jaxft.models import decoder
from jaxft.training import Recipe, abstract_state, make_train_step, training_cost
from jaxft.transforms import (
  ParamTransform,
  adalora,
  add_biases,
  bitfit,
  chain,
  delora,
  dora,
  freeze_below,
  full,
  loftq,
  lora,
  mica,
  norm_tuning,
  olora,
  pissa,
  quantize,
  submatrix,
  train,
  vb_lora,
  vera,
)
from jaxft.tree import count, cut_layers, unstack_layers
from jaxft.tree.coupled import MLP_CHANNELS, key_heads

KEY = jax.random.key(0)
LAYERS, DIM, MLP, VOCAB, HEAD_DIM, RANK = 4, 512, 1536, 64, 64, 8
CONFIG = decoder.DecoderConfig(
    vocab_size=VOCAB, dim=DIM, num_layers=LAYERS, num_heads=DIM // HEAD_DIM, num_kv_heads=DIM // HEAD_DIM,
    head_dim=HEAD_DIM, mlp_dim=MLP, tie_embeddings=False)
IDS = jax.ShapeDtypeStruct((128, 8), jnp.int32)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.1))
PARAMS = jax.eval_shape(lambda: decoder.init(KEY, CONFIG))
MATRICES = "layers/**/kernel"
NORMS = (2 * LAYERS + 1) * DIM
UNITS = [MLP_CHANNELS, key_heads(HEAD_DIM)]
HEAD = EMBEDDING = VOCAB * DIM
LAYER = 4 * DIM * DIM + 3 * DIM * MLP
N = LAYERS * LAYER + HEAD + NORMS
OUTPUTS = LAYERS * (4 * DIM + 2 * MLP + DIM)
INPUTS = LAYERS * (4 * DIM + 2 * DIM + MLP)
FACTORS = RANK * (INPUTS + OUTPUTS)


class Method(NamedTuple):
  """A transform, the most that its step may cost, how many numbers train, and what its params need first.

  `cut` is for layers that are stacked: a choice between layers saves the work of those that it leaves out only where
  each of them has a scan of its own.
  """

  transform: ParamTransform
  bound: float
  trained: int
  cut: Callable[[Any], Any] = lambda params: params
  prepare: Callable[[Any], Any] = lambda params: params


def cut_for_half(params):
  return cut_at_changes(params, random_module_mask(KEY, params))


def low(init):
  return lora(MATRICES, rank=RANK, init=init)


METHODS = {
    "lora": Method(lora(MATRICES, rank=RANK), 4.3, FACTORS),
    "rslora": Method(lora(MATRICES, rank=RANK, rank_stabilized=True), 4.3, FACTORS),
    "qlora": Method(chain(lora(MATRICES, rank=RANK), quantize(MATRICES, format="nf4", block=16)), 4.3, FACTORS),
    "pissa": Method(low(pissa), 4.3, FACTORS),
    "olora": Method(low(olora), 4.3, FACTORS),
    "loftq": Method(low(loftq(block=16)), 4.3, FACTORS),
    "mica": Method(lora(MATRICES, rank=RANK, init=mica, train="a"), 4.3, RANK * INPUTS),
    "lora_fa": Method(lora(MATRICES, rank=RANK, train="b"), 4.3, RANK * OUTPUTS),
    "dora": Method(dora(MATRICES, rank=RANK), 4.3, FACTORS + OUTPUTS),
    "adalora": Method(adalora(MATRICES, rank=RANK), 4.3, FACTORS + 7 * LAYERS * RANK),
    "delora": Method(delora(MATRICES, rank=RANK), 4.3, FACTORS + 7 * LAYERS),
    "vera": Method(vera(MATRICES, rank=RANK), 4.3, OUTPUTS + 7 * LAYERS * RANK),
    "vb_lora": Method(
        vb_lora(MATRICES, rank=4, vectors=12, length=16), 4.3, 12 * 16 + 12 * 4 * (INPUTS + OUTPUTS) // 16),
    "half": Method(
        train(partial(random_module_mask, KEY)), 5.05, LAYERS * LAYER // 2 + HEAD + EMBEDDING + LAYERS * DIM + DIM,
        cut=cut_for_half),
    "bottom_half_frozen": Method(freeze_below(LAYERS // 2), 4.1, LAYERS // 2 * (LAYER + 2 * DIM) + DIM + HEAD,
                                 cut=lambda params: cut_layers(params, at=[LAYERS // 2])),
    "bitfit": Method(bitfit(), 4.1, OUTPUTS, prepare=add_biases),
    "norm_tuning": Method(norm_tuning(), 4.1, NORMS),
    "head_only": Method(train("head/kernel"), 2.1, HEAD),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
both_layouts = pytest.mark.parametrize("layout", ["stacked", pytest.param("unrolled", marks=pytest.mark.exhaustive)])


def arranged(method, layout):
  """The params of a method, as shapes, with their layers under scans or one by one."""
  arrange = unstack_layers if layout == "unrolled" else method.cut
  return jax.eval_shape(lambda params: arrange(method.prepare(params)), PARAMS)


def objective(params, ids, key):
  del key
  return Mean.of(*decoder.token_nll(params, CONFIG, ids)), {}


def step_cost(transform, params, optimizer=OPTIMIZER):
  """FLOPs of one training step per parameter and token, of matrix products."""
  recipe = Recipe(objective, transform, optimizer)
  state, frozen = abstract_state(params, recipe)
  flops = count_jaxpr(make_train_step(recipe).trace(state, frozen, IDS).jaxpr)
  assert not flops.uncounted
  return flops.matmul / (N * IDS.size)


def test_the_sizes_are_those_of_the_model():
  assert count(PARAMS) == N + EMBEDDING


@both_layouts
def test_full_tuning_costs_six(layout):
  cost = step_cost(full(), arranged(METHODS["lora"], layout))
  assert cost == pytest.approx(6, rel=0.02)
  # Besides 6 for each layer: the products of a head that trains four times, at all positions but the last, and those of
  # attention eight times, twice of them to form again what was not kept.
  time = IDS.shape[1]
  head, attention = 8 * HEAD * (time - 1) / time, 16 * LAYERS * time * DIM
  assert cost == pytest.approx((6 * LAYERS * LAYER + head + attention) / N, rel=1e-6)


@both_layouts
@every_method
def test_a_step_costs_at_most(method, layout):
  assert step_cost(method.transform, arranged(method, layout)) <= method.bound


@both_layouts
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("fractions", [
    {"heads": 0.052, "channels": 0.02}, {"heads": 0.2, "channels": 0.2},
    {"heads": 0.5, "channels": 0.25, "value_heads": 0.25, "up_channels": 0.5}], ids=["source", "rows", "and_columns"])
def test_s2ft_costs_two_for_what_trains(fractions, scope, layout):
  transform = submatrix(partial(s2ft_units, KEY, units=UNITS, scope=scope, **fractions))
  heads = fractions["heads"] + fractions.get("value_heads", 0)
  channels = fractions["channels"] + fractions.get("up_channels", 0)
  # What is drawn, rounded down to whole heads: less than what is held where layers draw unequally, which is filled up.
  q = LAYERS * DIM * (heads * DIM + channels * MLP) / N
  assert step_cost(transform, arranged(METHODS["lora"], layout)) <= 4.1 + 2 * q


@both_layouts
@every_method
def test_what_trains_and_adams_state(method, layout):
  cost = training_cost(Recipe(objective, method.transform, optax.adam(1e-3)), arranged(method, layout))
  assert cost.trained == method.trained
  assert cost.optimizer_bytes == 2 * cost.trained_bytes + 4 == 8 * method.trained + 4, "two moments and a step count"


def test_the_same_choice_by_an_optimizers_mask_costs_a_full_step():
  """That the bounds can be missed: the norm and the clip read every gradient, and so the step forms it."""
  method = METHODS["bitfit"]
  params = arranged(method, "stacked")
  trained = jax.tree_util.tree_map_with_path(lambda path, x: "train" if path[-1].key == "bias" else "freeze", params)
  masked = optax.chain(optax.clip_by_global_norm(1.0), optax.partition(
      {"train": optax.adamw(1e-3), "freeze": optax.set_to_zero()}, trained))
  assert step_cost(full(), params, masked) > 5.9
