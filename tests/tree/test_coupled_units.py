"""Units found from the function: they may change their order, and the function stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.formats import load
from jaxft.models import decoder, encoder
from jaxft.tree import axes_of, coupled_units, leaves_with_paths, permute_coupled
from jaxft.tree.coupled import MLP_CHANNELS, Member, key_heads, query_heads
from jaxft.tree.globs import glob_to_regex
from tests.contracts import arranged_models
from tests.contracts.arranged_models import draw

M = Member
IDS = np.arange(14).reshape(2, 7)


def arranged(make):
  model = make()
  axes = axes_of(model.apply, model.params, model.inputs)
  return axes.arranged(model.apply), axes.arrange(model.params), model.inputs


def assert_free(apply, params, inputs, found):
  """The function does not change with the order of any of the units."""
  leaves, rng = dict(leaves_with_paths(params)), np.random.default_rng(0)
  shuffled = lambda n: np.roll(np.arange(n), 1) if n == 2 else rng.permutation(n)
  permuted = []
  for coupled in found:
    path, axis, unit, copies = coupled.members[0]
    groups = leaves[path].shape[axis] // unit // copies // coupled.group
    order = np.concatenate([g * coupled.group + shuffled(coupled.group) for g in range(groups)])
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
    if M("embed/tokens/embedding", -1) in coupled.members:  # the stream: all that reads it or writes to it
      assert len(coupled.members) == len(leaves_with_paths(params))
      continue
    if any(m.copies > 1 for m in coupled.members):  # what heads of values hold, in one order for all of them
      value, out = M("layers/attention/value/kernel", -1, 1, groups), M("layers/attention/out/kernel", -2, 1, 4)
      assert coupled == ((value, out), config.head_dim)
      continue
    assert sum(all(known_of(k, m.glob) == m[1:] for m in coupled.members) for k in known) == 1
  assert len(found) == 5


def known_of(coupled, path):
  return next((m[1:] for m in coupled.members if glob_to_regex(m.glob).fullmatch(path)), None)


def test_an_encoder_with_biases():
  model = load("minilm-l6:tiny")
  apply = lambda p, ids: encoder.embed(p, model.config, ids, jnp.ones((2, 7)))
  found = coupled_units(apply, model.params, IDS)
  assert_free(apply, model.params, IDS, found)
  heads = next(c for c in found if M("layers/attention/value/bias", -1, 12) in c.members)
  assert len(heads.members) == 7 and heads.group == 4


def test_heads_of_dense_general():
  apply, params, inputs = arranged(arranged_models.heads)
  found = coupled_units(apply, params, inputs)
  assert members(found) == {
      frozenset({M("q/kernel", -1, 8), M("k/kernel", -1, 8), M("v/kernel", -1, 8), M("out/kernel", -2, 8)}): 6,
      frozenset({M("q/kernel", -1), M("k/kernel", -1)}): 8,
      frozenset({M("v/kernel", -1), M("out/kernel", -2)}): 8,
  }
  assert_free(apply, params, inputs, found)


@pytest.mark.parametrize("make", [m for m in arranged_models.MODELS if m is not arranged_models.heads])
def test_units_of_every_model(make):
  apply, params, inputs = arranged(make)
  found = coupled_units(apply, params, inputs)
  wanted = {
      "out_in": {M("fc/kernel", -1), M("proj/kernel", -2)},
      "grouped_queries": {M("q_einsum/w", -1, 24), M("kv_einsum/w", -1, 8, 2), M("attn_vec_einsum/w", -2, 24)},
      "fused": {M("qkv/kernel", -1, 8, 3), M("out/kernel", -2, 8)},
      "convolution": {M("patch/kernel", -1), M("window/kernel", -2, 1, 9)},
      "scanned_over_axis_1": {M("block/layers/up/kernel", -1), M("block/layers/down/kernel", -2)},
      "named_h": {M("h/1/fc/w", -1), M("h/1/proj/w", -2)},
      "experts": {M("moe/layers/experts/up", -1), M("moe/layers/experts/down", -2)},
      "two_towers": {M("text/h/layers/up", -1), M("text/h/layers/down", -2)},
      "tied": {M("table/embedding", -1), M("mix/kernel", -2), M("mix/kernel", -1)},
      "shared_layer": {M("shared/up/kernel", -1), M("shared/up/bias", -1), M("shared/down/kernel", -2)},
      # Groups of a norm, with all that makes, shifts or reads their channels; the skip connection's are told apart.
      "u_net": {*(M(f"{name}/{part}", -1, 4) for name in ("downsample", "time", "conv") for part in ("kernel", "bias")),
                M("norm/scale", -1, 4), M("norm/bias", -1, 4), M("conv/kernel", -2, 4, 9),
                M("upsample/kernel", -2, 4, 16)},
  }[make.__name__]
  assert frozenset(wanted) in members(found)
  if make is arranged_models.grouped_queries:  # the heads that share a key, in their groups
    assert members(found)[frozenset({M("q_einsum/w", -1, 8), M("attn_vec_einsum/w", -2, 8)})] == 3
  if any(m.copies > 1 for c in found for m in c.members):
    assert_free(apply, params, inputs, found)


def test_units_of_kernels_that_are_cut_in_parts():
  """Gate and up in one kernel, cut as an array, as a product, or by reshaping; queries and keys of unequal size."""
  params = {"up": draw(1, 6, 16), "bias": draw(2, 16), "down": draw(3, 8, 4)}
  both = lambda p, x: x @ p["up"] + p["bias"]
  glu = lambda a, b: jax.nn.gelu(a) * b

  def by_slices(p, x):
    y = both(p, x)
    return glu(y[:, :8], y[:, 8:]) @ p["down"]

  def of_kernels(p, x):
    return glu(*(x @ w + b for w, b in zip(jnp.split(p["up"], 2, 1), jnp.split(p["bias"], 2), strict=True))) @ p["down"]

  wanted = frozenset({M("up", -1, 1, 2), M("bias", -1, 1, 2), M("down", -2)})
  for apply in (by_slices, of_kernels, lambda p, x: glu(*jnp.moveaxis(both(p, x).reshape(-1, 2, 8), 1, 0)) @ p["down"],
                lambda p, x: glu(*jnp.split(both(p, x), 2, -1)) @ p["down"]):
    found = coupled_units(apply, params, draw(3, 5, 6))
    assert wanted in members(found)
    assert_free(apply, params, draw(3, 5, 6), found)

  with pytest.warns(UserWarning, match="up is cut in parts of unequal size"):
    coupled_units(lambda p, x: glu(both(p, x)[:, :12], 1.0) @ p["down"], params | {"down": draw(3, 12, 4)},
                  draw(3, 5, 6))


def test_channels_of_a_state_space_layer():
  """Two parts of one kernel, of which one is convolved for each channel and runs through a scan over time."""
  params = {"in_proj": draw(1, 6, 16), "conv": draw(2, 3, 1, 8), "decay": draw(3, 8, 2), "out_proj": draw(4, 8, 6)}

  def apply(p, x):
    u, gate = jnp.split(x @ p["in_proj"], 2, -1)
    u = jax.lax.conv_general_dilated(
        u, p["conv"], (1,), [(2, 0)], dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=8)
    def step(h, u):
      h = h * jax.nn.sigmoid(p["decay"]) + u[..., None]
      return h, h.sum(-1)

    _, y = jax.lax.scan(step, jnp.zeros((2, 8, 2)), jnp.moveaxis(u, 1, 0))
    return (jnp.moveaxis(y, 0, 1) * jax.nn.silu(gate)) @ p["out_proj"]

  found = coupled_units(apply, params, draw(5, 2, 7, 6))
  channels = {M("in_proj", -1, 1, 2), M("conv", -1), M("decay", -2), M("out_proj", -2)}
  assert frozenset(channels) in members(found)
  assert_free(apply, params, draw(5, 2, 7, 6), found)


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
