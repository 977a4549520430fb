"""Whole merges by `mergekit-yaml` and by the streaming engine, from one configuration file, element by element."""

import shutil

import numpy as np
import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxft.merging.streaming import merge
from tests.merging.checkpoints import configure, decoder, read, recipe, write
from tests.parity.libraries import library

their_config, their_merge, their_options = map(library, ("mergekit.config", "mergekit.merge", "mergekit.options"))


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 12, "intermediate_size": 24, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 6, "hidden_act": "silu", "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
}
WORDS = {
    "base": ["u", "a", "b"], "m0": ["u", "a", "b", "c", "d"], "m1": ["u", "b", "a", "d", "e"], "m2": ["u", "a", "b"]}


def llama(seed, *, near=None, **shape):
  """All tensors of a Llama model."""
  tensors = decoder(seed, near=None if near is None else {n: near[n] for n in decoder(0, **shape)}, **shape)
  rng = np.random.default_rng(seed + 100)
  size = {"mlp.gate_proj": (24, 12), "mlp.down_proj": (12, 24), "self_attn.k_proj": (12, 12),
          "self_attn.v_proj": (12, 12), "self_attn.o_proj": (12, 12), "post_attention_layernorm": (12,)}
  for layer in range(shape.get("layers", 3)):
    for part, shape_ in size.items():
      name = f"model.layers.{layer}.{part}.weight"
      draw = rng.normal(size=shape_).astype(np.float32)
      tensors[name] = draw if near is None else near[name] + 0.1 * draw
  return tensors


def folder(path, tensors, words=WORDS["base"], **config):
  write(path, tensors, config=CONFIG | config)
  made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="u"))
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  made.add_special_tokens(["<s>"])
  made.save(str(path / "tokenizer.json"))
  (path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}')


@pytest.fixture
def models_in(tmp_path):
  """Four models of one vocabulary in a folder."""
  base = llama(0, vocab=4)
  folder(tmp_path / "base", base)
  for i in range(3):
    folder(tmp_path / f"m{i}", llama(i + 1, near=base, vocab=4))
  return tmp_path


def both(path, *documents, **options):
  """`(ours, theirs)`, tensors by name, of one configuration."""
  config = configure(path / "merge.yaml", *documents)
  merge(config, path / "ours", overwrite=True, **options)
  given = their_config.MergeConfiguration.model_validate(yaml.safe_load(config.read_text()))
  their_merge.run_merge(given, str(path / "theirs"),
                        options=their_options.MergeOptions(quiet=True, trust_remote_code=False))
  return read(path / "ours"), read(path / "theirs")


def assert_same(ours, theirs, tolerance=1e-6):
  assert ours.keys() == theirs.keys()
  for name, x in theirs.items():
    assert ours[name].dtype == x.dtype
    np.testing.assert_allclose(ours[name], x, atol=tolerance, rtol=0, err_msg=name)


WEIGHTS = {"weight": [1.0, [0, 0.5, 1], [{"filter": "mlp", "value": [0.2, 0.8]}, {"value": 0.3}]]}


@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "breadcrumbs", "linear", "sce", "model_stock"])
def test_gradients_filters_and_scopes(method, models_in):
  per_model = {} if method in ("sce", "model_stock") else WEIGHTS
  parameters = {
      "linear": {"normalize": False}, "sce": {"select_topk": [{"filter": "attn", "value": 0.4}, {"value": 0.9}]}}
  shared = {"density": [{"filter": "q_proj", "value": 0.3}, {"value": [0.4, 1.0]}]}
  given = parameters.get(method, {} if method == "model_stock" else shared)
  document = recipe(method, per_model=per_model, parameters=given, base=method != "linear", dtype="float32")
  assert_same(*both(models_in, document))


def test_slices_of_one_and_of_several_models(models_in):
  one = lambda model, *layers, **more: {"model": f"${model}", "layer_range": list(layers), **more}
  assert_same(*both(models_in, {"merge_method": "passthrough", "dtype": "float32", "slices": [
      {"sources": [one("m0", 0, 2)]}, {"sources": [one("m1", 1, 3, parameters={"scale": [
          {"filter": "o_proj", "value": 0.0}, {"value": 1.0}]})]}]}))
  shutil.rmtree(models_in / "theirs")
  assert_same(*both(models_in, {"merge_method": "slerp", "base_model": "$m0", "dtype": "float32", "slices": [
      {"sources": [one("m0", 0, 2), one("m1", 1, 3)], "parameters": {"t": [0.1, 0.9]}},
      {"sources": [one("m0", 2, 3), one("m1", 0, 1)]}],
      "parameters": {"t": [{"filter": "mlp", "value": 0.2}, {"value": [0, 1]}]}}))


def test_dtypes(models_in):
  per_model = {"weight": [1.0] * 3, "density": [0.5] * 3}
  document = recipe("ties", per_model=per_model, dtype="float32", out_dtype="bfloat16")
  assert_same(*both(models_in, document), tolerance=0)


def test_a_head_that_one_model_stores(models_in):
  tensors = read(models_in / "m1")
  folder(models_in / "m1", tensors | {"lm_head.weight": 2 * tensors["model.embed_tokens.weight"]})
  assert_same(*both(models_in, recipe("linear", per_model={"weight": [1.0, 2.0, 3.0]}, base=False, dtype="float32")))


@pytest.mark.parametrize("tokenizer", [
    {"source": "union"}, {"source": "base"}, {"source": "$m1"}, {"source": "union", "pad_to_multiple_of": 8},
    {"source": "union", "tokens": {"d": {"source": "$m0", "force": True}, "new": {"source": {
        "kind": "model_token", "model": "$m1", "token": "e"}}}},
])
def test_vocabularies(tokenizer, tmp_path):
  base = llama(0, vocab=6)
  grown = lambda tensors, rows: tensors | {
      "model.embed_tokens.weight": np.random.default_rng(rows).normal(size=(rows, 12)).astype(np.float32)}
  for i, (name, words) in enumerate(WORDS.items()):
    folder(tmp_path / name, grown(llama(i, near=base, vocab=6), len(words) + 1), words)
  document = recipe("task_arithmetic", per_model={"weight": [0.3, 0.5, 0.2]}, dtype="float32", tokenizer=tokenizer)
  ours, theirs = both(tmp_path, document)
  by_token = []
  for held, path in ((ours, "ours"), (theirs, "theirs")):
    ids = Tokenizer.from_file(str(tmp_path / path / "tokenizer.json")).get_vocab()
    by_token.append({word: held["model.embed_tokens.weight"][i] for word, i in ids.items()})
  assert_same(*by_token)
  assert len(ours["model.embed_tokens.weight"]) == len(theirs["model.embed_tokens.weight"])


def test_a_t5_of_other_depths_is_whole_in_transformers(tmp_path):
  """Encoder and decoder cut to other numbers of layers: no tensor is missing, left over, or drawn at random."""
  from transformers import T5Config, T5ForConditionalGeneration

  config = T5Config(vocab_size=8, d_model=4, d_kv=2, d_ff=8, num_heads=2, num_layers=4, decoder_start_token_id=0)
  T5ForConditionalGeneration(config).save_pretrained(tmp_path / "m0")
  cut = lambda *ranges: {"slices": [{"sources": [{"model": "$m0", "layer_range": list(r)}]} for r in ranges]}
  merge(configure(tmp_path / "m.yaml", {"merge_method": "passthrough", "modules": {
      "encoder.block": cut((0, 3), (1, 4)), "decoder.block": cut((0, 3)), "default": {"models": [{"model": "$m0"}]}}}),
      tmp_path / "out")
  model, info = T5ForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
  assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
  assert (model.config.num_layers, model.config.num_decoder_layers) == (6, 3)
