"""GGUF files as llama.cpp's own reader and this library read them."""

import jax
import numpy as np
import pytest

from jaxft.formats import load
from jaxft.formats.gguf_llama import NAMES
from jaxft.formats.gguf_write import save_gguf
from jaxft.models import decoder, encoder


@pytest.fixture(scope="module")
def model():
  return load("smollm2-135m:tiny")


@pytest.mark.parametrize("kind, within", [("F16", 2**-11), ("Q8_0", 1 / 127)])
def test_what_is_written_is_read(model, tmp_path, kind, within):
  gguf = pytest.importorskip("gguf")
  save_gguf(model.params, model.config, tmp_path / "m.gguf", kind=kind, tokenizer=model.tokenizer,
            chat_template=model.chat_template, name="tiny")
  again = load(tmp_path / "m.gguf")
  assert again.config == model.config and again.chat_template == model.chat_template
  text = "Fine-tuning, 1234 times: héllo <|im_end|>\n"
  assert again.tokenizer.encode(text).ids == model.tokenizer.encode(text).ids
  for one, other in zip(jax.tree.leaves(model.params), jax.tree.leaves(again.params), strict=True):
    assert np.abs(one - other).max() <= within * np.abs(one).max()
  # The reader of llama.cpp's own package, without a line of this library.
  reader = gguf.GGUFReader(tmp_path / "m.gguf")
  fields = {name: field.contents() for name, field in reader.fields.items()}
  assert fields["general.architecture"] == "llama" and fields["llama.block_count"] == model.config.num_layers
  assert fields["tokenizer.ggml.tokens"][17] == model.tokenizer.id_to_token(17)
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  assert len(tensors) == (len(NAMES) - 3) * model.config.num_layers + 2  # a tied head is no tensor
  kinds = {tensor.tensor_type.name for tensor in reader.tensors}
  assert kinds == {"F32", "F16"} if kind == "F16" else "F32" in kinds
  up = gguf.quants.dequantize(tensors["blk.1.ffn_up.weight"].data, tensors["blk.1.ffn_up.weight"].tensor_type)
  wanted = np.asarray(model.params["layers"]["mlp"]["up"]["kernel"][1]).T
  assert np.abs(up - wanted).max() <= within * np.abs(wanted).max()


def test_rows_that_blocks_divide_are_in_blocks_and_others_in_half_precision(tmp_path):
  gguf = pytest.importorskip("gguf")
  config = decoder.DecoderConfig(
      vocab_size=40, dim=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=48, tie_embeddings=False)
  params = decoder.init(jax.random.key(0), config)
  save_gguf(params, config, tmp_path / "m.gguf", kind="Q8_0")
  kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
  assert kinds["blk.0.attn_q.weight"] == kinds["output.weight"] == "Q8_0" and kinds["output_norm.weight"] == "F32"
  assert kinds["blk.0.ffn_down.weight"] == "F16"  # 48 columns


def test_what_cannot_be_written_leaves_nothing(model, tmp_path):
  with pytest.raises(ValueError, match="kind must be one of F16, Q8_0; got 'Q4_K'"):
    save_gguf(model.params, model.config, tmp_path / "m.gguf", kind="Q4_K")
  large = {**model.params, "embed": {"tokens": {"embedding": model.params["embed"]["tokens"]["embedding"] + 1e6}}}
  with pytest.raises(ValueError, match="embed/tokens/embedding holds numbers that half precision does not"):
    save_gguf(large, model.config, tmp_path / "m.gguf")
  other = load("minilm-l6:tiny")
  with pytest.raises(ValueError, match="must be a byte-level BPE"):
    save_gguf(model.params, model.config, tmp_path / "m.gguf", tokenizer=other.tokenizer)
  assert isinstance(other.config, encoder.EncoderConfig) and not list(tmp_path.iterdir())


def test_the_tokens_that_end_an_answer_and_how_it_is_drawn(model, tmp_path):
  gguf = pytest.importorskip("gguf")
  said = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1, "max_length": 9}
  save = lambda name, **options: save_gguf(
      model.params, model.config, tmp_path / name, tokenizer=model.tokenizer, **options)
  save("m.gguf", end_ids=(model.config.eos_id, 5, 7), generation=said)
  assert load(tmp_path / "m.gguf").end_ids == (5, 7)
  fields = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()}
  assert fields["tokenizer.ggml.eot_token_id"] == 5 and fields["tokenizer.ggml.eom_token_id"] == 7
  drawn = {name.removeprefix("general.sampling."): x for name, x in fields.items() if ".sampling." in name}
  assert drawn == pytest.approx({"temp": 0.6, "top_k": 20, "top_p": 0.95, "penalty_repeat": 1})
  save("plain.gguf", generation={**said, "do_sample": False})
  assert not any(".sampling." in name or "eot" in name for name in gguf.GGUFReader(tmp_path / "plain.gguf").fields)
  with pytest.raises(ValueError, match=r"end_ids must be at most 2 beside the config's eos_id .* got \[3, 4, 5\]"):
    save("x.gguf", end_ids=(3, 4, 5))
