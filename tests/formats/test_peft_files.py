"""Adapter files without PEFT: what is saved is read back bit by bit, and everything that does not fit is named."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.adapters import prefix, soft_prompt
from jaxft.formats import load_peft, load_peft_prompt, save_peft, save_peft_prompt
from jaxft.formats.heads import Head
from jaxft.formats.peft_files.modules import of_module, shortest
from jaxft.formats.peft_files.torch_random import randperm
from jaxft.formats.safetensors import open_checkpoint, save_file
from jaxft.models import decoder, encoder
from jaxft.models.decoder import DecoderConfig
from jaxft.models.encoder import EncoderConfig
from jaxft.transforms import chain, lora, quantize, train
from jaxft.transforms.entries.trainable_tokens import trainable_tokens
from jaxft.transforms.low_rank.pissa import pissa
from jaxft.transforms.low_rank.rand_lora import rand_lora
from jaxft.transforms.multiplicative.ia3 import ia3
from jaxft.transforms.multiplicative.road import road
from jaxft.transforms.structured.fourier_ft import fourier_ft
from jaxft.transforms.structured.hira import hira
from jaxft.transforms.structured.loha import loha
from jaxft.tree import cut_layers, stack_layers, unstack_layers
from tests import draws

KEY = jax.random.key(0)
SIZES = dict(vocab_size=40, dim=16, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24)
CONFIG = DecoderConfig(**SIZES, tie_embeddings=False)
TIED = DecoderConfig(**SIZES)
BERT = EncoderConfig(vocab_size=40, dim=16, num_layers=2, num_heads=2, mlp_dim=24, max_length=8)
PARAMS = draws.params(lambda: decoder.init(KEY, CONFIG), 0)
LORA = lora("**/{query,down}/kernel", rank=2, alpha=3)
NAME = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


def moved(tree):
  return jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), tree)


def saved(folder, transform=LORA, params=PARAMS, config=CONFIG, **options):
  frozen, trainable = transform.split(KEY, params)
  trainable = moved(trainable)
  save_peft(folder, transform, frozen, trainable, params, config, **options)
  return transform.join(frozen, trainable)


def edit(folder, change=None, **settings):
  """Changes the tensors and the settings of an adapter."""
  file = folder / "adapter_model.safetensors"
  checkpoint = open_checkpoint(file)
  tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
  if change:
    change(tensors)
  save_file(tensors, file, metadata={"format": "pt"})
  config = folder / "adapter_config.json"
  config.write_text(json.dumps(json.loads(config.read_text()) | settings))


def equal(x, y):
  jax.tree.map(np.testing.assert_array_equal, x, y)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_saved_is_read_back_bit_by_bit(dtype, tmp_path):
  transform = lora("**/{query,down}/kernel", rank=2, alpha=3, dtype=dtype)
  equal(jax.tree.leaves(saved(tmp_path, transform)), jax.tree.leaves(
      (lambda a: a.transform.join(a.frozen, a.trainable))(load_peft(tmp_path, PARAMS, CONFIG))))


def test_layers_may_be_stacked_cut_or_unrolled(tmp_path):
  joined = saved(tmp_path)
  want = joined["layers"]["attention"]["query"]["kernel"]
  for params in (unstack_layers(PARAMS), cut_layers(PARAMS, at=[1])):
    adapter = load_peft(tmp_path, params, CONFIG)
    got = stack_layers(adapter.trainable)["layers"]["attention"]["query"]["kernel"]
    equal(got, {"a": want.a, "b": want.b})


def test_a_quantized_base(tmp_path):
  transform = chain(LORA, quantize("**/kernel", format="int8", block=8))
  frozen, trainable = transform.split(KEY, PARAMS)
  joined = transform.join(frozen, trainable)
  with pytest.raises(ValueError, match="head/kernel is not adapted, .* pass frozen as params"):
    save_peft(tmp_path, transform, frozen, trainable, PARAMS, CONFIG)
  save_peft(tmp_path, transform, frozen, trainable, frozen, CONFIG)
  adapter = load_peft(tmp_path, PARAMS, CONFIG)
  equal(adapter.trainable["layers"]["mlp"]["down"]["kernel"]["a"], joined["layers"]["mlp"]["down"]["kernel"].a)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_an_init_took_off_the_weights_is_put_back(dtype, tmp_path):
  params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
  transform = lora("**/{query,down}/kernel", rank=2, alpha=3, init=pissa)
  joined = saved(tmp_path, transform, params)
  adapter = load_peft(tmp_path, params, CONFIG)
  again = adapter.transform.join(adapter.frozen, adapter.trainable)
  for part, name in (("attention", "query"), ("mlp", "down")):
    base, leaf, back = (tree["layers"][part][name]["kernel"] for tree in (params, joined, again))
    assert (leaf.a.shape[-1], back.a.shape[-1]) == (2, 4)
    exact = lambda x: np.asarray(x.w, np.float64) + 1.5 * np.float64(x.a) @ np.float64(x.b)
    size = np.linalg.norm(exact(leaf) - np.float64(base))
    rounding = jnp.finfo(dtype).eps * np.linalg.norm(np.float64(base))
    assert np.linalg.norm(exact(back) - exact(leaf)) < rounding + 1e-6 * size < 0.1 * size


def test_params_with_which_no_adapter_computes_the_same(tmp_path):
  transform = lora("**/{query,down}/kernel", rank=2, alpha=3, init=pissa)
  frozen, trainable = transform.split(KEY, PARAMS)
  other = decoder.init(jax.random.key(1), CONFIG)
  query = lambda tree, change: jax.tree_util.tree_map_with_path(
      lambda keys, x: change(x) if "query" in str(keys) else x, tree)
  for params, message in (
      (other, "embed/tokens/embedding is not adapted"),
      (query(PARAMS, lambda x: x + 0.01 * moved(x)), "query/kernel.*no product of rank 2.*best missing .*%"),
      (query(PARAMS, lambda x: x.astype(jnp.bfloat16)), "query/kernel.*float32.*bfloat16"),
      (query(PARAMS, lambda x: x[:, :-1]), r"query/kernel in shape \(3, 16, 16\); got shape \(3, 15, 16\)"),
      (query(PARAMS, lambda x: None), "query/kernel in shape.*got a hole"),
      (unstack_layers(PARAMS), "params must have the leaves of frozen"),
  ):
    with pytest.raises(ValueError, match=message):
      save_peft(tmp_path, transform, frozen, trainable, params, CONFIG)
  method = loha("**/query/kernel", rank=2, alpha=5)
  changed, trained = method.split(KEY, frozen)
  with pytest.raises(ValueError, match="down/kernel is not adapted"):
    save_peft(tmp_path, method, changed, trained, PARAMS, CONFIG, peft_type="LOHA", alpha=5)
  method = loha("**/{query,down}/kernel", rank=2, alpha=5)
  changed, trained = method.split(KEY, frozen)
  with pytest.raises(ValueError, match="query/kernel.*type cannot make up for|down/kernel.*type cannot make up for"):
    save_peft(tmp_path, method, changed, trained, PARAMS, CONFIG, peft_type="LOHA", alpha=5)
  assert not list(tmp_path.iterdir())


def test_settings_are_read_off_what_trains(tmp_path):
  ranks = chain(lora("**/query/kernel", rank=2, alpha=3), lora("**/down/kernel", rank=4, alpha=3))
  saved(tmp_path, ranks)
  settings = json.loads((tmp_path / "adapter_config.json").read_text())
  assert settings["target_modules"] == ["down_proj", "q_proj"] and settings["lora_alpha"] == 3
  assert {settings["r"], *settings["rank_pattern"].values()} == {2, 4} and len(settings["rank_pattern"]) == 1


def test_endings_match_no_other_module():
  names = ["a.0.output.dense", "a.0.attention.output.dense", "a.0.query", "a.1.query"]
  assert shortest(["a.0.query", "a.1.query"], names) == ["query"]
  assert shortest(["a.1.query"], names) == ["1.query"]
  assert shortest(["a.0.output.dense"], names) == ["0.output.dense"]


def test_the_permutation_is_one_and_reproducible():
  whole = randperm(50, 50, 7)
  assert sorted(whole.tolist()) == list(range(50))
  np.testing.assert_array_equal(randperm(50, 5, 7), whole[:5])
  # torch.randperm(10, generator=torch.Generator().manual_seed(777))
  assert randperm(10, 10, 777).tolist() == [5, 9, 0, 3, 1, 7, 4, 8, 6, 2]
  with pytest.raises(ValueError, match="size must be below"):
    randperm(2**30, 1, 0)


@pytest.mark.parametrize("settings, message", [
    ({"peft_type": "LORRA"}, "'LORRA' is not known here; nearest: LORA.*all: LORA, ADALORA"),
    ({"peft_type": "XLORA"}, "not known here"),
    ({"peft_type": None}, "None is not known here"),
    ({"peft_type": "PROMPT_TUNING"}, "load_peft_prompt"),
    ({"target_modules": ["q_proj", "wqkv"]}, "target_modules name 'wqkv', which the model lacks"),
    ({"target_modules": ["q_proj", "down"]}, "'down'.*nearest: .*down_proj"),
    ({"target_modules": None}, "must name its target_modules"),
    ({"target_modules": ["q_proj"]}, r"6 tensors do not fit.*unknown .*down_proj.lora_A"),
    ({"target_modules": ["q_proj", "down_proj", "up_proj"]}, "missing .*up_proj.lora_A.weight"),
    ({"r": 3}, r"q_proj.lora_A.weight has shape \(2, 16\), the config wants \(3, 16\)"),
    ({"use_dora": True}, "missing .*q_proj.lora_magnitude_vector"),
    ({"init_lora_weights": "pissa"}, "changes the base weights"),
    ({"layer_replication": [[0, 2]]}, "layer_replication.*not computed here"),
    ({"layers_to_transform": [0]}, "unstack_layers"),
    ({"rank_pattern": {"layers.1.self_attn.q_proj": 5}}, "different settings.*unstack_layers"),
    ({"modules_to_save": ["score"]}, "modules_to_save name score"),
])
def test_a_config_that_does_not_fit(settings, message, tmp_path):
  saved(tmp_path)
  edit(tmp_path, **settings)
  with pytest.raises(ValueError, match=f"(?s){message}"):
    load_peft(tmp_path, PARAMS, CONFIG)


def test_all_tensors_that_do_not_fit_are_named(tmp_path):
  saved(tmp_path)

  def change(tensors):
    del tensors[NAME.format(0, "A")]
    tensors[NAME.format(1, "B")] = np.zeros((4, 4), np.float32)
    tensors["base_model.model.score.weight"] = np.zeros(3, np.float32)

  edit(tmp_path, change)
  with pytest.raises(ValueError, match="3 tensors do not fit") as caught:
    load_peft(tmp_path, PARAMS, CONFIG)
  for phrase in (f"missing {NAME.format(0, 'A')} (2, 16)", f"{NAME.format(1, 'B')} has shape (4, 4)",
                 "unknown base_model.model.score.weight (3,)", str(tmp_path)):
    assert phrase in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
  with pytest.raises(FileNotFoundError, match="no adapter_config.json"):
    load_peft(tmp_path, PARAMS, CONFIG)
  saved(tmp_path / "a")
  file = tmp_path / "a" / "adapter_model.safetensors"
  content = file.read_bytes()
  file.write_bytes(content[:-20])
  with pytest.raises(ValueError, match="adapter_model.safetensors"):
    load_peft(tmp_path / "a", PARAMS, CONFIG)
  file.unlink()
  with pytest.raises(FileNotFoundError, match="no adapter_model.safetensors"):
    load_peft(tmp_path / "a", PARAMS, CONFIG)
  (tmp_path / "a" / "adapter_model.bin").write_bytes(b"never opened")
  with pytest.raises(ValueError, match="pickled.*safe_serialization=True"):
    load_peft(tmp_path / "a", PARAMS, CONFIG)
  (tmp_path / "a" / "adapter_config.json").write_text("{")
  with pytest.raises(ValueError, match="not valid JSON"):
    load_peft(tmp_path / "a", PARAMS, CONFIG)


TIED_PARAMS = draws.params(lambda: decoder.init(KEY, TIED), 0)
HEAD, TABLE = "base_model.model.lm_head", "base_model.model.model.embed_tokens"


def loaded(folder, params=PARAMS, config=CONFIG):
  adapter = load_peft(folder, params, config)
  return adapter.transform.join(adapter.frozen, adapter.trainable)


def without(*names):
  return lambda tensors: [tensors.pop(name) for name in names]


def off(name):
  return lambda tensors: tensors.update({name: tensors[name] + 1})


def test_a_tied_head_is_not_adapted_apart(tmp_path):
  saved(tmp_path)
  edit(tmp_path, target_modules=["q_proj", "lm_head"])
  with pytest.raises(ValueError, match="ties its head"):
    load_peft(tmp_path, TIED_PARAMS, TIED)


WHOLE = chain(LORA, train("embed/tokens/embedding"))


@pytest.mark.parametrize("transform, change, settings, message", [
    # PEFT's own file without ensure_weight_tying: a copy trains, and the head keeps the old table.
    (WHOLE, without(f"{HEAD}.weight"), {"ensure_weight_tying": False}, "in PEFT the head keeps the old one"),
    (WHOLE, off(f"{HEAD}.weight"), {}, "in PEFT the head gets another one"),
    (WHOLE, without(f"{TABLE}.weight"), {"modules_to_save": ["lm_head"]}, "modules_to_save name lm_head alone"),
    (lora("**/embedding", rank=2), None, {"ensure_weight_tying": False}, "in PEFT the embedding alone"),
    (lora("**/embedding", rank=2), off(f"{HEAD}.lora_A.weight"), {}, "lora_A.weight is not lora_embedding_B"),
    (lora("**/embedding", rank=2), without(f"{HEAD}.lora_B.weight"), {}, "lora_B.weight is not"),
    (lora("**/embedding", rank=2), None, {"alpha_pattern": {"lm_head": 3}}, "has other settings"),
])
def test_a_tied_head_that_is_another_matrix_in_the_file(transform, change, settings, message, tmp_path):
  joined = saved(tmp_path, transform, TIED_PARAMS, TIED)
  equal(jax.tree.leaves(joined), jax.tree.leaves(loaded(tmp_path, TIED_PARAMS, TIED)))
  edit(tmp_path, change, **settings)
  with pytest.raises(ValueError, match=message):
    load_peft(tmp_path, TIED_PARAMS, TIED)


def test_rows_of_an_embedding_beside_a_lora(tmp_path):
  transform = chain(LORA, trainable_tokens([3, 39]))
  for name, params, config in (("tied", TIED_PARAMS, TIED), ("untied", PARAMS, CONFIG)):
    joined = saved(tmp_path / name, transform, params, config)
    settings = json.loads((tmp_path / name / "adapter_config.json").read_text())
    assert settings["trainable_token_indices"] == {"embed_tokens": [3, 39]}
    equal(jax.tree.leaves(joined), jax.tree.leaves(loaded(tmp_path / name, params, config)))
  edit(tmp_path / "tied", trainable_token_indices=[3, 39])
  loaded(tmp_path / "tied", TIED_PARAMS, TIED)
  for given, message in (
      ({"embed_tokens": [3, 39], "lm_head": [3, 38]}, "must be the same"), ({"lm_head": [3]}, "must be the same"),
      ({"wte": [3]}, "must name one embedding"), ([3, 40], "row 40"), ([-1], "must be a list of rows"),
      ("x", "must be a list of rows"), ([3], "do not fit")):
    edit(tmp_path / "tied", trainable_token_indices=given)
    with pytest.raises(ValueError, match=message):
      load_peft(tmp_path / "tied", TIED_PARAMS, TIED)
  edit(tmp_path / "untied", trainable_token_indices={"embed_tokens": [3, 39], "lm_head": [3, 39]})
  with pytest.raises(ValueError, match="must name one embedding"):
    load_peft(tmp_path / "untied", PARAMS, CONFIG)


def test_a_copy_of_the_heads_weights_is_dropped_where_it_is_equal(tmp_path):
  joined = saved(tmp_path, lora("{head,layers/attention/query}/kernel", rank=2))
  copy = np.asarray(PARAMS["head"]["kernel"]).T
  edit(tmp_path, lambda tensors: tensors.update({f"{HEAD}.base_layer.weight": copy}))
  equal(jax.tree.leaves(joined), jax.tree.leaves(loaded(tmp_path)))
  edit(tmp_path, lambda tensors: tensors.update({f"{HEAD}.base_layer.weight": copy + 1}))
  with pytest.raises(ValueError, match="lm_head differs in the file from head/kernel"):
    load_peft(tmp_path, PARAMS, CONFIG)


@pytest.mark.parametrize("settings, message", [
    ({"use_future_variant": True}, "use_future_variant=True is not known to leave the numbers as they are"),
    ({"target_module": ["q_proj"]}, "target_module=.*nearest: target_modules"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out=True is a variant"),
    ({"r": 10**9}, "r=1000000000 asks for more than the file holds"),
    ({"rank_pattern": {"q_proj": 10**9}}, "r=1000000000 asks for more"),
    ({"r": "2"}, "r must be an integer; got '2'"),
    ({"r": 2.5}, "r must be an integer; got 2.5"),
    ({"r": True}, "r must be an integer; got True"),
    ({"lora_alpha": "x"}, "lora_alpha must be a finite number; got 'x'"),
    ({"lora_alpha": float("nan")}, "lora_alpha must be a finite number; got nan"),
    ({"use_rslora": "no"}, "use_rslora must be true or false; got 'no'"),
    ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern.'q_proj'. must be a finite number; got 'x'"),
    ({"alpha_pattern": [1]}, "alpha_pattern must map names of modules to numbers"),
    ({"alpha_pattern": {"[": 1}}, "alpha_pattern.*is not a valid pattern"),
    ({"target_modules": "["}, "target_modules is not a valid pattern"),
    ({"target_modules": [1]}, "target_modules must be a pattern or a list of names"),
    ({"target_modules": {"q_proj": 1}}, "target_modules must be a pattern or a list of names"),
    ({"exclude_modules": "("}, "exclude_modules is not a valid pattern"),
    ({"modules_to_save": "norm"}, "modules_to_save must be a list of names"),
    ({"modules_to_save": ["(a*)*"]}, "modules_to_save must be a list of names, with letters"),
    ({"layers_to_transform": "0"}, "layers_to_transform must be the index of a layer"),
    ({"layers_to_transform": [0], "layers_pattern": "(.*)*"}, "layers_pattern must be the name"),
    ({"layers_to_transform": [0, 1, 2], "layers_pattern": "blocks"}, "leave no module"),
    ({"bias": "some"}, "bias must be"),
])
def test_a_setting_that_is_not_read_exactly(settings, message, saved_once, tmp_path):
  shutil.copytree(saved_once, tmp_path, dirs_exist_ok=True)
  edit(tmp_path, **settings)
  with pytest.raises(ValueError, match=message):
    load_peft(tmp_path, PARAMS, CONFIG)


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
  """A folder with an adapter, to be copied."""
  saved(folder := tmp_path_factory.mktemp("adapter"))
  return folder


def test_settings_that_leave_the_numbers_alone(saved_once, tmp_path):
  shutil.copytree(saved_once, tmp_path, dirs_exist_ok=True)
  want = loaded(tmp_path)
  edit(tmp_path, some_new_switch=False, revision="main", megatron_core="megatron.core", layers_pattern=["layers"],
       layers_to_transform=[0, 1, 2], target_modules=r"(?!.*vision).*\.(self_attn|mlp)\.(q_proj|down_proj)")
  equal(jax.tree.leaves(want), jax.tree.leaves(loaded(tmp_path)))


def test_a_pattern_that_would_run_for_ever(saved_once, tmp_path, monkeypatch):
  monkeypatch.setattr("jaxft.formats.peft_files.settings._SECONDS", 0.5)
  shutil.copytree(saved_once, tmp_path, dirs_exist_ok=True)
  edit(tmp_path, target_modules="(((((.*)*)*)*)*)*x")
  with pytest.raises(ValueError, match="target_modules took more than 0.5 seconds"):
    load_peft(tmp_path, PARAMS, CONFIG)


def test_a_key_that_occurs_twice(saved_once, tmp_path):
  shutil.copytree(saved_once, tmp_path, dirs_exist_ok=True)
  file = tmp_path / "adapter_config.json"
  file.write_text(file.read_text().replace("{", '{"lora_alpha": 99,', 1))
  with pytest.raises(ValueError, match="adapter_config.json is not valid JSON: 'lora_alpha' occurs more than once"):
    load_peft(tmp_path, PARAMS, CONFIG)


def test_a_name_in_a_pattern_begins_at_a_dot():
  module = "model.layers.0.self_attn.q_proj"
  read = lambda key: of_module({"lora_alpha": 1, "alpha_pattern": {key: 5}}, {"lora_alpha": "alpha_pattern"}, module)
  assert [read(key)["lora_alpha"] for key in ("q_proj", "self_attn.q_proj", module, "proj", "attn.q_proj", "q")] == [
      5, 5, 5, 1, 1, 1]


@pytest.mark.parametrize("transform, options, message", [
    (loha("**/query/kernel", rank=2, alpha=5), {"peft_type": "LOHA"}, "LOHA takes alpha"),
    (loha("**/query/kernel", rank=2, alpha=5), {"peft_type": "LOHA", "alpha": 6}, "alpha=6 do not describe"),
    (LORA, {"peft_type": "LORA", "alpha": 3}, "no setting 'alpha'"),
    (LORA, {"peft_type": "QLORA"}, "not known here"),
    (LORA, {"peft_type": "lora"}, "'lora' is not known here; nearest: LORA,"),
    (LORA, {"peft_type": "PREFIX_TUNING"}, "save_peft_prompt"),
    (chain(LORA, train("**/down/kernel")), {}, "adapted by two transforms|trained whole"),
    (chain(LORA, LORA), {}, "two transforms of a chain"),
    (loha("**/query/kernel", rank=4), {}, "takes leaves that join to LowRank|LORA"),
    (fourier_ft("**/query/kernel", frequencies=4), {"peft_type": "FOURIERFT", "scaling": 150.0}, "peft_frequencies"),
    (rand_lora("**/{query,key}/kernel", rank=3), {"peft_type": "RANDLORA", "randlora_alpha": 640}, "as many terms"),
    (train("head/kernel"), {}, "nothing of what trains"),
    (chain(hira("**/query/kernel", rank=2), hira("**/down/kernel", rank=3)), {"peft_type": "HIRA"}, "PEFT has one r"),
    (ia3("embed/**", None), {"peft_type": "IA3"}, "does not adapt embed/tokens/embedding"),
])
def test_what_the_format_cannot_hold(transform, options, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    saved(tmp_path, transform, **options)
  assert not list(tmp_path.iterdir())


def test_nothing_is_replaced(tmp_path):
  saved(tmp_path)
  with pytest.raises(FileExistsError, match="adapter_config.json"):
    saved(tmp_path)


def test_biases_that_peft_would_change(tmp_path):
  params = encoder.init(KEY, BERT)
  for transform, peft_type in ((ia3(inputs=None), "IA3"), (road("**/query/kernel", group=8), "ROAD")):
    with pytest.raises(ValueError, match="has a bias"):
      saved(tmp_path, transform, params, BERT, peft_type=peft_type)
  saved(tmp_path, ia3(None), params, BERT, peft_type="IA3")


@pytest.mark.parametrize("method, peft_type", [
    (soft_prompt(3, 16), "PROMPT_TUNING"), (soft_prompt(3, 16), "P_TUNING"), (prefix(CONFIG, 3), "PREFIX_TUNING")])
def test_prompts(method, peft_type, tmp_path):
  params = method.init(KEY)
  save_peft_prompt(tmp_path, params, CONFIG, peft_type=peft_type)
  back = load_peft_prompt(tmp_path, CONFIG)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), back, params)
  with pytest.raises(ValueError, match="load_peft_prompt"):
    load_peft(tmp_path, PARAMS, CONFIG)
  with pytest.raises(ValueError, match="shape"):
    load_peft_prompt(tmp_path, DecoderConfig(**SIZES | {"dim": 24, "num_layers": 2}))


def test_prompts_of_another_kind(tmp_path):
  with pytest.raises(ValueError, match="must be one of"):
    save_peft_prompt(tmp_path, {}, CONFIG, peft_type="LORA")
  with pytest.raises(ValueError, match="must have layers or mlp"):
    save_peft_prompt(tmp_path, {"prompt": jnp.zeros((2, 16))}, CONFIG, peft_type="PREFIX_TUNING")
  saved(tmp_path)
  with pytest.raises(ValueError, match="use load_peft"):
    load_peft_prompt(tmp_path, CONFIG)


@pytest.mark.parametrize("name, shape, said", [
    ("classifier.bias", None, "classifier must have a weight and a bias that fit together; got .*'bias': None"),
    ("classifier.weight", (2,), "classifier must have a weight and a bias that fit together"),
    ("classifier.weight", (2, 7), "classifier must read 16 numbers; got 7"),
    ("bert.pooler.dense.weight", (16, 7), r"bert.pooler.dense must be of shape \(16, 16\); got \(7, 16\)"),
    ("bert.pooler.dense", None, "the file has no bert.pooler.dense, which the head reads"),
])
def test_a_head_that_is_broken(name, shape, said, tmp_path):
  transform, params = lora("**/up/kernel", rank=2), draws.params(lambda: encoder.init(KEY, BERT), 1)
  dense = {"kernel": draws.normal(0, 16, 16), "bias": draws.normal(1, 16)}
  head = Head(draws.normal(2, 16, 2), draws.normal(3, 2), dense, ("no", "yes"))
  save_peft(tmp_path, transform, *transform.split(KEY, params), params, BERT, head=head)
  found = load_peft(tmp_path, params, BERT).head
  assert found.classes == head.classes
  equal(found[:3], head[:3])

  def broken(tensors):
    for full in [full for full in tensors if full.startswith(f"base_model.model.{name}")]:
      del tensors[full]
      if shape is not None:
        tensors[full] = draws.normal(4, *shape)

  edit(tmp_path, broken)
  with pytest.raises(ValueError, match=said):
    load_peft(tmp_path, params, BERT)
