"""LEVI's side network: a linear probe without the small model, the small model without the taps, and no way back."""

import jax
import numpy as np
import pytest

from jaxft.adapters import SideModel, average_views, pool_places, side_network
from jaxft.formats.pretrained import load
from jaxft.losses import deep_supervision, squared_error
from jaxft.models import efficientnet, encoder
from jaxft.tree import unstack_layers

rng = np.random.default_rng(0)
draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
TAPS, INPUTS = [draw(5, 4), draw(5, 6)], draw(5, 3)
SIDE = SideModel(lambda key: {"kernel": jax.device_put(draw(3, 2))}, lambda params, x: x @ params["kernel"], 2)


def test_one_tap_without_a_small_model_is_a_linear_probe():
  method = side_network((4,), 3, normalize=False)
  params = method.init(jax.random.key(0))
  layer = params["views"][0]
  got = method.views(params, TAPS[:1], None)
  np.testing.assert_allclose(got[0], TAPS[0] @ layer["kernel"] + layer["bias"], rtol=1e-5)
  np.testing.assert_allclose(average_views(got), jax.nn.log_softmax(got[0]), atol=1e-6)


def test_without_rows_for_the_taps_the_small_model_is_alone():
  method = side_network((4, 6), 3, SIDE, normalize=False)
  params = method.init(jax.random.key(0))
  layers = [layer | {"kernel": layer["kernel"].at[: h.shape[1]].set(0)}
            for layer, h in zip(params["views"], TAPS, strict=True)]
  got = method.views(params | {"views": layers}, TAPS, INPUTS)
  for view, layer in zip(got, layers, strict=True):
    np.testing.assert_allclose(view, INPUTS @ params["side"]["kernel"] @ layer["kernel"][-2:], rtol=1e-5)


def test_the_order_of_taps_is_that_of_the_views_and_their_mean_has_none():
  method, turned = side_network((4, 6), 3, SIDE), side_network((6, 4), 3, SIDE)
  params = method.init(jax.random.key(0))
  got = method.views(params, TAPS, INPUTS)
  again = turned.views(params | {"views": params["views"][::-1]}, TAPS[::-1], INPUTS)
  np.testing.assert_array_equal(again, got[::-1])
  for of in ("probabilities", "values"):
    np.testing.assert_allclose(average_views(again, of=of), average_views(got, of=of), rtol=1e-5)
  np.testing.assert_allclose(np.exp(average_views(got)).sum(-1), 1, rtol=1e-5)


def test_scales_of_the_parts_do_not_matter():
  method = side_network((4, 6), 3, SIDE)
  params = method.init(jax.random.key(0))
  got = method.views(params, TAPS, INPUTS)
  np.testing.assert_allclose(method.views(params, [100 * x for x in TAPS], INPUTS), got, rtol=1e-3, atol=1e-4)


def test_nothing_flows_into_the_frozen_model_and_its_taps_are_its_layers():
  model = load("minilm-l6:tiny")
  config = model.config
  ids, mask = np.array([[5, 6, 7], [8, 9, 0]]), np.array([[1, 1, 1], [1, 1, 0]])
  method = side_network((config.dim,) * 2, 3)
  trained = method.init(jax.random.key(0))

  def loss(params, trained):
    hidden, recorded = encoder.hidden_states(params, config, ids, mask, record=("layers/out",))
    taps = [pool_places(x, mask) for x in recorded["layers/out"]]
    return method.views(trained, taps, None).sum(), (hidden, taps)

  (slopes, own), (hidden, taps) = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(model.params, trained)
  assert not any(np.any(x) for x in jax.tree.leaves(slopes)) and all(np.any(x) for x in jax.tree.leaves(own))
  plain, _ = encoder.hidden_states(unstack_layers(model.params), config, ids, mask)
  np.testing.assert_allclose(hidden, plain, atol=1e-5)
  np.testing.assert_allclose(taps[-1], encoder.pool(plain, mask, normalize=False), atol=1e-5)


def test_a_convnet_is_tapped_at_blocks_of_unequal_width():
  model = load("efficientnet-lite0:tiny")
  sites = ("blocks/0/out", "blocks/3/out")
  images = jax.ShapeDtypeStruct((2, 16, 16, 3), np.float32)
  tapped = lambda x: [pool_places(h) for h in efficientnet.hidden_states(
      model.params, model.config, x, record=sites)[1].values()]
  assert [x.shape for x in jax.eval_shape(tapped, images)] == [(2, 8), (2, 16)]


def test_views_of_a_squared_loss_are_the_mean_and_their_variance():
  views, y = draw(3, 5), draw(5)
  each, _ = deep_supervision(squared_error)(views, y)
  spread = np.square(views - views.mean(0)).mean(0)
  np.testing.assert_allclose(each, np.square(views.mean(0) - y) + spread, rtol=1e-4)


def test_places_that_do_not_count_are_not_read():
  x, where = draw(2, 3, 2, 4), rng.random((2, 3, 2)) < 0.6
  dirty = np.where(where[..., None], x, np.nan)
  want = [x[i][where[i]].mean(0) for i in range(2)]
  np.testing.assert_allclose(pool_places(dirty, where), want, rtol=1e-5)
  np.testing.assert_allclose(pool_places(x), x.reshape(2, 6, 4).mean(1), rtol=1e-5)
  assert not pool_places(dirty, np.zeros_like(where)).any()


def test_errors():
  with pytest.raises(ValueError, match="dims must be one or more sizes"):
    side_network((), 3)
  method = side_network((4,), 3)
  with pytest.raises(ValueError, match=r"dims \[4\]; got shapes \[\(5, 6\)\]"):
    method.views(method.init(jax.random.key(0)), TAPS[1:], None)
  with pytest.raises(ValueError, match="of must be"):
    average_views(draw(1, 2, 3), of="logits")  # pyright: ignore[reportArgumentType]
