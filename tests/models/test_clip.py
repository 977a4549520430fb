"""CLIP's text tower, its files, and the vectors that `jaxft.load` gives of both sides."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from jaxft.formats.huggingface import save_directory
from jaxft.formats.tiny import init_tiny, tiny_config
from jaxft.models import clip
from jaxft.models.config.clip import ClipConfig, ClipTextConfig
from jaxft.models.sites import Prepend
from jaxft.models.vision import VisionConfig
from jaxft.recipes.guess import with_loss
from jaxft.recipes.model import load
from jaxft.recipes.options import Finetune
from jaxft.tree import layer_of, leaves_with_paths

SIZES: Any = dict(dim=8, num_layers=2, num_heads=2, mlp_dim=16)
CONFIG = ClipConfig(
    VisionConfig(image_size=8, patch_size=4, embed_norm=True, patch_bias=False, norm_eps=1e-5, activation="quick_gelu",
                 **{**SIZES, "num_layers": 3}),
    ClipTextConfig(vocab_size=8, max_length=6, eos_id=7, **SIZES), dim=4)


@pytest.fixture(scope="module")
def params():
  return init_tiny(CONFIG)


def test_the_state_of_the_first_end_stands_for_a_text_and_sees_nothing_behind_it(params):
  embed = jax.jit(lambda ids, mask: clip.embed_text(params["text"], CONFIG.text, ids, mask))
  ids = np.array([[5, 7, 1, 7, 2], [5, 7, 3, 3, 3], [5, 1, 2, 3, 4], [5, 1, 2, 3, 4]])
  mask = np.array([[1] * 5, [1, 1, 0, 0, 0], [1] * 5, [1, 1, 1, 0, 0]])
  states, _ = jax.jit(lambda ids: clip.hidden_states(params["text"], CONFIG.text, ids))(ids)
  # The first end; the same in another text; where there is none, the last real token.
  want = np.stack([states[0, 1], states[0, 1], states[2, 4], states[2, 2]])
  np.testing.assert_allclose(embed(ids, mask), want, atol=1e-6)


def test_vectors_that_an_edit_prepends_are_seen_and_are_no_part_of_the_text(params):
  prompt = jnp.arange(16.0).reshape(2, 8) ** 2
  embed = jax.jit(lambda ids, prompt: clip.embed_text(
      params["text"], CONFIG.text, ids, jnp.ones_like(ids), edits={"embed": Prepend(prompt)}))
  one, padded = embed(jnp.array([[5, 1, 7, 0]]), prompt), embed(jnp.array([[5, 1, 7, 3]]), prompt)
  np.testing.assert_allclose(one, padded, atol=1e-6)
  assert np.abs(one - embed(jnp.array([[5, 1, 7, 0]]), -prompt)).max() > 1e-3


def test_depth_is_told_on_each_tower(params):
  depth: Any = {path: layer_of(path, leaf) for path, leaf in leaves_with_paths(params)}
  assert [np.size(depth[f"{side}/layers/mlp/up/kernel"]) for side in ("vision", "text")] == [3, 2]
  assert depth["projection/text/kernel"] is None


def test_more_tokens_than_positions_and_an_end_outside_of_the_vocabulary_are_named(params):
  with pytest.raises(ValueError, match="at most 6 tokens"):
    clip.hidden_states(params["text"], CONFIG.text, np.zeros((1, 7), int))
  with pytest.raises(ValueError, match="eos_id must be a row"):
    ClipTextConfig(vocab_size=4, eos_id=4, **SIZES)


def words():
  """A tokenizer of the config's vocabulary."""
  tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(5)} | {"<s>": 5, "[UNK]": 6, "</s>": 7}, "[UNK]"))
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  tokenizer.post_processor = processors.TemplateProcessing(
      single=["<s>", "$A", "</s>"], pair=["<s>", "$A", "$B", "</s>"], special_tokens=[("<s>", 5), ("</s>", 7)])
  return tokenizer


@pytest.fixture(scope="module")
def folder(params, tmp_path_factory):
  at = tmp_path_factory.mktemp("clip") / "model"
  save_directory(params, CONFIG, at, tokenizer=words())
  return at


def test_a_saved_clip_gives_vectors_of_texts_and_of_images(params, folder):
  model = load(folder)
  assert model.config == CONFIG and "dual encoder" in repr(model) and "images, and texts of up to 6" in repr(model)
  texts = model.encode(["w1 w2", "w3"])
  want = clip.embed_texts(params, CONFIG, np.array([[5, 1, 2, 7], [5, 3, 7, 0]]), np.array([[1] * 4, [1, 1, 1, 0]]))
  np.testing.assert_allclose(texts, want, atol=1e-5)
  images = model.encode([np.full((8, 8, 3), 255, np.uint8), np.zeros((8, 8, 3), np.uint8)])
  want = clip.embed_images(params, CONFIG, np.stack([np.ones((8, 8, 3)), -np.ones((8, 8, 3))]))
  np.testing.assert_allclose(images, want, atol=1e-5)
  with pytest.raises(ValueError, match="1 texts among 2"):
    model.encode(["w1", np.zeros((8, 8, 3), np.uint8)])


def test_what_old_files_say_twice_must_be_the_same(folder, tmp_path):
  files = {file.name: file.read_bytes() for file in folder.iterdir()}
  config = json.loads(files["config.json"])

  def written(**changed):
    at = tmp_path / str(len(list(tmp_path.iterdir())))
    at.mkdir()
    for name, content in files.items():
      (at / name).write_bytes(content)
    (at / "config.json").write_text(json.dumps(config | changed))
    return at

  again = {"num_hidden_layers": 2, "hidden_size": 8}
  assert load(written(text_config_dict=again, vision_config_dict=None)).config == CONFIG
  # As transformers 4 wrote them: settings of generation, a tie that no tower has, and 2 for the highest id.
  generation = {"tie_word_embeddings": True, "num_beams": 1, "top_k": 50, "typical_p": 1.0, "return_dict": True,
                "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "dropout": 0.0, "initializer_factor": 1.0}
  old = load(written(text_config=config["text_config"] | generation)).config
  assert isinstance(old, ClipConfig) and old.text.eos_id is None
  with pytest.raises(ValueError, match="text_config_dict"):
    load(written(text_config_dict=again | {"hidden_size": 9}))
  with pytest.raises(ValueError, match="text_config: config.json: hidden_act"):
    load(written(text_config=config["text_config"] | {"hidden_act": "relu"}))
  with pytest.raises(ValueError, match="vision_config = None"):
    load(written(vision_config=None))


def test_a_tiny_one_has_both_towers():
  config = tiny_config(CONFIG)
  assert isinstance(config, ClipConfig)
  assert (config.vision.num_layers, config.text.num_layers, config.vision.dim, config.text.dim) == (2, 3, 48, 48)


def test_the_command_says_which_models_it_fine_tunes():
  with pytest.raises(ValueError, match="got a dual encoder"):
    with_loss(Finetune(model="a folder", data="some"), "dual encoder", ["text"])
