"""EfficientNet-Lite: the sites and depths of a tiny one; what the pretrained one sees in photographs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.formats import load
from jaxft.formats.huggingface import load_directory, save_directory
from jaxft.models import efficientnet, pixels
from jaxft.models.efficientnet import Block
from jaxft.transforms import lora, train
from jaxft.tree import layer_of, leaves_with_paths


@pytest.fixture(scope="module")
def tiny():
  model = load("efficientnet-lite0:tiny")
  return model.params, model.config, jax.random.normal(jax.random.key(1), (2, 17, 24, 3))


def test_it_knows_a_palace_and_a_daisy():
  datasets = pytest.importorskip("sklearn.datasets")
  model = load("efficientnet-lite0")
  assert model.kind == "vision" and sum(x.size for x in jax.tree.leaves(model.params)) == 4_652_008
  images = [pixels.resize_and_crop(image, 224) for image in datasets.load_sample_images().images]
  images = pixels.standardize(jnp.stack(images), mean=model.config.mean, std=model.config.std)
  logits = jax.jit(lambda params: efficientnet.logits(
      params, model.config, efficientnet.embed(params, model.config, images)))(model.params)
  china, flower = np.argsort(-logits, axis=1)[:, :5].tolist()
  # palace, bell cote, monastery, lakeshore and castle; daisy.
  assert china[0] == 698 and len(set(china) & {698, 442, 663, 975, 483}) >= 4
  assert flower[0] == 985 and jax.nn.softmax(logits[1])[985] > 0.3


@pytest.mark.parametrize(("size", "stride", "shape"), [(3, 1, (5, 4)), (3, 2, (5, 4)), (5, 2, (6, 9)), (5, 1, (7, 7))])
def test_depthwise_is_a_grouped_convolution(size, stride, shape):
  rng = np.random.default_rng(0)
  x, kernel = jnp.asarray(rng.normal(size=(2, *shape, 6))), jnp.asarray(rng.normal(size=(size, size, 6)))
  want = jax.lax.conv_general_dilated(
      x, kernel[:, :, None], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=6)
  np.testing.assert_allclose(efficientnet.depthwise(x, kernel, stride=stride), want, atol=1e-5)


def test_sites_record_and_edit(tiny):
  params, config, images = tiny
  names = efficientnet.sites(config)
  features, recorded = efficientnet.hidden_states(params, config, images, record=names)
  assert tuple(recorded) == names and features.shape == (2, 3, 3, config.dim)
  assert recorded["blocks/1/expand"].shape == (2, 9, 12, 48) and recorded["blocks/1/out"].shape == (2, 5, 6, 12)
  assert float(recorded["blocks/2/depthwise"].max()) <= 6 and "blocks/0/expand" not in names
  replaced, _ = efficientnet.hidden_states(params, config, images, edits={"blocks/3/out": lambda x: 0 * x})
  np.testing.assert_allclose(replaced, 0, atol=1e-6)
  with pytest.raises(ValueError, match="'blocks/0/expand', which is no site of this model"):
    efficientnet.hidden_states(params, config, images, record=("blocks/0/expand",))


def test_what_trains_and_what_a_low_rank_kernel_computes(tiny):
  params, config, images = tiny
  embed = lambda params, **options: efficientnet.embed(params, config, images, **options)
  transform = lora("blocks/*/{expand,project}/kernel", rank=1)
  frozen, trained = transform.split(jax.random.key(0), params)
  np.testing.assert_allclose(embed(transform.join(frozen, trained)), embed(params), atol=1e-4)
  upper = train("{blocks/3,head}/**")
  frozen, trained = upper.split(jax.random.key(0), params)
  loss = lambda trained, remat: jnp.sum(embed(upper.join(frozen, trained), remat=remat) ** 2)
  plain, again = (jax.grad(loss)(trained, remat) for remat in ("none", "full"))
  assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(plain))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, again)


def test_every_block_has_its_depth(tiny):
  params, config, _ = tiny
  depths = {layer_of(path, leaf) for path, leaf in leaves_with_paths(params)}
  assert depths == {None, *range(config.num_layers)}


def test_saved_and_loaded_it_is_the_same(tiny, tmp_path):
  params, config, _ = tiny
  save_directory(params, config, tmp_path / "saved")
  loaded, found = load_directory(tmp_path / "saved")
  assert found == config
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  bad = dict(params, head={"kernel": params["head"]["kernel"][:, :3]})
  with pytest.raises(ValueError, match="head/kernel has shape"):
    save_directory(bad, config, tmp_path / "bad")


def test_unit_length_and_classes(tiny):
  params, config, images = tiny
  unit = efficientnet.embed(params, dataclasses.replace(config, normalize=True), images)
  np.testing.assert_allclose(jnp.linalg.norm(unit, axis=1), 1, atol=1e-5)
  assert efficientnet.logits(params, config, efficientnet.embed(params, config, images)).shape == (2, 1000)


def test_blocks_must_follow_each_other(tiny):
  _, config, _ = tiny
  with pytest.raises(ValueError, match=r"blocks must each take what comes before, \[8\] channels; they take \[9\]"):
    dataclasses.replace(config, blocks=(Block(9, 8, kernel=3, stride=1, expand=1),))
  with pytest.raises(ValueError, match="has no one stack of layers to cut: .* must be 'tiny'; got '3'"):
    load("efficientnet-lite0:3")
