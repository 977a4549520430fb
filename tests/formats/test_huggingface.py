"""Hugging Face folders: round trips in every spelling of the layers, and checkpoints that are not what they say."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from jaxft.formats import load
from jaxft.formats.families import family_of
from jaxft.formats.huggingface import load_directory, read_config, save_directory, to_named
from jaxft.formats.names import DECODER, ENCODER, huggingface_name
from jaxft.formats.safetensors import open_checkpoint, save_file
from jaxft.leaves import materialize
from jaxft.models import decoder, encoder
from jaxft.models.attention.rope import LinearScaling, RopeScaling
from jaxft.models.config.window import Window
from jaxft.models.decoder import DecoderConfig
from jaxft.models.encoder import EncoderConfig
from jaxft.transforms import lora
from jaxft.tree import cut_layers, leaves_with_paths, unstack_layers

ENCODER_CONFIG = EncoderConfig(vocab_size=50, dim=12, num_layers=3, num_heads=2, mlp_dim=20, max_length=16,
                               pooling="cls", normalize=False)
DECODER_CONFIG = DecoderConfig(vocab_size=50, dim=12, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=20,
                               rope_theta=5e4, bos_id=1, eos_id=2)
UNTIED_CONFIG = dataclasses.replace(DECODER_CONFIG, tie_embeddings=False, pad_id=0)
QWEN_CONFIG = dataclasses.replace(UNTIED_CONFIG, qk_norm=True, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 512))
GEMMA_CONFIG = dataclasses.replace(
    DECODER_CONFIG, qk_norm=True, post_norms=True, zero_centered_norms=True, scale_embeddings=True,
    activation="gelu_tanh", query_scale=1 / 8, rope_scaling=LinearScaling(8.0),
    window=Window(16, every=2, rope_theta=7.0))
CONFIGS = {"encoder": ENCODER_CONFIG, "decoder": DECODER_CONFIG, "untied": UNTIED_CONFIG, "qwen3": QWEN_CONFIG,
           "gemma3": GEMMA_CONFIG}


def params_of(config, dtype=jnp.float32):
  """Random params, norm scales and biases too, which `init` leaves constant."""
  init = encoder.init if isinstance(config, EncoderConfig) else decoder.init
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), dtype), _shapes(init, config))


def _shapes(init, config):
  return jax.eval_shape(lambda key: init(key, config), jax.random.key(0))


def assert_same(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for (path, a), (_, b) in zip(leaves_with_paths(ours), leaves_with_paths(theirs), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape, path
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_round_trip_is_bit_for_bit(tmp_path, config, dtype):
  params = params_of(config, dtype)
  save_directory(params, config, tmp_path / "a", max_shard_bytes=8000)
  loaded, found = load_directory(tmp_path / "a", dtype=dtype)
  assert found == config
  assert_same(loaded, params)
  unrolled, _ = load_directory(tmp_path / "a", dtype=dtype, stacked=False)
  assert_same(unrolled, unstack_layers(params))
  assert len(list((tmp_path / "a").glob("model-*.safetensors"))) > 1


@pytest.mark.parametrize("spelling", [unstack_layers, lambda p: cut_layers(p, [1, 3])], ids=["unrolled", "cut"])
def test_unrolled_and_cut_layers_save_the_same(spelling):
  params = params_of(DECODER_CONFIG)
  expected, got = to_named(params, DECODER_CONFIG), to_named(spelling(params), DECODER_CONFIG)
  assert list(got) == list(expected)
  for name in expected:
    np.testing.assert_array_equal(got[name], expected[name])


def test_structured_leaves_are_saved_as_what_they_stand_for(tmp_path):
  t = lora("**/query/kernel", rank=2)
  params = params_of(DECODER_CONFIG)
  frozen, trainable = t.split(jax.random.key(0), params)
  joined = t.join(frozen, jax.tree.map(lambda x: x + 1, trainable))
  save_directory(joined, DECODER_CONFIG, tmp_path / "a")
  loaded, _ = load_directory(tmp_path / "a")
  assert_same(loaded, materialize(joined))
  query = lambda p: p["layers"]["attention"]["query"]["kernel"]
  assert not np.array_equal(query(loaded), query(params))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_name_map_covers_the_tree_of_init(config):
  rules = family_of(config).tensors(config).rules
  paths = [path for path, _ in leaves_with_paths(unstack_layers(params_of(config)))]
  found = [huggingface_name(path, rules) for path in paths]
  assert {rule for rule, _ in found} == set(rules) and len({rule.name for rule in rules}) == len(rules)
  assert all(rule.path.format(layer=layer) == path for path, (rule, layer) in zip(paths, found, strict=True))


def test_the_name_map_by_example():
  rule, layer = huggingface_name("layers/3/attention/query/kernel", DECODER)
  assert (rule.name.format(layer=layer), rule.transpose) == ("model.layers.3.self_attn.q_proj.weight", True)
  rule, layer = huggingface_name("embed/tokens/embedding", ENCODER)
  assert (rule.name, layer, rule.transpose) == ("embeddings.word_embeddings.weight", None, False)
  with pytest.raises(ValueError, match="'layers/3/mlp/left/kernel' has no name"):
    huggingface_name("layers/3/mlp/left/kernel", DECODER)


def test_params_that_do_not_fit_the_config_are_all_named(tmp_path):
  params = params_of(DECODER_CONFIG)
  params["norm"] = {"bias": jnp.zeros(12)}
  params["layers"]["mlp"]["up"]["kernel"] = jnp.zeros((4, 12, 21))
  params["layers"]["mlp"]["down"]["kernel"] = None
  with pytest.raises(ValueError) as e:
    save_directory(params, DECODER_CONFIG, tmp_path / "a")
  for phrase in ("unknown norm/bias", "missing norm/scale", "layers/mlp/up/kernel has shape (12, 21)",
                 "layers/mlp/down/kernel is a hole"):
    assert phrase in str(e.value)
  too_deep = dataclasses.replace(DECODER_CONFIG, num_layers=3)
  with pytest.raises(ValueError, match="unknown layers/3/attention/key/kernel"):
    save_directory(params_of(DECODER_CONFIG), too_deep, tmp_path / "a")
  assert not list(tmp_path.iterdir())


def test_saving_never_replaces_and_leaves_nothing_half_written(tmp_path, monkeypatch):
  params = params_of(DECODER_CONFIG)
  (tmp_path / "a").mkdir()
  save_directory(params, DECODER_CONFIG, tmp_path / "a")  # an empty folder is no loss
  with pytest.raises(FileExistsError):
    save_directory(params, DECODER_CONFIG, tmp_path / "a")

  def full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("jaxft.formats.huggingface.sizes_json", full_disk)
  with pytest.raises(OSError, match="No space"):
    save_directory(params, DECODER_CONFIG, tmp_path / "b")
  assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.fixture
def folder(tmp_path):
  """A saved decoder, and a function that changes its tensors."""
  save_directory(params_of(DECODER_CONFIG), DECODER_CONFIG, tmp_path / "a")
  path = tmp_path / "a"

  def change(edit):
    checkpoint = open_checkpoint(path)
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    edit(tensors)
    save_file(tensors, path / "model.safetensors")

  return path, change


def test_tensors_that_do_not_fit_are_all_named(folder):
  path, change = folder

  def edit(t):
    del t["model.norm.weight"]
    t["model.layers.0.self_attn.q_proj.bias"] = np.zeros(24, np.float32)
    t["model.layers.1.mlp.up_proj.weight"] = np.zeros((12, 20), np.float32)
    t["model.layers.2.mlp.up_proj.weight"] = np.zeros((20, 12), np.int8)

  change(edit)
  with pytest.raises(ValueError) as e:
    load_directory(path)
  for phrase in ("4 tensors do not fit", "missing model.norm.weight (12,)",
                 "unknown model.layers.0.self_attn.q_proj.bias",
                 "model.layers.1.mlp.up_proj.weight has shape (12, 20), the config wants (20, 12)",
                 "model.layers.2.mlp.up_proj.weight has dtype int8"):
    assert phrase in str(e.value)


def test_known_extras_are_dropped_and_a_head_that_is_not_tied_is_refused(folder):
  path, change = folder
  change(lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(3, np.float32),
                             "lm_head.weight": t["model.embed_tokens.weight"]}))
  assert "head" not in load_directory(path)[0]
  change(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
  with pytest.raises(ValueError, match="lm_head.weight differs from model.embed_tokens.weight"):
    load_directory(path)


def test_a_piece_of_a_stack_holds_as_many_layers_as_its_name_says():
  params = params_of(DECODER_CONFIG)
  depth = DECODER_CONFIG.num_layers
  pieces = {"0:1": jax.tree.map(lambda x: x[:1], params["layers"]), f"1:{depth}": params["layers"]}
  with pytest.raises(ValueError, match=f"layers/1:{depth}/.* holds {depth} layers and its name says {depth - 1}"):
    to_named({**params, "layers": pieces}, DECODER_CONFIG)


def test_a_bert_with_prefix_pooler_and_position_ids(tmp_path):
  params = params_of(ENCODER_CONFIG)
  save_directory(params, ENCODER_CONFIG, tmp_path / "a")
  tensors = {f"bert.{name}": x for name, x in to_named(params, ENCODER_CONFIG).items()}
  tensors |= {"bert.embeddings.position_ids": np.arange(16)[None], "bert.pooler.dense.weight": np.zeros((12, 12))}
  save_file(tensors, tmp_path / "a" / "model.safetensors")
  assert_same(load_directory(tmp_path / "a")[0], params)


STRETCHED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(("change", "message"), [
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling = .* is not supported"),
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_parameters = .* is not supported"),
    ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta must be a positive float"),
    ({"rope_scaling": STRETCHED | {"low_freq_factor": 4.0}}, "low_freq_factor must be below high_freq_factor"),
    ({"rope_scaling": STRETCHED | {"factor": 0}}, "factor must be a positive float; got 0"),
    ({"rope_scaling": STRETCHED | {"mscale": 2.0}}, "rope_scaling = .* is not supported"),
    ({"rope_scaling": "llama3"}, "rope_scaling = 'llama3' is not supported"),
    ({"attention_bias": True}, "attention_bias = True is not supported"),
    ({"mlp_bias": True}, "mlp_bias = True"),
    ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported; supported: 'silu'"),
    ({"logits_scaling": 8.0}, "logits_scaling = 8.0 is not supported; it is not known"),
    ({"model_type": "lama"}, "model_type 'lama' is not supported; nearest: llama"),
    ({"model_type": "mistral", "sliding_window": 16}, "sliding_window = 16"),
    ({"model_type": "mistral", "max_position_embeddings": 8192}, "sliding_window = None"),
    ({"hidden_size": None}, "hidden_size must be a positive int; got None"),
    ({"hidden_size": -12}, "hidden_size must be a positive int; got -12"),
    ({"hidden_size": True}, "hidden_size must be a positive int; got True"),
    ({"num_hidden_layers": 10**11}, "900000000000 tensors in layers are claimed"),
    ({"hidden_size": 10**11, "head_dim": 6}, "do not fit"),
    ({"eos_token_id": "x"}, "eos_token_id must be a token id"),
    ({"eos_token_id": [50, 2]}, "eos_token_id must be below vocab_size 50; got 50"),
    ({"pad_token_id": 50}, "pad_token_id must be below vocab_size 50; got 50"),
    ({"bos_token_id": 99}, "bos_token_id must be below vocab_size 50; got 99"),
    ({"hidden_act": "relu", "mlp_bias": True}, "hidden_act.*; mlp_bias|mlp_bias.*; hidden_act"),
])
def test_a_config_that_is_not_computed_exactly_is_refused(folder, change, message):
  path, _ = folder
  config = json.loads((path / "config.json").read_text())
  (path / "config.json").write_text(json.dumps(config | change))
  with pytest.raises(ValueError, match=message):
    load_directory(path)


@pytest.mark.parametrize("change", [
    {"rope_scaling": {"rope_type": "default"}}, {"rope_theta": None, "rope_parameters": {"rope_theta": 5e4}},
    {"model_type": "mistral", "sliding_window": None}, {"eos_token_id": [2, 5]}, {"some_new_switch": False},
])
def test_a_config_that_says_the_same_otherwise_is_read(folder, change):
  path, _ = folder
  config = json.loads((path / "config.json").read_text())
  (path / "config.json").write_text(json.dumps(config | change))
  assert load_directory(path)[1] == DECODER_CONFIG


@pytest.mark.parametrize("config, absent, want", [
    (DECODER_CONFIG, "rms_norm_eps", {"norm_eps": 1e-6}), (DECODER_CONFIG, "rope_theta", {"rope_theta": 10000.0}),
    (DECODER_CONFIG, "num_key_value_heads", {"num_kv_heads": 4}),
    (DECODER_CONFIG, "tie_word_embeddings", {"tie_embeddings": False}),
    (ENCODER_CONFIG, "layer_norm_eps", {"norm_eps": 1e-12}),
    (ENCODER_CONFIG, "max_position_embeddings", {"max_length": 512}),
    (ENCODER_CONFIG, "type_vocab_size", {"type_vocab_size": 2}),
])
def test_what_a_config_leaves_out_is_what_transformers_takes(tmp_path, config, absent, want):
  config = dataclasses.replace(config, norm_eps=3e-4, **({"type_vocab_size": 5} if config is ENCODER_CONFIG else {}))
  save_directory(params_of(config), config, tmp_path / "a")
  written = json.loads((tmp_path / "a/config.json").read_text())
  del written[absent]
  (tmp_path / "a/config.json").write_text(json.dumps(written))
  assert read_config(tmp_path / "a") == dataclasses.replace(config, **want)


@pytest.mark.parametrize(("file", "content", "message"), [
    ("modules.json", [{"type": "x.Transformer", "path": ""}, {"type": "x.Dense", "path": "d"}], "must list"),
    ("modules.json", {"a": 1}, "modules.json"),
    ("modules.json", [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "../.."}], "folder's name"),
    ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling must be mean or cls; got .'max_tokens'"),
    ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "pooling must be"),
])
def test_a_pooling_that_is_not_computed_is_refused(tmp_path, file, content, message):
  save_directory(params_of(ENCODER_CONFIG), ENCODER_CONFIG, tmp_path / "a")
  (tmp_path / "a" / file).write_text(json.dumps(content))
  with pytest.raises(ValueError, match=message):
    load_directory(tmp_path / "a")


def test_a_pad_token_of_an_encoder_without_a_row(tmp_path):
  save_directory(params_of(ENCODER_CONFIG), ENCODER_CONFIG, tmp_path / "a")
  file = tmp_path / "a" / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": 50}))
  with pytest.raises(ValueError, match="pad_token_id must be below vocab_size 50; got 50"):
    load_directory(tmp_path / "a")


def word_tokenizer(size, *, template=None):
  """One token a word, `w0`, `w1`, ...; with a template, what its post-processor puts before a text."""
  out = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
  out.pre_tokenizer = pre_tokenizers.Whitespace()
  if template is not None:
    out.post_processor = processors.TemplateProcessing(single="[X] $A", special_tokens=[("[X]", template)])
  return out


def test_a_special_token_that_the_tokenizer_lacks_is_not_written(tmp_path):
  config = dataclasses.replace(DECODER_CONFIG, bos_id=1, eos_id=49)
  save_directory(params_of(config), config, tmp_path / "a", tokenizer=word_tokenizer(20))
  written = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
  assert written["bos_token"] == "w1" and "eos_token" not in written


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows(tmp_path):
  params, path = params_of(DECODER_CONFIG), tmp_path / "a"
  save_directory(params, DECODER_CONFIG, path, tokenizer=word_tokenizer(50))
  assert load(path).tokenizer.get_vocab_size() == 50
  larger = word_tokenizer(50)
  larger.add_tokens(["<added>", "<another>"])
  for tokenizer, message in (
      (larger, r"2 tokens for which the embedding of 50 rows has none, such as '<added>' \(id 50\)"),
      (word_tokenizer(20, template=61), r"1 tokens .*'\[X\]' \(id 61\)")):
    with pytest.raises(ValueError, match=message):
      save_directory(params, DECODER_CONFIG, tmp_path / "b", tokenizer=tokenizer)
    tokenizer.save(str(path / "tokenizer.json"))
    with pytest.raises(ValueError, match=f"a: .*{message}"):
      load(path)
  assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("file", ["config.json", "modules.json", "1_Pooling/config.json"])
def test_a_key_that_occurs_twice(file, tmp_path):
  save_directory(params_of(ENCODER_CONFIG), ENCODER_CONFIG, tmp_path / "a")
  path = tmp_path / "a" / file
  path.write_text(path.read_text().replace("{", '{"idx": 0, "idx": 0,', 1))
  with pytest.raises(ValueError, match="'idx' occurs more than once"):
    load_directory(tmp_path / "a")


def test_no_config(tmp_path):
  with pytest.raises(FileNotFoundError, match="no config.json"):
    load_directory(tmp_path)
