"""Adapters in a merge whose modules were saved whole: which tensors they replace, and what is refused."""

import json

import numpy as np
import pytest

from jaxft.formats.safetensors import save_file
from jaxft.merging.streaming.recipes import merge, plan_merge
from tests.merging.checkpoints import WIDTH, configure, family, read, write

UP, NORM, TABLE = "model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"
RNG = np.random.default_rng(3)
A, B = RNG.normal(size=(2, WIDTH)).astype(np.float32), RNG.normal(size=(2 * WIDTH, 2)).astype(np.float32)


def adapter(folder, whole, **settings):
  """LoRA of one matrix, which adds 3 B A, with tensors that were saved whole beside it."""
  folder.mkdir()
  tensors = {UP.replace("weight", f"lora_{name}.weight"): x for name, x in (("A", A), ("B", B))} | whole
  save_file({f"base_model.model.{name}": x for name, x in tensors.items()}, folder / "adapter_model.safetensors")
  (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6} | settings))
  return folder


def draw(*shape):
  return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def test_what_was_saved_whole_takes_the_place_of_the_model_s(tmp_path):
  held = family(tmp_path, count=2, dtype="bfloat16")
  norm = draw(WIDTH)
  adapter(tmp_path / "lora", {NORM: norm}, modules_to_save=["norm"])
  document = {"merge_method": "task_arithmetic", "base_model": "$base", "dtype": "float32", "models": [
      {"model": "$m0+$lora", "parameters": {"weight": 0.5}}, {"model": "$m1", "parameters": {"weight": 0.25}}]}
  merge(configure(tmp_path / "m.yaml", document), tmp_path / "out")
  out, wide = read(tmp_path / "out"), lambda name, key: held[name][key].astype(np.float32)
  vector = lambda key, tuned: 0.5 * (tuned - wide("base", key)) + 0.25 * (wide("m1", key) - wide("base", key))
  np.testing.assert_allclose(out[NORM], wide("base", NORM) + vector(NORM, norm), rtol=1e-5, atol=1e-5)
  tuned = wide("m0", UP) + 3 * B @ A
  np.testing.assert_allclose(out[UP], wide("base", UP) + vector(UP, tuned), rtol=1e-4, atol=1e-4)
  # Without a dtype the output has that of the model, and not that of the adapter's file.
  del document["dtype"]
  merge(configure(tmp_path / "m.yaml", document), tmp_path / "same")
  assert {x.dtype.name for x in read(tmp_path / "same").values()} == {"bfloat16"}


def test_an_adapted_matrix_has_the_weights_that_were_saved_with_it(tmp_path):
  family(tmp_path, count=1)
  whole = draw(2 * WIDTH, WIDTH)
  adapter(tmp_path / "lora", {UP.replace("weight", "base_layer.weight"): whole})
  merge(configure(tmp_path / "m.yaml", {"merge_method": "passthrough", "models": [{"model": "$m0+$lora"}]}),
        tmp_path / "out")
  np.testing.assert_allclose(read(tmp_path / "out")[UP], whole + 3 * B @ A, rtol=1e-5, atol=1e-5)


def test_a_head_that_another_model_lacks_is_refused_as_ever(tmp_path):
  family(tmp_path, count=1)
  adapter(tmp_path / "lora", {"score.weight": draw(3, WIDTH)}, modules_to_save=["classifier", "score"],
          task_type="SEQ_CLS")
  document = {"merge_method": "task_arithmetic", "base_model": "$base", "models": [
      {"model": "$m0+$lora", "parameters": {"weight": 1}}]}
  with pytest.raises(ValueError, match=r"score.weight is missing in .*base \(it is in .*m0"):
    plan_merge(configure(tmp_path / "m.yaml", document))


@pytest.mark.parametrize("whole, settings, said", [
    ({NORM: (3,)}, {"modules_to_save": ["norm"]}, r"model.norm.weight has shape \(3,\); in .*m0 it has \(12,\)"),
    ({"model.extra.weight": (3,)}, {"modules_to_save": ["norm"]}, "modules_to_save name norm, and the file holds no"),
    ({"model.extra.weight": (3,)}, {}, "model.extra.weight is not in .*m0"),
    ({NORM: (WIDTH,)}, {"modules_to_save": "norm"}, "modules_to_save must be a list of names; got 'norm'"),
    ({"model.embed_tokens.lora_embedding_A": (2, 20)}, {}, "lora_embedding_A' is no low-rank factor of a matrix"),
    ({"model.embed_tokens.token_adapter.trainable_tokens_delta": (2, 20)}, {}, "no low-rank factor of a matrix"),
    ({UP.replace("weight", "lora_magnitude_vector.weight"): (2,)}, {}, "no low-rank factor of a matrix"),
    ({}, {"use_dora": True}, "use_dora=True is not added here; make the whole model of it with jaxft convert"),
])
def test_what_does_not_fit(whole, settings, said, tmp_path):
  family(tmp_path, count=1)
  adapter(tmp_path / "lora", {name: draw(*shape) for name, shape in whole.items()}, **settings)
  config = configure(tmp_path / "m.yaml", {"merge_method": "passthrough", "models": [{"model": "$m0+$lora"}]})
  with pytest.raises(ValueError, match=said):
    plan_merge(config)


def test_an_adapter_names_its_model(tmp_path):
  held = family(tmp_path, count=1)
  config = configure(tmp_path / "m.yaml", {"merge_method": "passthrough", "models": [{"model": "$lora"}]})
  adapter(tmp_path / "lora", {}, base_model_name_or_path=str(tmp_path / "m0"))
  merge(config, tmp_path / "out")
  np.testing.assert_allclose(read(tmp_path / "out")[UP], held["m0"][UP] + 3 * B @ A, rtol=1e-5, atol=1e-5)
  # The model that it names is one that is read: no output may hold it.
  with pytest.raises(ValueError, match="out .*holds"):
    merge(config, tmp_path, overwrite=True)
  for named in (None, "org/model"):
    settings = {"peft_type": "LORA", "base_model_name_or_path": named}
    (tmp_path / "lora/adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"is an adapter, which goes with {named!r}, and that is not here"):
      plan_merge(config)


@pytest.mark.parametrize("ours, theirs", [("", "bert."), ("bert.", "")])
def test_a_trunk_is_the_same_at_either_depth(ours, theirs, tmp_path):
  """An adapter of a trunk alone, and of one inside a larger model, whose names are one level deeper."""
  name, weight, bias = "encoder.layer.0.dense", draw(WIDTH, WIDTH), draw(WIDTH)
  write(tmp_path / "m0", {f"{ours}{name}.weight": weight, f"{ours}{name}.bias": bias})
  folder = tmp_path / "lora"
  folder.mkdir()
  tensors = {"lora_A.weight": A, "lora_B.weight": B[:WIDTH], "base_layer.bias": bias + 1}
  save_file({f"base_model.model.{theirs}{name}.{part}": x for part, x in tensors.items()},
            folder / "adapter_model.safetensors")
  (folder / "adapter_config.json").write_text(json.dumps(
      {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "lora_only"}))
  merge(configure(tmp_path / "m.yaml", {"merge_method": "passthrough", "models": [{"model": "$m0+$lora"}]}),
        tmp_path / "out")
  out = read(tmp_path / "out")
  np.testing.assert_allclose(out[f"{ours}{name}.weight"], weight + 3 * B[:WIDTH] @ A, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(out[f"{ours}{name}.bias"], bias + 1)
