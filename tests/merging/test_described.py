"""The config that is written describes the tensors that are written, in every architecture."""

import json

import numpy as np
import pytest

from jaxft.merging.streaming import merge, plan_merge
from jaxft.merging.streaming.described import describe_depths, faults
from tests.merging.checkpoints import WIDTH, configure, decoder, family, read, recipe, write

W = np.ones(2, np.float32)


def stacks(**depths):
  """Tensors of stacks: `{"encoder.block": 2}` with dots for double underscores."""
  return {f"{stack.replace('__', '.')}.{i}.w": W for stack, depth in depths.items() for i in range(depth)}


def described(config, held, chosen):
  return describe_depths(config, held, {stack: (held[stack], layers) for stack, layers in chosen.items()})


T5 = {"model_type": "t5", "num_layers": 4, "num_decoder_layers": 4, "d_model": 4}
BART = {"encoder_layers": 4, "decoder_layers": 4, "num_hidden_layers": 4}
CLIP = {"text_config": {"num_hidden_layers": 4, "layer_types": list("abcd")}, "vision_config": {"num_hidden_layers": 4}}


@pytest.mark.parametrize("config, held, chosen, want", [
    (T5, {"encoder.block": 4, "decoder.block": 4}, {"encoder.block": [0, 1, 2, 1, 2, 3], "decoder.block": [0, 1, 3]},
     T5 | {"num_layers": 6, "num_decoder_layers": 3}),
    # A config that leaves the decoder's number out means the encoder's.
    ({"model_type": "t5", "num_layers": 4}, {"encoder.block": 4, "decoder.block": 4}, {"encoder.block": [0, 3]},
     {"model_type": "t5", "num_layers": 2, "num_decoder_layers": 4}),
    # BART's num_hidden_layers repeats encoder_layers.
    (BART, {"model.encoder.layers": 4, "model.decoder.layers": 4},
     {"model.decoder.layers": [0]}, {"encoder_layers": 4, "decoder_layers": 1, "num_hidden_layers": 4}),
    (BART, {"model.encoder.layers": 4, "model.decoder.layers": 4},
     {"model.encoder.layers": [0]}, {"encoder_layers": 1, "decoder_layers": 4, "num_hidden_layers": 1}),
    (CLIP, {"text_model.encoder.layers": 4, "vision_model.encoder.layers": 4}, {"text_model.encoder.layers": [3, 0]},
     {"text_config": {"num_hidden_layers": 2, "layer_types": ["d", "a"]}, "vision_config": {"num_hidden_layers": 4}}),
    (CLIP, {"language_model.model.layers": 4, "vision_tower.vision_model.encoder.layers": 4},
     {"vision_tower.vision_model.encoder.layers": [0]}, CLIP | {"vision_config": {"num_hidden_layers": 1}}),
    ({"num_hidden_layers": 4, "vision_config": {"depth": 4}}, {"model.layers": 4, "visual.blocks": 4},
     {"model.layers": [0, 1]}, {"num_hidden_layers": 2, "vision_config": {"depth": 4}}),
    ({"text_config": {"num_hidden_layers": 4}, "vision_config": {"depth": 4}}, {"model.layers": 4, "visual.blocks": 4},
     {"model.layers": [0, 1]}, {"text_config": {"num_hidden_layers": 2}, "vision_config": {"depth": 4}}),
    ({"num_layers": 4, "num_single_layers": 4}, {"transformer_blocks": 4, "single_transformer_blocks": 4},
     {"single_transformer_blocks": [0]}, {"num_layers": 4, "num_single_layers": 1}),
    # Other numbers that happen to be the same stay.
    ({"n_layer": 4, "n_head": 4, "max_window_layers": 4}, {"h": 4}, {"h": [0]},
     {"n_layer": 1, "n_head": 4, "max_window_layers": 4}),
])
def test_each_stack_has_its_own_number(config, held, chosen, want):
  assert described(config, held, chosen) == (want, [])


def test_one_number_for_two_stacks_of_other_depths_is_refused():
  config, held = {"num_layers": 4}, {"encoder.block": 4, "decoder.block": 4}
  with pytest.raises(ValueError, match=r"num_layers, for encoder.block \(6\) and decoder.block \(3\)"):
    described(config, held, {"encoder.block": [0] * 6, "decoder.block": [0] * 3})
  assert described(config, held, {s: [0, 1] for s in held}) == ({"num_layers": 2}, [])


def test_a_stack_that_the_config_does_not_count_is_said():
  config, notes = described({"depths": 4}, {"h": 4}, {"h": [0, 1]})
  assert config == {"depths": 4} and "no number of layers for h, of which the output has 2 in place of 4" in notes[0]


def test_a_folder_with_two_stacks(tmp_path):
  tensors = stacks(encoder__block=4, decoder__block=4) | {"shared.weight": W}
  for i in range(2):
    write(tmp_path / f"m{i}", tensors, config=T5)
  cut = lambda *ranges: {"slices": [{"sources": [{"model": "$m0", "layer_range": list(r)}]} for r in ranges]}
  document = {"merge_method": "passthrough", "modules": {
      "encoder.block": cut((0, 3), (1, 4)), "decoder.block": cut((0, 3)), "default": {"models": [{"model": "$m0"}]}}}
  merge(configure(tmp_path / "m.yaml", document), tmp_path / "out")
  config = json.loads((tmp_path / "out/config.json").read_text())
  assert (config["num_layers"], config["num_decoder_layers"]) == (6, 3)
  assert read(tmp_path / "out").keys() == (stacks(encoder__block=6, decoder__block=3) | {"shared.weight": W}).keys()


LLAMA = {"model_type": "llama", "vocab_size": 4, "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1,
         "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}


def llama(layers):
  part = {"self_attn.q_proj": (4, 4), "self_attn.k_proj": (2, 4), "self_attn.v_proj": (2, 4),
          "self_attn.o_proj": (4, 4), "mlp.gate_proj": (8, 4), "mlp.up_proj": (8, 4), "mlp.down_proj": (4, 8),
          "input_layernorm": (4,), "post_attention_layernorm": (4,)}
  return {f"model.layers.{i}.{name}.weight": shape for i in range(layers) for name, shape in part.items()} | {
      "model.embed_tokens.weight": (4, 4), "model.norm.weight": (4,)}


@pytest.mark.parametrize("config, shapes, said", [
    (LLAMA, llama(1), []),
    (LLAMA | {"num_hidden_layers": 2}, llama(2), []),
    (LLAMA, llama(2), ["unknown model.layers.1.", "num_hidden_layers is 1, and model.layers has 2 layers"]),
    (LLAMA | {"vocab_size": 5}, llama(1), ["embed_tokens.weight has shape (4, 4), the config wants (5, 4)"]),
    (LLAMA | {"tie_word_embeddings": False}, llama(1), ["missing lm_head.weight (4, 4)"]),
    (LLAMA | {"num_key_value_heads": 2}, llama(1), ["k_proj.weight has shape (2, 4), the config wants (4, 4)"]),
])
def test_names_and_shapes_of_known_architectures(config, shapes, said):
  found = "; ".join(faults(config, shapes, LLAMA, llama(1)))
  assert all(part in found for part in said) and bool(said) == bool(found), found


def test_faults_that_the_first_model_had_are_its_own():
  broken = {name: shape for name, shape in llama(1).items() if "k_proj" not in name}
  assert faults(LLAMA, broken, LLAMA, broken) == []


def test_an_output_that_its_config_does_not_describe_is_not_written(tmp_path, monkeypatch):
  from jaxft.merging.streaming import companions

  family(tmp_path, count=1)
  monkeypatch.setattr(companions, "describe_depths", lambda config, held, chosen: (dict(config), []))
  document = {"merge_method": "passthrough", "slices": [{"sources": [{"model": "$m0", "layer_range": [0, 2]}]}]}
  with pytest.raises(ValueError, match="cannot describe the output: num_hidden_layers is 3, and model.layers has 2"):
    merge(configure(tmp_path / "m.yaml", document), tmp_path / "out")
  assert not (tmp_path / "out").exists()


# Dtypes.

def dtypes(folder):
  return {str(x.dtype) for x in read(folder).values()}


def test_without_a_dtype_the_models_stays(tmp_path):
  """Also of embeddings that are aligned and matrices with an adapter, which are computed in float32."""
  from tests.merging.test_config import adapter, tokenizer

  family(tmp_path, count=2, dtype="bfloat16", vocab=4)
  for name in ("base", "m0", "m1"):
    tokenizer(tmp_path / name, list("uabc"))
  adapter(tmp_path / "lora")
  document = recipe("linear", count=2, per_model={"weight": [1, 1]}, base=False, tokenizer_source="union")
  document["models"][0]["model"] = "$m0+$lora"
  merged = merge(configure(tmp_path / "m.yaml", document), tmp_path / "out")
  assert dtypes(tmp_path / "out") == {"bfloat16"} and len(merged.notes) == 1  # on the weights
  assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "bfloat16"


def test_models_of_two_dtypes_give_float32(tmp_path):
  for order in (("bfloat16", "float16"), ("float16", "float32"), ("float32", "bfloat16")):
    for i, dtype in enumerate(order):
      write(tmp_path / f"m{i}", decoder(i), dtype=dtype)
    config = configure(tmp_path / "m.yaml", recipe("linear", count=2, per_model={"weight": [1, 1]}, base=False))
    merge(config, tmp_path / "out", overwrite=True)
    assert dtypes(tmp_path / "out") == {"float32"}
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "float32"


def test_a_model_of_several_dtypes_is_said(tmp_path):
  from jaxft.formats.safetensors import save_file

  family(tmp_path, count=1, dtype="bfloat16")
  held = read(tmp_path / "m0")
  held["model.norm.weight"] = np.ones(WIDTH, np.float32)
  save_file(held, tmp_path / "m0" / "model.safetensors")
  document = {"merge_method": "passthrough", "models": [{"model": "$m0"}]}
  merged = merge(configure(tmp_path / "m.yaml", document), tmp_path / "out")
  assert [n for n in merged.notes if "tensors of bfloat16, float32" in n and "config.json says bfloat16" in n]
  assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "bfloat16"


# Kinds of models.

@pytest.mark.parametrize("config, tensors, said", [
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, {},
     "quantization_config in its config.json says gptq"),
    ({"text_config": {"quantization_config": {"quant_method": "bitsandbytes"}}}, {}, "says bitsandbytes"),
    ({}, {"model.layers.0.q.qweight": np.ones((2, 2), np.int32)}, "it holds model.layers.0.q.qweight"),
    ({}, {"model.layers.0.q.weight_scale_inv": W}, "it holds model.layers.0.q.weight_scale_inv"),
    ({}, {"model.layers.0.q.SCB": W}, "it holds model.layers.0.q.SCB"),
    ({}, {"model.layers.0.q.weight": np.ones((2, 2), np.uint8)}, "it holds model.layers.0.q.weight"),
    ({}, {"model.layers.0.mlp.down_proj_blocks": np.ones((2, 2), np.uint8)}, "down_proj_blocks"),
])
@pytest.mark.parametrize("method", ["linear", "passthrough"])
def test_quantized_models_are_refused(method, config, tensors, said, tmp_path):
  for i in range(2):
    write(tmp_path / f"m{i}", decoder(i) | tensors, config=config)
  count = 1 if method == "passthrough" else 2
  document = recipe(method, count=count, per_model={} if count == 1 else {"weight": [1, 1]}, base=False)
  with pytest.raises(ValueError, match=f"m0 is quantized .*{said}"):
    plan_merge(configure(tmp_path / "m.yaml", document))


def test_models_of_other_kinds_are_said(tmp_path):
  config = {"num_attention_heads": 4, "rope_parameters": {"rope_theta": 1e4}, "eos_token_id": 2, "use_cache": True}
  write(tmp_path / "m0", decoder(0), config=config)
  other = config | {"model_type": "mistral", "num_attention_heads": 2, "rope_parameters": {"rope_theta": 5e5},
                    "eos_token_id": 3, "use_cache": False, "pad_token_id": 0}
  write(tmp_path / "m1", decoder(1), config=other)
  path = configure(tmp_path / "m.yaml", recipe("linear", count=2, per_model={"weight": [1, 1]}, base=False))
  note = plan_merge(path).notes[-1]
  for said in ("m1 differ in", "model_type (llama and mistral)", "num_attention_heads (4 and 2)",
               "rope_parameters.rope_theta (10000.0 and 500000.0)", "the output has that of"):
    assert said in note, note
  assert "token" not in note and "cache" not in note
