"""Units found from the function: they may change their order, and the function stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.formats import load
from jaxft.models import decoder, encoder
from jaxft.tree import axes_of, coupled_units, leaves_with_paths, permute_coupled
from jaxft.tree.coupled import MLP_CHANNELS, key_heads, query_heads
from jaxft.tree.globs import glob_to_regex
from tests.contracts import arranged_models

IDS = np.arange(14).reshape(2, 7)


def arranged(make):
  model = make()
  axes = axes_of(model.apply, model.params, model.inputs)
  return axes.arranged(model.apply), axes.arrange(model.params), model.inputs


def assert_free(apply, params, inputs, found):
  """The function does not change with the order of any of the units."""
  leaves, rng = dict(leaves_with_paths(params)), np.random.default_rng(0)
  permuted = []
  for coupled in found:
    path, axis, unit = coupled.members[0]
    groups = leaves[path].shape[axis] // unit // coupled.group
    order = np.concatenate([g * coupled.group + rng.permutation(coupled.group) for g in range(groups)])
    assert (order != np.arange(len(order))).any()
    permuted.append(permute_coupled(params, coupled, order))
  outputs = jax.jit(lambda trees: jnp.stack([apply(tree, inputs) for tree in trees]))([params, *permuted])
  np.testing.assert_allclose(outputs[1:], jnp.broadcast_to(outputs[:1], outputs[1:].shape), rtol=1e-3, atol=1e-4)


def members(found):
  return {frozenset(coupled.members): coupled.group for coupled in found}


def test_heads_and_channels_of_a_decoder_are_those_that_its_constants_name():
  model = load("smollm2-135m:tiny")
  config, params = model.config, model.params
  apply = lambda p, ids: decoder.logits(p, config, decoder.hidden_states(p, config, ids).hidden)
  found = coupled_units(apply, params, IDS)
  assert_free(apply, params, IDS, found)
  groups = config.num_heads // config.num_kv_heads
  known = (MLP_CHANNELS, key_heads(config.head_dim, groups), query_heads(config.head_dim, groups))
  for coupled in found:
    if ("embed/tokens/embedding", -1, 1) in coupled.members:  # the stream: all that reads it or writes to it
      assert len(coupled.members) == len(leaves_with_paths(params))
      continue
    assert sum(all(known_of(k, path) == (axis, unit) for path, axis, unit in coupled.members) for k in known) == 1
  assert len(found) == 4


def known_of(coupled, path):
  return next(((axis, unit) for glob, axis, unit in coupled.members if glob_to_regex(glob).fullmatch(path)), None)


def test_an_encoder_with_biases():
  model = load("minilm-l6:tiny")
  apply = lambda p, ids: encoder.embed(p, model.config, ids, jnp.ones((2, 7)))
  found = coupled_units(apply, model.params, IDS)
  assert_free(apply, model.params, IDS, found)
  heads = next(c for c in found if ("layers/attention/value/bias", -1, 12) in c.members)
  assert len(heads.members) == 7 and heads.group == 4


def test_heads_of_dense_general():
  apply, params, inputs = arranged(arranged_models.heads)
  found = coupled_units(apply, params, inputs)
  assert members(found) == {
      frozenset({("q/kernel", -1, 8), ("k/kernel", -1, 8), ("v/kernel", -1, 8), ("out/kernel", -2, 8)}): 6,
      frozenset({("q/kernel", -1, 1), ("k/kernel", -1, 1)}): 8,
      frozenset({("v/kernel", -1, 1), ("out/kernel", -2, 1)}): 8,
  }
  assert_free(apply, params, inputs, found)


@pytest.mark.parametrize("make", [m for m in arranged_models.MODELS if m is not arranged_models.heads])
def test_channels_of_every_model(make):
  apply, params, inputs = arranged(make)
  found = members(coupled_units(apply, params, inputs))
  hidden = {
      "out_in": {("fc/kernel", -1, 1), ("proj/kernel", -2, 1)},
      "scanned_over_axis_1": {("block/layers/up/kernel", -1, 1), ("block/layers/down/kernel", -2, 1)},
      "named_h": {("h/1/fc/w", -1, 1), ("h/1/proj/w", -2, 1)},
      "experts": {("moe/layers/experts/up", -1, 1), ("moe/layers/experts/down", -2, 1)},
      "two_towers": {("text/h/layers/up", -1, 1), ("text/h/layers/down", -2, 1)},
      "tied": {("table/embedding", -1, 1), ("mix/kernel", -2, 1), ("mix/kernel", -1, 1)},
  }.get(make.__name__)
  # What slices and shared kernels tell apart has no units.
  assert frozenset(hidden) in found if hidden else not found


def test_what_is_told_apart_keeps_its_order():
  params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
  free = lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"]
  positions = lambda p, x: (x @ p["up"] * jnp.arange(8.0)) @ p["down"]
  rolled = lambda p, x: jnp.concatenate([(x @ p["up"])[:, 4:], (x @ p["up"])[:, :4]], -1) @ p["down"]
  summed = lambda p, x: jnp.cumsum(x @ p["up"], -1) @ p["down"]
  added = lambda p, x: (x @ p["up"] + x[:, :1]) @ p["down"]  # alike for all units
  inputs = jnp.ones((5, 3))
  assert [len(coupled_units(f, params, inputs)) for f in (free, positions, rolled, summed, added)] == [1, 0, 0, 0, 1]
  assert not coupled_units(lambda p, x: x @ p["up"], params, inputs)  # the outputs are told apart by who reads them
