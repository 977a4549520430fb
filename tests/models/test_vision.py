"""The vision transformer: what its config refuses, its sites, and its params in every arrangement."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.models import pixels, vision
from jaxft.models.cut import cut_model, entry, join_parts
from jaxft.models.sites import Add, Prepend
from jaxft.models.vision import VisionConfig
from jaxft.transforms import lora
from jaxft.tree import stack_layers, unstack_layers

CONFIG = VisionConfig(image_size=8, patch_size=4, dim=12, num_layers=3, num_heads=2, mlp_dim=16)


@pytest.fixture(scope="module")
def model():
  params = vision.init(jax.random.key(0), CONFIG, stddev=0.3)
  return params, jax.random.normal(jax.random.key(1), (2, 8, 8, 3))


def test_params_in_every_arrangement_and_with_low_rank_kernels(model):
  params, images = model
  want = vision.embed(params, CONFIG, images)
  assert want.shape == (2, 12) and want.dtype == jnp.float32
  np.testing.assert_allclose(vision.embed(unstack_layers(params), CONFIG, images), want, atol=1e-5)
  transform = lora("**/kernel", rank=2)
  frozen, trained = transform.split(jax.random.key(2), params)
  np.testing.assert_allclose(vision.embed(transform.join(frozen, trained), CONFIG, images), want, atol=1e-5)


def test_visual_prompts_are_seen_and_are_no_part_of_the_image(model):
  params, images = model
  edits = {"embed/out": Prepend(jnp.ones((3, 12)))}
  hidden, recorded = vision.hidden_states(params, CONFIG, images, edits=edits, record=("embed", "layers/out"))
  assert hidden.shape == (2, 3 + 5, 12) and recorded["layers/out"].shape == (3, 2, 8, 12)
  assert recorded["embed"].shape == (2, 4, 12)
  np.testing.assert_allclose(vision.embed(params, CONFIG, images, edits=edits), hidden[:, 3], atol=1e-6)
  assert np.abs(hidden[:, 3] - vision.embed(params, CONFIG, images)).max() > 1e-2


def test_the_mean_leaves_the_class_token_out(model):
  params, images = model
  hidden, _ = vision.hidden_states(params, CONFIG, images)
  mean = vision.embed(params, dataclasses.replace(CONFIG, pooling="mean", normalize=True), images)
  want = np.asarray(hidden[:, 1:]).mean(1)
  np.testing.assert_allclose(mean, want / np.linalg.norm(want, axis=1, keepdims=True), atol=1e-6)


def test_two_parts_are_the_whole(model):
  params, images = model
  lower, upper = cut_model(params, CONFIG, 2)
  states = vision.hidden_states(lower.params, lower.config, images, record=("layers/out",))[1]["layers/out"][-1]
  got = vision.embed(upper.params, upper.config, images, edits=entry(upper.config, states))
  np.testing.assert_allclose(got, vision.embed(params, CONFIG, images), atol=1e-6)
  assert jax.tree.all(jax.tree.map(np.array_equal, stack_layers(join_parts(lower, upper)), params))


def test_a_position_is_told_from_another(model):
  params, images = model
  swapped = jnp.roll(images, 4, axis=2)
  assert np.abs(vision.embed(params, CONFIG, swapped) - vision.embed(params, CONFIG, images)).max() > 1e-3


@pytest.mark.parametrize(("change", "message"), [
  ({"patch_size": 3}, "image_size must be a multiple of patch_size; got 8 and 3"),
  ({"num_heads": 5}, "dim must be a multiple of num_heads; got 12 and 5"),
  ({"activation": "gelus"}, "activation must be one of .*nearest: gelu"),
  ({"class_token": False}, "pooling must be 'mean' where class_token is False"),
  ({"channels": 1}, "mean and std must have channels = 1 entries"),
])
def test_configs_that_are_none(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIG, **change)


def test_images_of_another_size_and_unknown_sites_are_refused(model):
  params, images = model
  with pytest.raises(ValueError, match=r"images must have shape \[batch, 8, 8, 3\]; got \(2, 8, 4, 3\)"):
    vision.embed(params, CONFIG, images[:, :, :4])
  with pytest.raises(ValueError, match="no site of this model; nearest: embed"):
    vision.embed(params, CONFIG, images, edits={"embedd": Add(jnp.ones(12))})


def test_standardized_alike_from_bytes_and_from_floats():
  image = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
  options = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
  got = pixels.standardize(image, **options)
  np.testing.assert_allclose(got, (image.astype(np.float64) - 127) / 128, atol=1e-6)
  np.testing.assert_allclose(pixels.standardize(image / np.float32(255), **options), got, atol=1e-6)
  with pytest.raises(ValueError, match="one entry for each of 3 channels"):
    pixels.standardize(image, mean=(0.5,), std=(0.5,))


def test_the_middle_of_an_image_is_cut_out():
  image = np.zeros((20, 40, 1), np.float32)
  image[:, 15:25] = 1
  got = pixels.resize_and_crop(image, 10, crop=1.0)
  assert got.shape == (10, 10, 1)
  np.testing.assert_allclose(got[:, 4:6], 1, atol=0.1)
  np.testing.assert_allclose(got[:, [0, 1, 8, 9]], 0, atol=0.1)
  with pytest.raises(ValueError, match=r"crop must lie in \(0, 1\]; got 2"):
    pixels.resize_and_crop(image, 10, crop=2.0)


def test_resize_stretches_to_squares_and_clips_what_goes_beyond_black_and_white():
  image = np.zeros((1, 4, 8, 1), np.uint8)
  image[:, :, 4:] = 255
  both = jax.jit(lambda x: (pixels.resize(x, 16), pixels.resize(x, 16, clip=False), pixels.resize(x / 255, 16)))
  clipped, as_it_is, of_floats = jax.device_get(both(image))
  assert clipped.shape == (1, 16, 16, 1) and clipped.min() == 0 and clipped.max() == 1
  assert as_it_is.min() < -0.02 and as_it_is.max() > 1.02  # a cubic overshoots on both sides of the edge
  np.testing.assert_allclose(clipped, np.clip(as_it_is, 0, 1))
  np.testing.assert_allclose(of_floats, clipped, atol=1e-6)
  with pytest.raises(ValueError, match="size must be at least 1; got 0"):
    pixels.resize(image, 0)
