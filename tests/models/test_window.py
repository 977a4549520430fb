"""Windows of a decoder against the definition, and against one another: packed, padded, stacked, cut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.models import decoder
from jaxft.models.attention.rope import LinearScaling, rotation
from jaxft.models.config.window import Window
from jaxft.tree import cut_layers, unstack_layers

CONFIG = decoder.DecoderConfig(
    vocab_size=31, dim=16, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24, qk_norm=True,
    post_norms=True, zero_centered_norms=True, activation="gelu_tanh", scale_embeddings=True, query_scale=0.5,
    window=Window(3, every=2, rope_theta=50.0))


@pytest.fixture(scope="module")
def params():
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), CONFIG))
  return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), shapes)


@jax.jit
def states(params, ids, mask=None, segment_ids=None):
  return decoder.hidden_states(params, CONFIG, ids, mask=mask, segment_ids=segment_ids).hidden


def test_packed_padded_and_cut_it_is_the_same_model(params):
  rng = np.random.default_rng(1)
  first, second = rng.integers(0, 31, 9), rng.integers(0, 31, 7)
  want = states(params, first[None])[0], states(params, second[None])[0]
  packed = states(params, np.concatenate([first, second])[None], segment_ids=np.repeat([1, 2], [9, 7])[None])[0]
  np.testing.assert_allclose(packed, np.concatenate(want), rtol=1e-4, atol=1e-5)
  # Padding in the middle does not count as a place of the window.
  mask = np.array([1, 1, 0, 0, 1, 1, 1, 1, 0, 1, 1, 1])[None]
  ids = np.zeros(mask.shape, int)
  ids[mask == 1] = first
  np.testing.assert_allclose(states(params, ids, mask=mask)[mask == 1], want[0], rtol=1e-4, atol=1e-5)
  for arranged in (unstack_layers(params), cut_layers(params, [1])):
    got = decoder.hidden_states(arranged, CONFIG, first[None]).hidden[0]
    np.testing.assert_allclose(got, want[0], rtol=1e-4, atol=1e-5)


def test_what_a_position_sees_is_what_its_layers_reach(params):
  """Two layers with a window of three, one that sees all between them."""
  ids = np.random.default_rng(2).integers(0, 31, (1, 12))

  def reach(config):
    embedded = params["embed"]["tokens"]["embedding"][ids]
    run = lambda x: decoder.hidden_states(params, config, jnp.asarray(ids), edits={"embed": lambda _: x}).hidden
    return np.abs(np.asarray(jax.jacobian(lambda x: run(x)[0, -1].sum())(embedded))[0]).max(-1) > 0

  local = dataclasses.replace(CONFIG, window=Window(3, every=4))
  assert reach(local).tolist() == [i >= 12 - 3 * 2 - 1 for i in range(12)]
  assert reach(CONFIG).all()


def test_a_window_as_long_as_the_row_is_none_but_for_its_base(params):
  ids = jnp.arange(10)[None]
  wide = dataclasses.replace(CONFIG, window=Window(10, rope_theta=CONFIG.rope_theta))
  none = dataclasses.replace(CONFIG, window=None)
  got = [decoder.hidden_states(params, config, ids).hidden for config in (wide, none)]
  np.testing.assert_allclose(*got, rtol=1e-5, atol=1e-6)


def test_linear_stretching_is_that_of_positions():
  positions = jnp.arange(5)[None]
  stretched = rotation(4 * positions, head_dim=8, theta=100.0, scaling=LinearScaling(4.0))
  for x, y in zip(stretched, rotation(positions, head_dim=8, theta=100.0), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("make, message", [
    (lambda: Window(0), "size of a window must be at least 1; got 0"),
    (lambda: Window(4, every=0), "every of a window must be at least 1; got 0"),
    (lambda: LinearScaling(0.0), "factor must be positive; got 0.0"),
    (lambda: dataclasses.replace(CONFIG, activation="gelu"), "activation must be one of"),
])
def test_what_means_nothing_is_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
