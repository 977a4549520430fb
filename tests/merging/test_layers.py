"""Other layers of one checkpoint."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.merging.layers import repeated_block, take_layers
from jaxft.models import DecoderConfig, decoder
from jaxft.tree import unstack_layers
from tests import draws

CONFIG = DecoderConfig(
    vocab_size=11, dim=8, num_layers=4, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=12)
PARAMS = draws.params(lambda: decoder.init(jax.random.key(0), CONFIG), 0, stddev=0.3)
IDS = draws.integers(1, 0, 11, 2, 5)


@functools.partial(jax.jit, static_argnums=1)
def hidden(params, layers):
  return decoder.hidden_states(params, dataclasses.replace(CONFIG, num_layers=layers), IDS).hidden


def test_all_layers_in_order_are_the_model():
  same = take_layers(PARAMS, range(4))
  assert all((a == b).all() for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(PARAMS), strict=True))


def test_stacked_and_unrolled_layers_give_the_same_model():
  layers = [0, 2, 2, 1, 3]
  stacked, unrolled = take_layers(PARAMS, layers), take_layers(unstack_layers(PARAMS), layers)
  np.testing.assert_allclose(hidden(stacked, 5), hidden(unrolled, 5), atol=1e-6)
  assert float(jnp.abs(hidden(stacked, 5) - hidden(PARAMS, 4)).max()) > 1e-3


def test_layers_that_write_nothing_can_be_repeated_without_change():
  silent = jax.tree.map(lambda x: x, PARAMS)
  for block, name in (("attention", "out"), ("mlp", "down")):
    kernel = silent["layers"][block][name]["kernel"]
    silent["layers"][block][name] = {"kernel": kernel.at[2].set(0)}
  np.testing.assert_array_equal(hidden(take_layers(silent, [0, 1, 2, 2, 2, 3]), 6), hidden(silent, 4))


def test_a_repeated_block():
  assert repeated_block(4, 1, 3) == [0, 1, 2, 1, 2, 3]
  assert len(repeated_block(32, 12, 28)) == 48  # Yi-9B of Yi-6B
  with pytest.raises(ValueError, match="start and stop must lie in order in 0..4; got 3 and 3"):
    repeated_block(4, 3, 3)


@pytest.mark.parametrize("layers", [[], [4], [-1, 0]])
def test_indices_out_of_range(layers):
  with pytest.raises(ValueError, match=r"layers must be indices in 0..3"):
    take_layers(PARAMS, layers)


def test_no_such_stack():
  with pytest.raises(ValueError, match="stack must be a name in params.*got 'blocks'"):
    take_layers(PARAMS, [0], stack="blocks")
