import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.analysis import jaxpr_flops
from jaxft.models import decoder, encoder
from jaxft.models.cut import Part, cached_features, cut_model, entry, join_parts
from jaxft.tree import cut_layers, unstack_layers

DECODER = decoder.DecoderConfig(
    vocab_size=40, dim=16, num_layers=4, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24)
ENCODER = encoder.EncoderConfig(vocab_size=40, dim=16, num_layers=4, num_heads=2, mlp_dim=24)
IDS = np.random.default_rng(0).integers(0, 40, (5, 7))
MASK = (np.arange(7) < [[7], [5], [2], [7], [3]]).astype(np.int32)
STORAGES = {"stacked": lambda p: p, "unrolled": unstack_layers, "cut": lambda p: cut_layers(p, [1, 3])}


def states(model, params, config, edits=None):
  return model.hidden_states(params, config, jnp.asarray(IDS), mask=jnp.asarray(MASK), edits=edits)[0]


# Every storage and every boundary is met once by each model; all pairs in the exhaustive tier.
PAIRS = [
    pytest.param(storage, boundary, marks=() if i == boundary - 1 else pytest.mark.exhaustive)
    for i, storage in enumerate(STORAGES) for boundary in (1, 2, 3)]


@pytest.mark.parametrize("storage, boundary", PAIRS)
@pytest.mark.parametrize("model, config", [(encoder, ENCODER), (decoder, DECODER)], ids=["encoder", "decoder"])
def test_training_the_upper_part_on_stored_states_is_training_it_in_the_whole_model(model, config, storage, boundary):
  params = STORAGES[storage](model.init(jax.random.key(0), config, stddev=0.3))
  lower, upper = cut_model(params, config, boundary)
  assert (lower.config.num_layers, upper.config.num_layers) == (boundary, 4 - boundary)
  stored = cached_features(model.hidden_states, lower, IDS, MASK, batch_size=2)
  assert stored.shape == (5, 7, 16)

  weights = jnp.asarray(MASK)[..., None] * jax.random.normal(jax.random.key(1), (5, 7, 16))
  alone = lambda layers: jnp.sum(weights * states(
      model, {**upper.params, "layers": layers}, upper.config, entry(config, jnp.asarray(stored))))
  whole = lambda layers: jnp.sum(weights * states(
      model, join_parts(lower, upper._replace(params={**upper.params, "layers": layers})), config))
  got, want = (jax.value_and_grad(f)(upper.params["layers"]) for f in (alone, whole))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


def test_joined_parts_are_the_model():
  params = encoder.init(jax.random.key(0), ENCODER, stddev=0.3)
  joined = join_parts(*cut_model(params, ENCODER, 2))
  jax.tree.map(np.testing.assert_array_equal, joined, cut_layers(params, [2]))
  np.testing.assert_allclose(states(encoder, joined, ENCODER), states(encoder, params, ENCODER), rtol=1e-5, atol=1e-6)


def test_a_step_on_stored_states_costs_the_upper_layers_alone():
  params = encoder.init(jax.random.key(0), ENCODER)
  lower, upper = cut_model(params, ENCODER, 3)
  gradient = lambda part, edits: jaxpr_flops(jax.grad(
      lambda layers: jnp.sum(states(encoder, {**part.params, "layers": layers}, part.config, edits))
  ), part.params["layers"]).matmul
  stored = entry(ENCODER, jnp.zeros((5, 7, 16)))
  assert gradient(upper, stored) <= 0.25 * gradient(Part(params, ENCODER), None)


def test_errors_name_the_argument():
  params = encoder.init(jax.random.key(0), ENCODER)
  for boundary in (0, 4):
    with pytest.raises(ValueError, match=rf"boundary must lie in \[1, 3\]; got {boundary}"):
      cut_model(params, ENCODER, boundary)
  lower, _ = cut_model(params, ENCODER, 1)
  with pytest.raises(ValueError, match="batch_size and the number of examples must be at least 1; got 0 and 5"):
    cached_features(encoder.hidden_states, lower, IDS, MASK, batch_size=0)
