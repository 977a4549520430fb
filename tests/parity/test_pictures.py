"""Pictures on their way into a CLIP or a ViT, against transformers' processors: every pixel, and the files back."""

import json

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")
transformers = pytest.importorskip("transformers")

from jaxft.data.images import on_background, read_image
from jaxft.formats.huggingface import read_config
from jaxft.formats.vision_config import preprocessor_json

SQUARE = {"height": 64, "width": 64}
TOWER = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
CLIP = {"model_type": "clip", "projection_dim": 4, "vision_config": {**TOWER, "image_size": 64, "patch_size": 16},
        "text_config": {**TOWER, "vocab_size": 9, "max_position_embeddings": 4, "eos_token_id": 8}}
VIT = {"model_type": "vit", **TOWER, "image_size": 64, "patch_size": 16}
# What a file of each says; no two give the same pixels.
FILES = {
    "the usual": (CLIP, {"size": {"shortest_edge": 64}, "crop_size": SQUARE, "resample": 3}),
    "sides as numbers": (CLIP, {"size": 64, "crop_size": 64, "resample": 2}),
    "a border cut off": (CLIP, {"size": {"shortest_edge": 73}, "crop_size": SQUARE, "resample": 1}),
    "stretched": (CLIP, {"size": SQUARE, "do_center_crop": False}),
    "stretched before nothing is cut": (CLIP, {"size": SQUARE, "crop_size": SQUARE, "resample": 0}),
    "pixels in [0, 1]": (CLIP, {"size": {"shortest_edge": 64}, "crop_size": SQUARE, "do_normalize": False}),
    "a ViT": (VIT, {"size": SQUARE}),
    "a ViT, a number": (VIT, {"size": 64, "image_mean": [0.1, 0.2, 0.3], "resample": 3}),
}


def pictures():
  rng = np.random.default_rng(0)
  noise = lambda *shape: Image.fromarray(rng.integers(0, 256, shape, np.uint8))
  # 64 * 400 / 57 = 449.1 and 64 * 90 / 56 = 102.9: the sides are rounded down, as there.
  return [noise(57, 400, 3), noise(90, 56, 3), noise(64, 64, 3), noise(1, 1, 3), noise(30, 20), noise(70, 80, 4),
          noise(70, 90, 3).convert("P")]


def config_of(folder, config, file):
  for name, content in (("config.json", config), ("preprocessor_config.json", file)):
    (folder / name).write_text(json.dumps(content))
  found = read_config(folder)
  return getattr(found, "vision", found)


def processor(config, file):
  kind = transformers.CLIPImageProcessor if config["model_type"] == "clip" else (
      transformers.models.vit.image_processing_pil_vit.ViTImageProcessorPil)
  return kind(**file)


@pytest.mark.parametrize("name", FILES)
def test_every_pixel_is_that_of_transformers_and_the_file_written_says_the_same(name, tmp_path):
  config, file = FILES[name]
  ours, theirs = config_of(tmp_path, config, file), processor(config, file)
  written = transformers.CLIPImageProcessor(**preprocessor_json(ours))
  for picture in pictures():
    read = read_image(picture, 64, ours.framing)
    got = (read / np.float32(255) - np.float32(ours.mean)) / np.float32(ours.std)
    for other in (theirs, written):
      shown = picture if config is CLIP else Image.fromarray(on_background(np.asarray(picture.convert("RGBA"))))
      wanted = other([shown], return_tensors="np")["pixel_values"]
      np.testing.assert_allclose(got.transpose(2, 0, 1), wanted[0], atol=2e-6)


@pytest.mark.parametrize("key, value", [
    ("do_resize", False), ("do_rescale", False), ("rescale_factor", 1 / 127.5),
    ("crop_size", {"height": 32, "width": 32}), ("size", {"shortest_edge": 63}), ("size", {"height": 64, "width": 65}),
    ("size", {"longest_edge": 64}), ("resample", 6), ("do_pad", True), ("crop_pct", 0.9),
    ("image_std", [0.0, 1.0, 1.0]),
])
def test_what_is_not_done_to_pictures_is_refused_by_its_name(key, value, tmp_path):
  file = FILES["the usual"][1]
  with pytest.raises(ValueError, match=f"{'std' if key == 'image_std' else key}.*(not supported|std > 0)"):
    config_of(tmp_path, CLIP, {**file, key: value})


def test_a_tower_that_an_old_file_says_in_the_second_place_alone(tmp_path):
  again = {**CLIP, "vision_config": {}, "vision_config_dict": CLIP["vision_config"], "text_config": None,
           "text_config_dict": {**CLIP["text_config"], "num_attention_heads": 4}}
  ours = config_of(tmp_path, again, {})
  theirs = transformers.CLIPConfig(**again)
  assert (ours.image_size, ours.patch_size, ours.num_layers) == (64, 16, 1)
  assert theirs.vision_config.patch_size == 16
  assert read_config(tmp_path).text.num_heads == theirs.text_config.num_attention_heads == 4
