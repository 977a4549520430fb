"""mergekit configurations: what is read, how parameters are resolved, and what is refused in one clear line."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxft.formats.safetensors import save_file
from jaxft.merging.streaming import merge, parse_recipes, plan_merge
from jaxft.merging.streaming.adapters import read_adapter
from jaxft.merging.streaming.recipe_files.settings import resolve
from jaxft.merging.streaming.recipe_files.yaml_documents import read_yaml
from jaxft.merging.streaming.stacks import before_layers, find_stacks
from tests.merging.checkpoints import WIDTH, configure, decoder, family, read, recipe, write

BASE = {"merge_method": "ties", "base_model": "b", "models": [{"model": "a", "parameters": {"weight": 1}}]}


def parse(document):
  import yaml

  return parse_recipes(yaml.safe_dump(document))


@pytest.mark.parametrize("change, said", [
    ({"merge_method": "tiees"}, ("merge_method", "'tiees'", "ties", "della")),
    ({"merge_method": None}, ("lacks merge_method",)),
    ({"modles": []}, ("'modles'", "models", "base_model")),
    ({"slices": [{"sources": []}]}, ("exactly one", "models and slices")),
    ({"models": None}, ("exactly one", "none")),
    ({"models": {}}, ("exactly one", "none")),
    ({"models": "a"}, ("models must be a list", "'a'")),
    ({"models": [{"modle": "a"}]}, ("models[0]", "'modle'", "model, parameters")),
    ({"models": [{"model": 3}]}, ("models[0].model", "3")),
    ({"models": [{"model": "a@main"}]}, ("models[0].model", "revision", "a@main")),
    ({"models": [{"model": {"model": {"path": "a", "revision": "main"}}}]},
     ("models[0].model.model.revision", "'main'")),
    ({"models": [{"model": {"model": {"path": "a", "foo": 1}}}]}, ("models[0].model.model", "'foo'", "path, revision")),
    ({"models": [{"model": {"model": {"revision": None}}}]}, ("models[0].model.model lacks path",)),
    ({"models": [{"model": {"model": "a", "lora": {"path": "b", "rank": 8}}}]}, ("models[0].model.lora", "'rank'")),
    ({"models": [{"model": {"model": "a", "lora": {"path": "b", "revision": "x"}}}]}, ("model.lora.revision", "'x'")),
    ({"base_model": {"model": "a", "lara": "b"}}, ("base_model", "'lara'", "model, lora")),
    ({"models": [{"model": "a"}, {"model": "a"}]}, ("a more than once",)),
    ({"base_model": None}, ("ties", "base_model")),
    ({"parameters": {"desnity": 1}}, ("parameters", "'desnity'", "density")),
    ({"parameters": {"density": {"values": 1}}}, ("parameters.density", "'values'", "filter, value")),
    ({"parameters": {"density": []}}, ("parameters.density", "[]")),
    ({"parameters": {"density": [1, {"value": 1}]}}, ("parameters.density",)),
    ({"parameters": [1]}, ("parameters must be a mapping",)),
    ({"dtype": "float8"}, ("dtype", "float32, float16, bfloat16", "'float8'")),
    ({"out_dtype": "int8"}, ("out_dtype", "'int8'")),
    ({"tokenizer": {"source": "union"}, "tokenizer_source": "base"}, ("tokenizer_source", "exclude")),
    ({"tokenizer": {"sorce": "union"}}, ("tokenizer", "'sorce'", "source, tokens, pad_to_multiple_of")),
    ({"tokenizer": {"pad_to_multiple_of": 0}}, ("pad_to_multiple_of", "0")),
    ({"tokenizer": {"tokens": {"<x>": {"source": {"kind": "none"}}}}}, ("<x>", "zero or model_token", "'none'")),
    ({"chat_template": 3}, ("chat_template", "3")),
    ({"models": None, "modules": {"default": {}}}, ("modules.default", "either models or slices")),
])
def test_what_it_does_not_know_is_named(change, said):
  document = {k: v for k, v in (BASE | change).items() if v is not None}
  with pytest.raises(ValueError) as e:
    parse(document)
  assert all(part in str(e.value) for part in said), e.value


@pytest.mark.parametrize("text, said", [
    ("", "empty"), ("{", "not valid YAML"), ("- 1", "must be a mapping"),
    ("!!python/object:os.system {}", "not valid YAML"),
    ("merge_method: ties\nmerge_method: linear",
     "the key 'merge_method' occurs twice in one mapping, in lines 1 and 2"),
    ("parameters: {weight: 1, weight: 0.5}", "the key 'weight' occurs twice"),
    ("[" * 100_000, "nests more than 32 deep"), ("a: &a [*a]", r"the alias \*a in line 1 contains itself"),
    ("a: &a {value: {filter: x, value: *a}}", "contains itself"),
    ("a: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"b{i}: &a{i + 1} [{','.join([f'*a{i}'] * 9)}]\n" for i in range(9)),
     "more than 100000 values once the aliases are written out"),
])
def test_files_that_are_no_configuration(text, said):
  with pytest.raises(ValueError, match=said):
    parse_recipes(text)


def test_aliases_and_merged_keys_are_read():
  text = "base: &b {weight: 1, density: 0.5}\nparameters: {<<: *b, density: 0.2}"
  assert read_yaml(text) == [{"base": {"weight": 1, "density": 0.5}, "parameters": {"weight": 1, "density": 0.2}}]


@pytest.mark.parametrize("layers", [None, [0], [2, 1], [-1, 2], [0, 1.5], "0-2"])
def test_layer_ranges(layers):
  source = {"model": "a", "layer_range": layers}
  with pytest.raises(ValueError, match="layer_range"):
    parse({"merge_method": "passthrough", "slices": [{"sources": [source]}]})


@pytest.mark.parametrize("method", ["ties", "slerp", "nuslerp", "multislerp"])
def test_slices_that_leave_the_base_out_are_refused(method):
  sources = [{"model": model, "layer_range": [0, 2], "parameters": {"weight": 1}} for model in "ab"]
  sources = [{k: v for k, v in s.items() if k != "parameters"} for s in sources] if method == "slerp" else sources
  document = {"merge_method": method, "base_model": "c", "slices": [{"sources": sources}]}
  with pytest.raises(ValueError, match=r"slices\[0\] lacks the base_model c; name it among the sources"):
    parse(document)
  assert parse(document | {"merge_method": "linear"})[0].modules[0].slices[0].base is None  # which takes no base


def test_slices_of_unequal_length():
  sources = [{"model": "a", "layer_range": [0, 2]}, {"model": "b", "layer_range": [0, 3]}]
  with pytest.raises(ValueError, match=r"one length; got \[2, 3\]"):
    parse({"merge_method": "linear", "slices": [{"sources": sources}]})


def test_parameters_without_effect_are_said():
  one, = parse(BASE | {"parameters": {"t": 0.5, "int8_mask": True}})
  assert len(one.notes) == 1 and "parameters.t has no effect: ties has" in one.notes[0]
  document = BASE | {"models": [{"model": "a", "parameters": {"weight": 1, "lambda": 2}}]}
  assert "models[0].parameters.lambda is not read" in parse(document)[0].notes[0]


# Resolution.

@pytest.mark.parametrize("setting, t, value", [
    (0.5, 0.3, 0.5), ("1e-3", 0, 1e-3), ([0, 1], 0.25, 0.25), ([0, 1, 3], 0.75, 2.0), ([4], 1.0, 4.0),
    ([0, 1], 1.0, 1.0),
    ([{"filter": "mlp", "value": 2}, {"value": 3}], 0, 2.0), ([{"filter": "attn", "value": 2}, {"value": 3}], 0, 3.0),
    ([{"filter": "mlp", "value": [0, 10]}], 0.5, 5.0), ({"filter": "*", "value": 1}, 0, 1.0),
    ([{"filter": "attn", "value": 2}], 0, 9.0), ([{"filter": "mlp", "value": 1}, {"filter": "up", "value": 2}], 0, 1.0),
])
def test_values_gradients_and_filters(setting, t, value):
  assert resolve("weight", [{}, {"weight": setting}], "layers.0.mlp.up.weight", t, 9.0) == value


def test_truth_values_are_chosen_not_interpolated():
  # The last point that the depth has passed, not the nearest.
  for depth, chosen in ((0.0, True), (0.49, True), (0.6, False), (0.9, False), (1.0, True)):
    assert resolve("normalize", [{"normalize": [True, False, True]}], "x", depth, True) is chosen
  with pytest.raises(ValueError, match="normalize must be true or false; got 0.5"):
    resolve("normalize", [{"normalize": 0.5}], "x", 0, True)
  for wrong in ("much", ".nan", float("nan"), float("inf"), "1e999", 10**400, True):
    with pytest.raises(ValueError, match="weight must be a finite number; got "):
      resolve("weight", [{"weight": wrong}], "x", 0, 1.0)
  assert resolve("max_iter", [{"max_iter": "20"}], "x", 0, 10) == 20
  with pytest.raises(ValueError, match="max_iter must be a whole number; got 2.5"):
    resolve("max_iter", [{"max_iter": [2, 3]}], "x", 0.5, 10)


def test_scopes_from_the_source_to_the_whole():
  scopes = [{"w": [{"filter": "x", "value": 1}]}, {"w": [{"filter": "y", "value": 2}]}, {"w": 3}]
  assert [resolve("w", scopes, name, 0, 0.0) for name in ("x", "y", "z")] == [1, 2, 3]


def test_gradients_along_the_layers_and_outside_of_them(tmp_path):
  family(tmp_path, count=1, layers=3)
  document = recipe("task_arithmetic", count=1, per_model={"weight": [[0, 1]]})
  document["parameters"] = {"lambda": [{"filter": "q_proj", "value": 5}, {"value": [1, 3]}]}
  plan, = plan_merge(configure(tmp_path / "m.yaml", document)).plans
  found = {t.name: (t.per_model["weight"][0], t.parameters["lambda"]) for t in plan.tensors}
  assert [found[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(3)] == [(0, 1), (0.5, 2), (1, 3)]
  assert [found[f"model.layers.{i}.self_attn.q_proj.weight"] for i in range(3)] == [(0, 5), (0.5, 5), (1, 5)]
  assert found["model.embed_tokens.weight"] == found["model.norm.weight"] == (0, 1)


def test_stacks_are_found_by_name_in_any_architecture():
  places = find_stacks([
      "0.auto_model.encoder.layer.0.w", "0.auto_model.encoder.layer.1.w", "0.auto_model.embeddings.w",
      "encoder.block.0.layer.0.wi", "encoder.block.0.layer.1.wi", "encoder.block.1.layer.0.wi",
      "encoder.block.1.layer.1.wi", "h.0.moe.experts.0.w", "h.0.moe.experts.1.w", "h.1.moe.experts.0.w",
      "h.1.moe.experts.1.w", "h.1", "fc.1.w", "fc.3.w",
  ]).places
  assert places["0.auto_model.encoder.layer.1.w"] == ("0.auto_model.encoder.layer", 1, "w")
  assert places["encoder.block.1.layer.0.wi"] == ("encoder.block", 1, "layer.0.wi")
  assert places["h.1.moe.experts.0.w"] == ("h", 1, "moe.experts.0.w")
  assert "h.1" not in places and "fc.3.w" not in places
  assert places["h.1.moe.experts.0.w"].name(7) == "h.7.moe.experts.0.w"


def test_what_comes_before_the_layers():
  before = [
      "model.embed_tokens.weight", "transformer.wte.weight", "vit.embeddings.cls_token", "patch_embed.proj.weight"]
  after = ["lm_head.weight", "model.norm.weight", "gpt_neox.embed_out.weight", "pooler.dense.weight", "ln_f.bias"]
  assert all(map(before_layers, before)) and not any(map(before_layers, after))


# Slices and modules.

def test_passthrough_stacks_layers_and_the_config_follows(tmp_path):
  held = family(tmp_path, count=2, layers=4)
  for name in held:
    write(tmp_path / name, held[name], config={"layer_types": ["a", "b", "c", "d"]})
  config = configure(tmp_path / "m.yaml", {"merge_method": "passthrough", "slices": [
      {"sources": [{"model": "$m0", "layer_range": [0, 3]}]},
      {"sources": [{"model": "$m1", "layer_range": [1, 4], "parameters": {
          "scale": [{"filter": "q_proj", "value": 2.0}, {"value": 1.0}]}}]}]})
  merge(config, tmp_path / "out")
  out = read(tmp_path / "out")
  origin = [("m0", 0), ("m0", 1), ("m0", 2), ("m1", 1), ("m1", 2), ("m1", 3)]
  for layer, (model, own) in enumerate(origin):
    np.testing.assert_array_equal(out[f"model.layers.{layer}.mlp.up_proj.weight"],
                                  held[model][f"model.layers.{own}.mlp.up_proj.weight"])
  q = "model.layers.{}.self_attn.q_proj.weight"
  np.testing.assert_array_equal(out[q.format(3)], 2 * held["m1"][q.format(1)])
  np.testing.assert_array_equal(out["model.embed_tokens.weight"], held["m0"]["model.embed_tokens.weight"])
  np.testing.assert_array_equal(out["model.norm.weight"], held["m1"]["model.norm.weight"])
  assert len(out) == 2 + 3 * 6
  written = json.loads((tmp_path / "out/config.json").read_text())
  assert written["num_hidden_layers"] == 6 and written["layer_types"] == ["a", "b", "c", "b", "c", "d"]


def test_slices_of_several_models(tmp_path):
  held = family(tmp_path, count=1, layers=3)
  config = configure(tmp_path / "m.yaml", {"merge_method": "slerp", "base_model": "$base", "slices": [{
      "sources": [{"model": "$base", "layer_range": [1, 3]}, {"model": "$m0", "layer_range": [0, 2]}],
      "parameters": {"t": [0, 1]}}]})
  merge(config, tmp_path / "out")
  out, name = read(tmp_path / "out"), "model.layers.{}.mlp.up_proj.weight"
  np.testing.assert_allclose(out[name.format(0)], held["base"][name.format(1)], atol=1e-6)
  np.testing.assert_allclose(out[name.format(1)], held["m0"][name.format(1)], atol=1e-6)


@pytest.mark.parametrize("change, said", [
    ({"layer_range": [0, 9]}, r"\[0, 9\] of .*m0 exceeds its 3 layers model.layers"),
    ({"model": "$nothing"}, "neither an existing path nor a preset"),
])
def test_slices_that_do_not_fit(change, said, tmp_path):
  family(tmp_path, count=1)
  source = {"model": "$m0", "layer_range": [0, 1]} | change
  config = configure(tmp_path / "m.yaml", {"merge_method": "passthrough", "slices": [{"sources": [source]}]})
  with pytest.raises(ValueError, match=said):
    plan_merge(config)


def test_modules_by_prefix(tmp_path):
  tensors = {f"{part}.layers.{i}.w": np.ones(2, np.float32) for part in ("text", "vision") for i in range(2)}
  tensors |= {"projector.w": np.ones(2, np.float32)}
  for i in range(2):
    write(tmp_path / f"m{i}", {n: x * (i + 1) for n, x in tensors.items()})
  both = [{"model": "$m0", "parameters": {"weight": 1}}, {"model": "$m1", "parameters": {"weight": 1}}]
  one = [{"sources": [{"model": "$m1", "layer_range": [1, 2], "parameters": {"weight": 1}}]}]
  document = {"merge_method": "linear", "modules": {"text": {"models": both}, "vision": {"slices": one}}}
  with pytest.raises(ValueError, match="projector.w the first; the module `default`"):
    plan_merge(configure(tmp_path / "m.yaml", document))
  document["modules"]["default"] = {"models": both[:1]}
  merge(configure(tmp_path / "m.yaml", document), tmp_path / "out")
  out = {name: x[0] for name, x in read(tmp_path / "out").items()}
  assert out == {"text.layers.0.w": 1.5, "text.layers.1.w": 1.5, "vision.layers.0.w": 2.0, "projector.w": 1.0}
  document = {"merge_method": "linear", "slices": one}
  with pytest.raises(ValueError, match=r"one stack of layers; .* text.layers \(2\), vision.layers \(2\); give each"):
    plan_merge(configure(tmp_path / "m.yaml", document))


# Several merges in one file.

def test_later_documents_use_earlier_ones(tmp_path):
  held = family(tmp_path)
  two = lambda a, b, **more: {"merge_method": "linear", "models": [
      {"model": a, "parameters": {"weight": 1}}, {"model": b, "parameters": {"weight": 1}}], **more}
  config = configure(
      tmp_path / "m.yaml", two("first", "$m2"), two("$m0", "$m1", name="first"), two("$m0", "$m2", name="idle"))
  planned = plan_merge(config)
  assert [p.recipe.name for p in planned.plans] == ["first", None]
  merged = merge(config, tmp_path / "out")
  assert [p.bytes_written for p in merged.plans] == [p.bytes_written for p in planned.plans]
  name = "model.norm.weight"
  want = ((held["m0"][name] + held["m1"][name]) / 2 + held["m2"][name]) / 2
  np.testing.assert_allclose(read(tmp_path / "out")[name], want, rtol=1e-6)
  assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_documents_in_a_circle_or_of_one_name(tmp_path):
  one = lambda model, name: {"merge_method": "passthrough", "models": [{"model": model}], "name": name}
  with pytest.raises(ValueError, match="need each other"):
    plan_merge(configure(tmp_path / "m.yaml", one("b", "a"), one("a", "b")))
  with pytest.raises(ValueError, match="have the name 'a'"):
    plan_merge(configure(tmp_path / "m.yaml", one("x", "a"), one("y", "a")))


# Models that do not fit each other.

def ties(**more):
  return recipe("ties", count=2, per_model={"weight": [1, 1]}, **more)


def changed(tmp_path, change, **document):
  held = family(tmp_path, count=2)
  tensors, options = dict(held["m1"]), {}
  change(tensors, options)
  write(tmp_path / "m1", tensors, **options)
  return configure(tmp_path / "m.yaml", ties(**document))


NORM, EMBED = "model.norm.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize("change, said", [
    (lambda t, o: t.pop(NORM), (f"1 tensors cannot be merged: {NORM} is missing in", "m1")),
    (lambda t, o: t.update(extra=np.ones(2, np.float32)), ("extra is missing in", "base")),
    (lambda t, o: t.update({NORM: np.ones(3, np.float32)}), (NORM, f"({WIDTH},) in", "(3,) in")),
    (lambda t, o: t.update({NORM: np.ones(WIDTH, np.int64)}),
     (NORM, "floating tensor in some", "float32 in", "int64 in")),
    (lambda t, o: t.update({EMBED: np.ones((30, WIDTH), np.float32)}), (EMBED, "vocabularies differ", "union")),
    (lambda t, o: t.update({"lm_head.weight": np.ones((9, 2), np.float32)}), ("lm_head.weight is missing in", "base")),
])
def test_faults_name_the_tensor_and_the_models(change, said, tmp_path):
  with pytest.raises(ValueError) as e:
    plan_merge(changed(tmp_path, change))
  assert all(part in str(e.value) for part in said), e.value


def test_a_head_that_only_some_store(tmp_path):
  def untie(tensors, options):
    tensors["lm_head.weight"] = 2 * tensors[EMBED]

  config = changed(tmp_path, untie, dtype="float32")
  merged = merge(config, tmp_path / "out")
  assert [n for n in merged.notes if "ties lm_head.weight" in n]
  assert "lm_head.weight" in read(tmp_path / "out")
  assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
  write(tmp_path / "m0", {n: x for n, x in read(tmp_path / "m0").items()}, config={"tie_word_embeddings": False})
  with pytest.raises(ValueError, match="lm_head.weight is missing in .*m0"):
    plan_merge(config)


def test_buffers_that_only_some_store(tmp_path):
  config = changed(tmp_path, lambda t, o: t.update({"rotary_emb.inv_freq": np.ones(2, np.float32)}))
  merged = merge(config, tmp_path / "o")
  assert [n for n in merged.notes if "inv_freq is left out" in n] and "rotary_emb.inv_freq" not in read(tmp_path / "o")


@pytest.mark.parametrize("parameters, said", [
    ({"density": 1.5}, "density must lie in"), ({"density": -1}, "density must lie in"),
    ({"density": [0.5, 1.2]}, r"model.layers.\d.*density must lie in"),
])
def test_parameters_out_of_range_name_the_tensor(parameters, said, tmp_path):
  family(tmp_path, count=2)
  with pytest.raises(ValueError, match=said):
    plan_merge(configure(tmp_path / "m.yaml", ties(parameters=parameters)))


def test_a_gradient_of_densities_may_begin_at_nothing(tmp_path):
  held = family(tmp_path, count=1)
  for method in ("ties", "dare_linear", "breadcrumbs", "della_linear"):
    parameters = {"density": [0, 1]} | ({"epsilon": [0, 0]} if method == "della_linear" else {})
    document = recipe(method, count=1, per_model={"weight": [1]}, parameters=parameters)
    merge(configure(tmp_path / "m.yaml", document), tmp_path / "out", overwrite=True)
    out, name = read(tmp_path / "out"), "model.layers.{}.mlp.up_proj.weight"
    np.testing.assert_array_equal(out[name.format(0)], held["base"][name.format(0)])
    np.testing.assert_allclose(out[name.format(2)], held["m0"][name.format(2)], atol=1e-6)


def test_a_parameter_that_is_missing(tmp_path):
  family(tmp_path, count=2)
  with pytest.raises(ValueError, match="ties needs a weight for each model"):
    plan_merge(configure(tmp_path / "m.yaml", recipe("ties", count=2)))
  document = recipe("linear", count=2, per_model={"weight": [1, 1]})
  with pytest.raises(ValueError, match="linear needs a weight for each model; the base_model .*base counts as one"):
    plan_merge(configure(tmp_path / "m.yaml", document))


def test_the_number_of_models(tmp_path):
  family(tmp_path, count=2)
  with pytest.raises(ValueError, match="slerp takes 1 model besides the base; got 2"):
    plan_merge(configure(tmp_path / "m.yaml", recipe("slerp", count=2, parameters={"t": 0.5})))


def test_a_base_that_is_not_the_base(tmp_path):
  family(tmp_path, count=1)
  config = configure(tmp_path / "m.yaml", recipe("ties", count=1, per_model={"weight": [1]}))
  assert not plan_merge(config).notes
  write(tmp_path / "base", decoder(99))
  note, = plan_merge(config).notes
  assert "m0 is 1." in note and "is it its base?" in note


def test_pickles_are_never_opened(tmp_path):
  family(tmp_path, count=1)
  (tmp_path / "m0" / "model.safetensors").rename(tmp_path / "m0" / "pytorch_model.bin")
  with pytest.raises(ValueError, match="m0: .*pytorch_model.bin.*safe_serialization"):
    plan_merge(configure(tmp_path / "m.yaml", recipe("ties", count=1, per_model={"weight": [1]})))


# Adapters.

def adapter(folder, **settings):
  folder.mkdir()
  rng = np.random.default_rng(7)
  a, b = (rng.normal(size=s).astype(np.float32) for s in ((2, WIDTH), (2 * WIDTH, 2)))
  save_file({f"base_model.model.model.layers.1.mlp.up_proj.lora_{k}.weight": x for k, x in (("A", a), ("B", b))},
            folder / "adapter_model.safetensors")
  (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6} | settings))
  return b @ a


def test_a_model_with_an_adapter(tmp_path):
  held = family(tmp_path, count=1)
  delta = adapter(tmp_path / "lora")
  document = {"merge_method": "task_arithmetic", "base_model": "$base", "models": [
      {"model": "$base+$lora", "parameters": {"weight": 0.5}}]}
  merge(configure(tmp_path / "m.yaml", document), tmp_path / "out")
  out, name = read(tmp_path / "out"), "model.layers.1.mlp.up_proj.weight"
  np.testing.assert_allclose(out[name], held["base"][name] + 0.5 * 3 * delta, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(out[NORM], held["base"][NORM])


@pytest.mark.parametrize("settings, scale", [
    ({}, 3.0), ({"lora_alpha": None}, 4.0), ({"lora_alpha": 0}, 0.0), ({"use_rslora": True}, 6 / 2**0.5),
    ({"alpha_pattern": {"up_proj": 1, "mlp.up_proj": 2}}, 0.5),  # the first that matches
    ({"alpha_pattern": {"p_proj": 1, "up": 1}}, 3.0),  # a part of a name is no name
    ({"alpha_pattern": {"layers.[01].*up_proj": 4}}, 2.0),
])
def test_the_scale_of_an_adapter(settings, scale, tmp_path):
  adapter(tmp_path / "lora", **settings)
  update, = read_adapter(tmp_path / "lora").updates.values()
  assert update.scale == pytest.approx(scale)


def test_an_adapter_of_matrices_stored_input_first(tmp_path):
  update = adapter(tmp_path / "lora", fan_in_fan_out=True)
  weight = np.ones(update.T.shape, np.float32)
  name = "model.layers.1.mlp.up_proj.weight"
  write(tmp_path / "m0", {name: weight})
  document = {"merge_method": "passthrough", "models": [{"model": "$m0+$lora"}]}
  merge(configure(tmp_path / "m.yaml", document), tmp_path / "out")
  np.testing.assert_allclose(read(tmp_path / "out")[name], weight + 3 * update.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings, said", [
    ({"peft_type": "IA3"}, "peft_type must be LORA; got 'IA3'"), ({"use_dora": True}, "use_dora=True"),
    ({"use_future_variant": True}, "use_future_variant=True is not known to leave the numbers"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4' changes the base weights"),
    ({"lora_alpha": "x"}, "lora_alpha must be a finite number; got 'x'"),
    ({"alpha_pattern": [1]}, "alpha_pattern must map"), ({"alpha_pattern": {"[": 1}}, "is no valid pattern"),
    ({"alpha_pattern": {"(((((.*)*)*)*)*)*x": 1}}, "repeats more than 3"),
])
def test_adapters_that_are_more_than_an_update(settings, said, tmp_path):
  family(tmp_path, count=1)
  adapter(tmp_path / "lora", **settings)
  config = configure(tmp_path / "m.yaml", {"merge_method": "passthrough", "models": [{"model": "$m0+$lora"}]})
  with pytest.raises(ValueError, match=said):
    plan_merge(config)


# Tokenizers.

def tokenizer(folder, words, special=()):
  made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  made.add_special_tokens(list(special))
  made.save(str(folder / "tokenizer.json"))


def vocabularies(tmp_path):
  """A base and two models that know other words; the embedding of word w in model i begins with (i, row)."""
  words = {"base": ["u", "a", "b"], "m0": ["u", "b", "a", "c", "d"], "m1": ["u", "a", "b", "d", "e"]}
  held = {}
  for i, (name, own) in enumerate(words.items()):
    tensors = decoder(i, vocab=len(own) + 1)
    tensors[EMBED][:, 0], tensors[EMBED][:, 1] = i, np.arange(len(own) + 1)
    write(tmp_path / name, tensors)
    tokenizer(tmp_path / name, own, special=[f"<{name}>"] if name == "m1" else ["<s>"])
    held[name] = tensors
  return held


def rows(tmp_path, **document):
  """`{word: the first two entries of its row}` of a merge in which m1 counts alone, its tokenizer and its config."""
  models_ = [{"model": "$m0", "parameters": {"weight": 0}}, {"model": "$m1", "parameters": {"weight": 1}}]
  config = configure(tmp_path / "m.yaml", {
      "merge_method": "task_arithmetic", "base_model": "$base", "models": models_, **document})
  merge(config, tmp_path / "out", overwrite=True)
  made = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
  embedding = read(tmp_path / "out")[EMBED]
  found = {word: tuple(embedding[i, :2].round(3).tolist()) for word, i in made.get_vocab().items()}
  return found, embedding, json.loads((tmp_path / "out" / "config.json").read_text())


def test_union_of_vocabularies(tmp_path):
  vocabularies(tmp_path)
  found, embedding, config = rows(tmp_path, tokenizer_source="union")
  assert found["a"] == (2, 1) and found["e"] == (2, 4)  # of m1
  assert found["d"] == (2, 3)  # the base and m0 lack or have it: the task vector is m1's row less the base's, the mean
  assert found["c"] == (1, 3)  # only m0 has it: all take its row
  assert found["<s>"] == (0, 3)  # m1 lacks it and takes the base's
  assert found["<m1>"] == (2, 5)
  assert set(found) == {"u", "a", "b", "c", "d", "e", "<s>", "<m1>"} and len(embedding) == config["vocab_size"] == 8


def test_a_token_that_the_base_lacks_and_several_have_is_the_mean(tmp_path):
  vocabularies(tmp_path)
  document = {"merge_method": "passthrough", "models": [{"model": "$base"}], "tokenizer": {"source": "$m0"}}
  merge(configure(tmp_path / "m.yaml", document), tmp_path / "out")
  assert (read(tmp_path / "out")[EMBED][4] == 0).all()  # no model that takes part has the word `d`
  document = {"merge_method": "linear", "tokenizer_source": "union", "models": [
      {"model": f"${m}", "parameters": {"weight": w}} for m, w in (("base", 1), ("m0", 0), ("m1", 0))]}
  merge(configure(tmp_path / "m.yaml", document), tmp_path / "linear")
  made = Tokenizer.from_file(str(tmp_path / "linear" / "tokenizer.json"))
  np.testing.assert_allclose(read(tmp_path / "linear")[EMBED][made.token_to_id("d"), :2], (1.5, 3.5))


def test_the_vocabulary_of_the_base(tmp_path):
  vocabularies(tmp_path)
  found, embedding, _ = rows(tmp_path, tokenizer_source="base")
  assert found == {"u": (2, 0), "a": (2, 1), "b": (2, 2), "<s>": (0, 3)} and len(embedding) == 4


def test_listed_tokens_and_padding(tmp_path):
  held = vocabularies(tmp_path)
  found, embedding, config = rows(tmp_path, tokenizer={"source": "base", "pad_to_multiple_of": 8, "tokens": {
      "new": {"source": {"kind": "model_token", "model": "$m1", "token": "e"}}, "a": {"source": "$m0", "force": True},
      "none": {"source": {"kind": "zero"}}}})
  assert found["new"] == (2, 4) and found["a"] == (1, 2) and found["none"] == (0, 0)
  assert len(embedding) == config["vocab_size"] == 8
  np.testing.assert_allclose(embedding[6], embedding[:6].mean(0), rtol=1e-5)
  assert held
  with pytest.raises(ValueError, match="'x'.*has no token 'nowhere'"):
    rows(tmp_path, tokenizer={"source": "base", "tokens": {
        "x": {"source": {"kind": "model_token", "model": "$m1", "token": "nowhere"}}}})


def test_tokens_that_only_the_files_beside_the_tokenizer_have(tmp_path):
  """transformers gives a special token without an id the end of the vocabulary, and the model has a row for it."""
  vocabularies(tmp_path)
  held = decoder(0, vocab=9)
  held[EMBED][:, 0], held[EMBED][:, 1] = 0, np.arange(9)
  write(tmp_path / "base", held, config={"pad_token_id": 5})
  (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps({
      "bos_token": "<s>", "pad_token": "<pad>", "added_tokens_decoder": {"4": {"content": "<4>", "special": True}}}))
  base = {"merge_method": "passthrough", "models": [{"model": "$base"}]}
  merge(configure(tmp_path / "m.yaml", base | {"tokenizer_source": "base"}), tmp_path / "out")
  np.testing.assert_array_equal(read(tmp_path / "out")[EMBED], held[EMBED][:6])
  found, embedding, config = rows(tmp_path, tokenizer_source="union")
  made = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
  assert [made.id_to_token(i) for i in range(6)] == ["u", "a", "b", "<s>", "<4>", "<pad>"]
  assert config["pad_token_id"] == 5
  assert found["<pad>"] == (0, 5) and found["<4>"] == (0, 4) and found["c"] == (1, 3)
  assert len(found) == len(embedding) == config["vocab_size"]


def test_a_token_that_only_the_config_knows_is_not_cut_off(tmp_path):
  vocabularies(tmp_path)
  write(tmp_path / "base", decoder(0, vocab=9), config={"pad_token_id": 6})
  with pytest.raises(ValueError, match="base: config.json names the token id 6, .* ends at 3; add the token"):
    rows(tmp_path, tokenizer_source="base")


def test_a_tokenizer_larger_than_the_embedding_keeps_its_ids(tmp_path):
  vocabularies(tmp_path)
  tokenizer(tmp_path / "base", ["u", "a", "b", "x", "y", "z"], special=["<s>"])  # the embedding has four rows
  found, embedding, _ = rows(tmp_path, tokenizer_source="union")
  made = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
  assert [made.id_to_token(i) for i in range(7)] == ["u", "a", "b", "x", "y", "z", "<s>"]
  assert found["a"] == (2, 1) and found["c"] == (1, 3) and found["z"] == (0, 0) and len(embedding) == len(found)


def test_ids_in_the_config_follow_the_tokenizer(tmp_path):
  vocabularies(tmp_path)
  held = read(tmp_path / "base")
  write(tmp_path / "base", held, config={"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 3, "vocab_size": 4})
  (tmp_path / "base" / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "top_k": 2}))
  document = {"merge_method": "passthrough", "models": [{"model": "$base"}], "tokenizer": {"source": "$m1"}}
  tokenizer(tmp_path / "m1", ["u", "b", "a"], special=["<m1>"])
  merged = merge(configure(tmp_path / "m.yaml", document), tmp_path / "out")
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (2, [1], None)
  assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"eos_token_id": 1, "top_k": 2}
  assert [n for n in merged.notes if "no token for the id 3 in config.json" in n]


def test_a_tokenizer_that_is_missing(tmp_path):
  vocabularies(tmp_path)
  (tmp_path / "m1" / "tokenizer.json").unlink()
  with pytest.raises(ValueError, match="m1 has no tokenizer.json"):
    rows(tmp_path, tokenizer_source="union")


def test_vocabularies_of_one_size_with_other_ids(tmp_path):
  family(tmp_path, count=2)
  for name, words in (("base", "uabc"), ("m0", "uabd"), ("m1", "ubac")):
    tokenizer(tmp_path / name, list(words))
  config = configure(tmp_path / "m.yaml", ties())
  with pytest.raises(ValueError, match="2 tokens have another id in .*m1 than in .*base .*'a': 2 and 1.*source: union"):
    plan_merge(config)
  tokenizer(tmp_path / "m1", list("uabc"))
  assert not plan_merge(config).notes  # other words in the same places may be those that each has added


@pytest.mark.parametrize("wanted, text", [("auto", "two {{ x }}"), ("mine {{ y }}", "mine {{ y }}")])
def test_chat_templates(wanted, text, tmp_path):
  family(tmp_path)
  for name, template in (("base", "one {{ x }}"), ("m0", "two {{ x }}"), ("m1", "two {{ x }}")):
    (tmp_path / name / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "kept": 1}))
  config = configure(tmp_path / "m.yaml", recipe("ties", per_model={"weight": [1] * 3}, chat_template=wanted))
  merge(config, tmp_path / "out")
  assert json.loads((tmp_path / "out/tokenizer_config.json").read_text()) == {"chat_template": text, "kept": 1}


def test_chatml_and_what_others_say_elsewhere(tmp_path):
  from jaxft.data.chat.rendering import render_chat

  family(tmp_path)
  settings = {"per_model": {"weight": [1] * 3}, "chat_template": "chatml"}
  merge(configure(tmp_path / "m.yaml", recipe("ties", **settings)), tmp_path / "out")
  template = json.loads((tmp_path / "out/tokenizer_config.json").read_text())["chat_template"]
  turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
  said = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
  assert render_chat(turns, template) == said
  assert render_chat(turns, template, add_generation_prompt=True) == said + "<|im_start|>assistant\n"
  seeded = {**recipe("ties", **settings), "random_seed": 3}
  with pytest.raises(ValueError, match="the unknown key 'random_seed'; .*; the seed of random drops is --seed"):
    plan_merge(configure(tmp_path / "m.yaml", seeded))


def test_names_within_another_model_are_told(tmp_path):
  config = changed(tmp_path, lambda tensors, options: None, dtype="float32")
  write(tmp_path / "m0", {f"inner.{name}": x for name, x in read(tmp_path / "m0").items()})
  with pytest.raises(ValueError, match=f"{EMBED} is missing in .*m0, which has inner.{EMBED}: names of one of"):
    plan_merge(config)


def test_a_chat_template_that_is_none(tmp_path):
  family(tmp_path)
  config = configure(tmp_path / "m.yaml", recipe("ties", per_model={"weight": [1] * 3}, chat_template="chatmml"))
  with pytest.raises(ValueError, match="chat_template must be auto, .* got 'chatmml'"):
    merge(config, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_files_beside_the_tensors(tmp_path):
  family(tmp_path)
  base = tmp_path / "base"
  for name in ("generation_config.json", "special_tokens_map.json", "vocab.txt", "README.md", "trainer_state.json"):
    (base / name).write_text("{}")
  (base / "1_Pooling").mkdir()
  (base / "1_Pooling" / "config.json").write_text("{}")
  (base / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}]))
  merge(configure(tmp_path / "m.yaml", recipe("ties", per_model={"weight": [1] * 3})), tmp_path / "out")
  assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
      "1_Pooling", "config.json", "generation_config.json", "merge.json", "model.safetensors", "modules.json",
      "special_tokens_map.json", "vocab.txt"]
  record = json.loads((tmp_path / "out/merge.json").read_text())
  assert record["method"] == "ties" and record["tensors"][NORM]["per_model"]["weight"] == [1, 1, 1]


def test_links_are_followed_no_further_than_the_model(tmp_path):
  cache = tmp_path / "models--one"
  (cache / "blobs").mkdir(parents=True)
  (cache / "blobs" / "abc").write_text('{"kept": 1}')
  base = write(cache / "snapshots" / "123", decoder(0))
  (base / "generation_config.json").symlink_to("../../blobs/abc")  # as a hub's cache lies
  (base / "modeling_mine.py").write_text("")
  config = configure(tmp_path / "m.yaml", {"merge_method": "passthrough", "models": [{"model": str(base)}]})
  merged = merge(config, tmp_path / "out")
  assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"kept": 1}
  assert not (tmp_path / "out" / "generation_config.json").is_symlink()
  assert not (tmp_path / "out" / "modeling_mine.py").exists()
  assert [n for n in merged.notes if "modeling_mine.py of" in n and "not copied" in n]
  (tmp_path / "secret.json").write_text("{}")
  (base / "vocab.json").symlink_to(tmp_path / "secret.json")
  with pytest.raises(ValueError, match="vocab.json is a link to .*secret.json, outside of the model's folder"):
    merge(config, tmp_path / "other")
  assert not (tmp_path / "other").exists()
