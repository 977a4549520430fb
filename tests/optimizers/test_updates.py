"""Learning rates by depth."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.optimizers import (
  agreement_dropout,
  decay_to_reference,
  layerwise_decay,
  lora_plus,
  scale_by_bert_adam,
  scale_updates,
)
from jaxft.transforms import lora


def tree(*, stacked):
  matrix = lambda *lead: jnp.ones((*lead, 2, 2))
  layers = {"up": {"kernel": matrix(3)}} if stacked else {str(i): {"up": {"kernel": matrix()}} for i in range(3)}
  return {"embed": {"tokens": {"embedding": jnp.ones((5, 2))}}, "layers": layers, "head": {"kernel": matrix()}}


def test_scales_fall_from_the_head_to_the_embeddings():
  unrolled, stacked = layerwise_decay(0.5, tree(stacked=False)), layerwise_decay(0.5, tree(stacked=True))
  for scales in (unrolled, stacked):
    assert scales["head"]["kernel"] == 1.0
    assert scales["embed"]["tokens"]["embedding"] == 0.0625
  assert [float(unrolled["layers"][str(i)]["up"]["kernel"]) for i in range(3)] == [0.125, 0.25, 0.5]
  np.testing.assert_array_equal(stacked["layers"]["up"]["kernel"].ravel(), [0.125, 0.25, 0.5])


def test_the_update_of_each_layer_is_scaled_also_for_factors():
  params = tree(stacked=True)
  _, trainable = lora("layers/**/kernel", rank=1).split(jax.random.key(0), params)
  optimizer = optax.chain(optax.sgd(1.0), scale_updates(layerwise_decay(0.5, trainable)))
  updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, trainable), optimizer.init(trainable), trainable)
  b = updates["layers"]["up"]["kernel"]["b"]
  np.testing.assert_array_equal(b[:, 0, 0], [-0.125, -0.25, -0.5])
  assert b.shape == (3, 1, 2)


def test_offsets_of_the_two_published_conventions():
  layers = {"layers": {"up": {"kernel": jnp.ones((12, 2, 2))}}, "head": jnp.ones(2), "embed": jnp.ones(2)}
  electra = layerwise_decay(0.8, layers, offset=2)
  np.testing.assert_allclose(electra["layers"]["up"]["kernel"].ravel(), 0.8 ** np.arange(13, 1, -1.0), rtol=1e-5)
  np.testing.assert_allclose(electra["embed"], 0.8**14, rtol=1e-5)
  assert electra["head"] == 1.0
  with pytest.raises(ValueError, match=r"offset must lie in \[0, inf\); got -1"):
    layerwise_decay(0.8, layers, offset=-1)


def test_decay_has_a_depth_for_each_tower():
  tower = lambda n: {"embed": np.ones(3), "layers": {"w": np.ones((n, 3))}}
  scales = layerwise_decay(0.5, {"vision": tower(2), "text": tower(4)}, first="*/embed")
  np.testing.assert_allclose(scales["vision"]["layers"]["w"].ravel(), [0.25, 0.5])
  np.testing.assert_allclose(scales["text"]["layers"]["w"].ravel(), [0.0625, 0.125, 0.25, 0.5])
  np.testing.assert_allclose([scales["vision"]["embed"], scales["text"]["embed"]], [0.125, 0.03125])


def test_the_depth_can_be_given_where_the_last_layers_are_frozen():
  scales = layerwise_decay(0.5, {"layers": {"0": {"w": jnp.ones(2)}}}, layers=4)
  assert scales["layers"]["0"]["w"] == 0.0625
  with pytest.raises(ValueError, match=r"rate must lie in \(0, 1\]; got 1.5"):
    layerwise_decay(1.5, tree(stacked=True))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: lora_plus({"w": {"a": jnp.ones(1), "b": jnp.ones(1)}}, ratio=np.inf), r"ratio must lie in \[1, inf\)"),
    (lambda: decay_to_reference(np.inf, {"w": jnp.ones(1)}), r"rate must lie in \[0, inf\)"),
    (lambda: scale_by_bert_adam(b1=1.5), r"b1 must lie in \[0, 1\); got 1.5"),
    (lambda: scale_by_bert_adam(eps=np.nan), r"eps must lie in \[0, inf\); got nan"),
    (lambda: scale_updates({"w": np.nan}), "scales at w must be finite"),
    (lambda: layerwise_decay(0.5, {"layers": {"w": jnp.ones((3, 2))}}, layers=2), "layers must be at least 3"),
])
def test_numbers_out_of_their_range_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_a_reference_of_nan_drops_nothing_in_silence():
  kept = agreement_dropout(jax.random.key(0), {"w": jnp.ones(2)}, {"w": jnp.array([1.0, np.nan])})
  np.testing.assert_array_equal(kept["w"], [1, np.nan])
