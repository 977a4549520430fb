"""Two towers in one space: any two functions, each with a depth of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.formats import load
from jaxft.merging import lines
from jaxft.models import dual_encoder, efficientnet, encoder, vision
from jaxft.models.dual_encoder import Towers
from jaxft.models.vision import VisionConfig
from jaxft.optimizers import layerwise_decay
from jaxft.tree import layer_of, leaves_with_paths

IMAGES = VisionConfig(image_size=8, patch_size=4, dim=8, num_layers=4, num_heads=2, mlp_dim=8)


@pytest.fixture(scope="module")
def two():
  text = load("minilm-l6:tiny")
  towers = Towers(
      vision=lambda params, images: vision.embed(params, IMAGES, images),
      text=lambda params, ids, mask: encoder.embed(params, text.config, ids, mask))
  params = dual_encoder.init(
      jax.random.key(0), vision.init(jax.random.key(1), IMAGES, stddev=0.3), text.params, widths=(8, 48), dim=6)
  return params, towers, text


def test_cosines_times_the_scale(two):
  params, towers, text = two
  images = jax.random.normal(jax.random.key(2), (3, 8, 8, 3))
  ids = jnp.array([[101, 2023, 102], [101, 2024, 102]])
  u, v = dual_encoder.embed_images(params, towers, images), dual_encoder.embed_texts(params, towers, ids, ids > 0)
  got = dual_encoder.logits(params, u, v)
  assert got.shape == (3, 2) and float(jnp.abs(got).max()) <= 1 / 0.07 + 1e-4
  pooled = encoder.embed(params["text"], text.config, ids, ids > 0) @ params["projection"]["text"]["kernel"]
  np.testing.assert_allclose(v, pooled / np.linalg.norm(pooled, axis=1, keepdims=True), atol=1e-6)
  np.testing.assert_allclose(got, u @ v.T / 0.07, rtol=1e-4)
  large = dual_encoder.logits({**params, "logit_scale": jnp.asarray(9.0)}, u, v)
  np.testing.assert_allclose(large, 100 * u @ v.T, rtol=1e-4)
  with pytest.raises(ValueError, match=r"temperature must lie in \(0, inf\); got 0"):
    dual_encoder.init(jax.random.key(0), {}, {}, widths=(8, 48), dim=6, temperature=0.0)


def test_each_tower_has_its_own_depth(two):
  params, _, _ = two
  deepest = {}
  for path, leaf in leaves_with_paths(params):
    layer = layer_of(path, leaf)
    if layer is not None:
      tower = path.split("/")[0]
      deepest[tower] = max(deepest.get(tower, 0), int(np.max(layer)))
  assert deepest == {"vision": 3, "text": 1}


def test_what_depends_on_depth_takes_each_towers_own():
  table = {"positions": {"embedding": jnp.ones((2, 2))}}
  shapes = lambda depth: {"embed": table, "layers": {"w": jnp.ones((depth, 2))}}
  params = {"vision": shapes(4), "text": shapes(2), "projection": {"text": {"kernel": jnp.ones(2)}}}
  scales = layerwise_decay(0.5, params)
  np.testing.assert_allclose(scales["vision"]["layers"]["w"].ravel(), [1 / 16, 1 / 8, 1 / 4, 1 / 2])
  np.testing.assert_allclose(scales["text"]["layers"]["w"].ravel(), [1 / 4, 1 / 2])
  below = {tower: float(scales[tower]["embed"]["positions"]["embedding"]) for tower in ("vision", "text")}
  assert below == {"vision": 1 / 32, "text": 1 / 8} and float(scales["projection"]["text"]["kernel"]) == 1.0
  merged = lines(params, alpha=0.0, beta=1.0, outside=3.0)
  np.testing.assert_allclose(merged["vision"]["layers"]["w"][:, 0], [0, 1 / 3, 2 / 3, 1], atol=1e-6)
  np.testing.assert_allclose(merged["text"]["layers"]["w"][:, 0], [0, 1])
  np.testing.assert_allclose(merged["projection"]["text"]["kernel"], 3.0)


def test_a_convnet_is_a_tower_too(two):
  _, _, text = two
  convnet = load("efficientnet-lite0:tiny")
  towers = Towers(
      vision=lambda params, images: efficientnet.embed(params, convnet.config, images),
      text=lambda params, ids: encoder.embed(params, text.config, ids))
  params = dual_encoder.init(jax.random.key(0), convnet.params, text.params, widths=(48, 48), dim=6)
  assert dual_encoder.embed_images(params, towers, jnp.ones((2, 16, 16, 3))).shape == (2, 6)
