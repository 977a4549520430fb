"""Adapters exchanged with peft through its files, both ways: the same logits, and no key too many or too few."""

import copy
import functools
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.adapters import p_tuning, prefix, soft_prompt
from jaxft.formats import load_peft, load_peft_prompt, peft_frequencies, save_peft, save_peft_prompt
from jaxft.formats.huggingface import load_directory
from jaxft.models import decoder, encoder
from jaxft.transforms import chain, lora, train
from jaxft.transforms.entries.sparse_delta import shira
from jaxft.transforms.entries.trainable_tokens import trainable_tokens
from jaxft.transforms.low_rank.adalora import adalora
from jaxft.transforms.low_rank.delora import delora
from jaxft.transforms.low_rank.dora import dora
from jaxft.transforms.low_rank.mica import mica
from jaxft.transforms.low_rank.rand_lora import rand_lora
from jaxft.transforms.low_rank.vb_lora import vb_lora
from jaxft.transforms.low_rank.vera import vera
from jaxft.transforms.multiplicative.boft import boft
from jaxft.transforms.multiplicative.hra import hra
from jaxft.transforms.multiplicative.ia3 import ia3
from jaxft.transforms.multiplicative.oft import oft
from jaxft.transforms.multiplicative.road import road
from jaxft.transforms.structured.c3a import c3a
from jaxft.transforms.structured.fourier_ft import fourier_ft
from jaxft.transforms.structured.hira import hira
from jaxft.transforms.structured.loha import loha
from jaxft.transforms.structured.lokr import lokr
from jaxft.transforms.structured.miss import miss
from jaxft.tree import unstack_layers
from tests.parity.libraries import later, library

torch = library("torch")
transformers = library("transformers")
peft = library("peft")

pytestmark = pytest.mark.filterwarnings("ignore")
SELECT = "**/{query,value,down}/kernel"  # [32, 32], [32, 16] and [48, 32]
SQUARE = "**/{query,out,up,gate,down}/kernel"  # of one smaller side: as many terms of RandLoRA
TARGETS = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
LORA = {"r": 4, "lora_alpha": 6, **TARGETS}
IDS = np.random.default_rng(0).integers(0, 61, (2, 7))
TABLE = "embed/tokens/embedding"
TOKENS = [int(IDS[0, 1]), 60, int(IDS[1, 2])]


def relative_error(got, want):
  got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
  return np.abs(got - want).max() / np.abs(want).max()


class Base(NamedTuple):
  """A small random Llama there and here."""

  torch: Any
  params: Any
  config: decoder.DecoderConfig
  plain: np.ndarray  # its logits here


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
  """`bases(tied)`, each made once."""

  @functools.cache
  def make(tied):
    path = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, initializer_range=0.2, tie_word_embeddings=tied,
        bos_token_id=1, eos_token_id=2)).eval()
    model.save_pretrained(path)
    params, config = load_directory(path)
    return Base(model, params, config, np.asarray(our_logits(params, config)))

  return make


@pytest.fixture(scope="module")
def base(bases):
  return bases(False)


def their_logits(model):
  with torch.no_grad():
    return model(torch.tensor(IDS)).logits.numpy()


@functools.partial(jax.jit, static_argnames="config")
def our_logits(params, config, edits=None):
  hidden = decoder.hidden_states(params, config, jnp.asarray(IDS), edits=edits).hidden
  return decoder.logits(params, config, hidden)


def load_theirs(model, folder):
  """peft's model from our folder; fails on a key that is missing or unexpected."""
  adapted = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder)
  result = adapted.load_adapter(folder, "default")
  # peft says so of its own files: a prompt's tensor is loaded apart, and the layers' names for the bank are aliases.
  unexpected = set(result.unexpected_keys) - {"prompt_embeddings"}
  missing = [k for k in result.missing_keys if ".default" in k and not k.endswith(".vblora_vector_bank.default")]
  assert not unexpected and not missing, (unexpected, missing)
  return adapted.eval()


def trained(tree):
  """Numbers as after training: off their start, and no two alike."""
  def move(keys, x):
    noise = np.random.default_rng(len(str(keys)) + x.size).normal(size=x.shape)
    return x + jnp.asarray(0.2 * noise, x.dtype)
  return jax.tree_util.tree_map_with_path(move, tree)


# name: (our transform, peft_type, settings to give, peft's config)
CASES = {
    "lora": (lora(SELECT, rank=4, alpha=6), "LORA", {}, later("Lora", **LORA)),
    "rslora": (lora(SELECT, rank=4, alpha=6, rank_stabilized=True), "LORA", {"use_rslora": True},
               later("Lora", use_rslora=True, **LORA)),
    "lora_ranks": (chain(lora("**/query/kernel", rank=4, alpha=6), lora("**/down/kernel", rank=2, alpha=8)), "LORA", {},
                   later("Lora", rank_pattern={"down_proj": 2}, alpha_pattern={"down_proj": 8}, **LORA)),
    "lora_embedding": (lora(["**/tokens/embedding", "**/query/kernel"], rank=4, alpha=6), "LORA", {},
                       later("Lora", r=4, lora_alpha=6, target_modules=["embed_tokens", "q_proj"])),
    "lora_head": (chain(lora(SELECT, rank=4, alpha=6), train(["head/kernel", "norm/scale"])), "LORA", {},
                  later("Lora", modules_to_save=["lm_head"], **LORA)),
    "lora_lm_head": (lora(["head/kernel", "**/query/kernel"], rank=4, alpha=6), "LORA", {},
                     later("Lora", r=4, lora_alpha=6, target_modules=["lm_head", "q_proj"])),
    "lora_tokens": (chain(lora(SELECT, rank=4, alpha=6), trainable_tokens(TOKENS)), "LORA", {},
                    later("Lora", trainable_token_indices=TOKENS, **LORA)),
    "mica": (lora(SELECT, rank=4, alpha=6, init=mica, train="a"), "LORA", {}, None),
    "dora": (dora(SELECT, rank=4, alpha=6), "LORA", {}, later("Lora", use_dora=True, **LORA)),
    "adalora": (adalora(SELECT, rank=4, alpha=6), "ADALORA", {},
                later("AdaLora", init_r=4, target_r=2, total_step=10, lora_alpha=6, **TARGETS)),
    "vera": (vera(SELECT, rank=6), "VERA", {}, later("Vera", r=6, **TARGETS)),
    "ia3": (ia3(), "IA3", {}, later("IA3", target_modules=["k_proj", "v_proj", "down_proj"],
                                             feedforward_modules=["down_proj"])),
    "ln_tuning": (train("**/{mlp_norm,norm}/scale"), "LN_TUNING", {},
                  later("LNTuning", target_modules=["norm", "input_layernorm"])),
    "tokens": (trainable_tokens(TOKENS), "TRAINABLE_TOKENS", {},
               later("TrainableTokens", token_indices=TOKENS, target_modules=["embed_tokens"])),
    "loha_2": (loha(SELECT, rank=2, alpha=6), "LOHA", {"alpha": 6}, later("LoHa", r=2, alpha=6, **TARGETS)),
    "loha_5": (loha(SELECT, rank=5, alpha=6), "LOHA", {"alpha": 6}, later("LoHa", r=5, alpha=6, **TARGETS)),
    "lokr": (lokr(SELECT, rank=2, alpha=6), "LOKR", {}, later("LoKr", r=2, alpha=6, **TARGETS)),
    "lokr_whole": (lokr(SELECT), "LOKR", {}, later("LoKr", r=8, alpha=6, decompose_factor=2, **TARGETS)),
    "lokr_both": (lokr(SELECT, rank=8, factor=2, alpha=6), "LOKR", {},
                  later("LoKr", r=1, alpha=6, decompose_both=True, **TARGETS)),
    "oft": (oft(SELECT, block=8), "OFT", {"use_cayley_neumann": False},
            later("OFT", oft_block_size=8, use_cayley_neumann=False, **TARGETS)),
    "oft_series": (oft(SELECT, block=8, terms=5), "OFT", {"use_cayley_neumann": True},
                   later("OFT", r=4, oft_block_size=0, **TARGETS)),
    "boft": (boft(SELECT, block=4), "BOFT", {}, later("BOFT", boft_block_size=4, **TARGETS)),
    "hra": (hra(SELECT, rank=4), "HRA", {}, later("HRA", r=4, **TARGETS)),
    "fourier_ft": (fourier_ft(SELECT, frequencies=20), "FOURIERFT", {"scaling": 150.0},
                   later("FourierFT", n_frequency=20, **TARGETS)),
    "vb_lora": (vb_lora(SELECT, rank=4, vectors=7, length=8), "VBLORA", {"topk": 2},
                later("VBLoRA", r=4, num_vectors=7, vector_length=8, **TARGETS)),
    "vb_lora_topk": (vb_lora(SELECT, rank=4, vectors=7, length=8, top=3), "VBLORA", {"topk": 3},

        later("VBLoRA", r=4, num_vectors=7, vector_length=8, save_only_topk_weights=True, **TARGETS)),
    "miss": (miss(SELECT, rank=5), "MISS", {}, later("Miss", r=5, **TARGETS)),
    "c3a": (c3a(SELECT, block=8), "C3A", {}, later("C3A", block_size=8, **TARGETS)),
    "rand_lora": (rand_lora(SQUARE, rank=5, alpha=6), "RANDLORA", {"randlora_alpha": 6},
                  later("RandLora", r=5, randlora_alpha=6, **TARGETS)),
    "delora": (delora(SELECT, rank=4, strength=3.0), "DELORA", {},
               later("Delora", r=4, delora_lambda=3, rank_pattern={"v_proj": 2}, **TARGETS)),
    "hira": (hira(SELECT, rank=4), "HIRA", {}, later("Hira", r=4, **TARGETS)),
    **{f"road_{v}": (road(SELECT, variant=v, group=8), "ROAD", {},
                     later("Road", variant=f"road_{v}", group_size=8, **TARGETS)) for v in (1, 2, 4)},
    "shira": (shira(SELECT, rank=3), "SHIRA", {}, later("Shira", r=3, **TARGETS)),
}


# The same on a model whose head is its embedding.
TIED = {
    "tied_whole": (chain(lora(SELECT, rank=4, alpha=6), train(TABLE)), "LORA", {},
                   later("Lora", modules_to_save=["embed_tokens"], ensure_weight_tying=True, **LORA)),
    "tied_lora": (lora([TABLE, "**/query/kernel"], rank=4, alpha=6), "LORA", {}, later("Lora", 
        r=4, lora_alpha=6, target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True)),
    "tied_ranks": (chain(lora(TABLE, rank=2, alpha=8), lora(SELECT, rank=4, alpha=6)), "LORA", {}, None),
    "tied_whole_beside_loha": (chain(loha(SELECT, rank=2, alpha=6), train(TABLE)), "LOHA", {"alpha": 6}, None),
    "tied_lora_tokens": (chain(lora(SELECT, rank=4, alpha=6), trainable_tokens(TOKENS)), "LORA", {},
                         later("Lora", trainable_token_indices=TOKENS, **LORA)),
    "tied_tokens": CASES["tokens"],
}
ALL = CASES | TIED
# What is drawn or measured here alone, and so does not show in a file of peft's; the others are the same code as it.
OURS = ("lora", "mica", "vera", "rand_lora", "fourier_ft", "shira", "tied_ranks", "tied_whole_beside_loha")
# One of each method, and what has code of its own.
THEIRS = [name for name, case in ALL.items() if case[3] and name not in (
    "rslora", "loha_5", "lokr", "lokr_whole", "oft", "vb_lora", "road_1", "road_4")]


def tiers(names, quick):
  return [name if name in quick else pytest.param(name, marks=pytest.mark.exhaustive) for name in names]


@pytest.mark.parametrize("name", tiers(ALL, OURS))
def test_ours_in_peft_and_back(name, bases, tmp_path):
  llama, params, config, plain = bases(name in TIED)
  transform, peft_type, settings, _ = ALL[name]
  frozen, trainable = transform.split(jax.random.key(0), params)
  if name == "fourier_ft":
    frozen = peft_frequencies(frozen, config)
  trainable = trained(trainable)
  save_peft(tmp_path / "ours", transform, frozen, trainable, params, config, peft_type=peft_type, **settings)
  model = load_theirs(llama, tmp_path / "ours")
  joined = transform.join(frozen, trainable)
  got, want = our_logits(joined, config), their_logits(model)
  error = relative_error(got, want)
  print(f"{name}: ours in peft {error:.1e}")
  assert relative_error(plain, want) > 1e-3 and error < 1e-5

  back = load_peft(tmp_path / "ours", params, config)
  again = back.transform.join(back.frozen, back.trainable)
  np.testing.assert_array_equal(our_logits(again, config), got)
  given = {k: v for k, v in back.settings.items() if k in (*settings, "lora_dropout")}
  save_peft(tmp_path / "again", back.transform, back.frozen, back.trainable, params, config, peft_type=peft_type,
            **given)
  assert same_files(tmp_path / "ours", tmp_path / "again")


def same_files(one, other):
  return all((one / name).read_bytes() == (other / name).read_bytes()
             for name in ("adapter_config.json", "adapter_model.safetensors"))


@pytest.mark.parametrize("name", tiers([name for name, case in ALL.items() if case[3]], THEIRS))
def test_peft_in_ours_and_back(name, bases, tmp_path):
  llama, params, config, plain = bases(name in TIED)
  _, peft_type, settings, peft_config = ALL[name]
  model = adapted(llama, peft_config())
  model.save_pretrained(tmp_path / "theirs")
  want = their_logits(model)
  adapter = load_peft(tmp_path / "theirs", params, config)
  joined = adapter.transform.join(adapter.frozen, adapter.trainable)
  error = relative_error(our_logits(joined, config), want)
  print(f"{name}: peft in ours {error:.1e}")
  assert relative_error(plain, want) > 1e-3 and error < 1e-5

  given = {k: adapter.settings[k] for k in settings} | (
      {"use_rslora": True} if adapter.settings.get("use_rslora") else {})
  save_peft(tmp_path / "back", adapter.transform, adapter.frozen, adapter.trainable, params, config,
            peft_type=peft_type, **given)
  assert relative_error(their_logits(load_theirs(llama, tmp_path / "back")), want) < 1e-5


@pytest.mark.parametrize("options", [
    {"modules_to_save": ["embed_tokens"]}, {"modules_to_save": ["lm_head"]},
    {"modules_to_save": ["embed_tokens", "lm_head"]}, {"target_modules": ["embed_tokens", "q_proj"]},
    {"target_modules": ["lm_head", "q_proj"]}], ids=str)
def test_a_file_of_peft_that_unties_the_head_is_refused(options, bases, tmp_path):
  llama, params, config, _ = bases(True)
  adapted(llama, peft.LoraConfig(**LORA | options)).save_pretrained(tmp_path)
  with pytest.raises(ValueError, match="head"):
    load_peft(tmp_path, params, config)


def adapted(llama, peft_config):
  """peft's model with random numbers in all that trains."""
  torch.manual_seed(2)
  model = peft.get_peft_model(copy.deepcopy(llama), peft_config).eval().float()
  torch.manual_seed(1)
  with torch.no_grad():
    for p in model.parameters():
      if p.requires_grad:
        p.add_(0.2 * torch.randn_like(p))
  return model


def test_some_layers_and_a_cut_stack(base, tmp_path):
  llama, params, config, _ = base
  model = adapted(llama, peft.LoraConfig(layers_to_transform=[1], **LORA))
  model.save_pretrained(tmp_path / "theirs")
  with pytest.raises(ValueError, match="unstack_layers"):
    load_peft(tmp_path / "theirs", params, config)
  params = unstack_layers(params)
  adapter = load_peft(tmp_path / "theirs", params, config)
  joined = adapter.transform.join(adapter.frozen, adapter.trainable)
  assert relative_error(our_logits(joined, config), their_logits(model)) < 1e-5
  save_peft(tmp_path / "back", adapter.transform, adapter.frozen, adapter.trainable, params, config)
  settings = json.loads((tmp_path / "back/adapter_config.json").read_text())
  assert "1.self_attn.q_proj" in settings["target_modules"]
  assert relative_error(their_logits(load_theirs(llama, tmp_path / "back")), their_logits(model)) < 1e-5


def test_adalora_with_pruned_triplets(base, tmp_path):
  llama, params, config, _ = base
  model = adapted(llama, CASES["adalora"][3]())
  kept = [True, False, True, True]
  pattern = {}
  for name, module in model.named_modules():
    if hasattr(module, "lora_E"):
      module.lora_E["default"].data[1] = 0
      pattern[name.removeprefix("base_model.model.") + ".lora_E.default"] = kept
  model.peft_config["default"].rank_pattern = pattern
  model.save_pretrained(tmp_path / "theirs")
  adapter = load_peft(tmp_path / "theirs", params, config)
  joined = adapter.transform.join(adapter.frozen, adapter.trainable)
  assert relative_error(our_logits(joined, config), their_logits(model)) < 1e-5


ENCODER_CASES = {
    "lora_bias_all": (lambda: chain(lora("**/{query,out,up}/kernel", rank=4, alpha=6), train("**/bias")), "LORA",
                      later("Lora", r=4, bias="all", target_modules=["query", "output.dense"])),
    "lora_bias_only": (lambda: chain(lora("**/query/kernel", rank=4, alpha=6), train("**/query/bias")), "LORA",
                       later("Lora", r=4, bias="lora_only", target_modules=["query", "intermediate.dense"])),
    "ln_tuning": (lambda: train("**/attention_norm/scale"), "LN_TUNING",
                  later("LNTuning", target_modules=["output.LayerNorm"])),
    "hra": (lambda: hra("**/{query,down}/kernel", rank=4), "HRA",
        later("HRA", r=4, target_modules=["query"])),
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
  path = tmp_path_factory.mktemp("bert")
  torch.manual_seed(0)
  model = transformers.BertModel(transformers.BertConfig(
      vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
      max_position_embeddings=32, initializer_range=0.2), add_pooling_layer=False).eval()
  model.save_pretrained(path)
  return model, *load_directory(path)


@functools.partial(jax.jit, static_argnames="config")
def our_states(params, config):
  return encoder.hidden_states(params, config, jnp.asarray(IDS))[0]


@pytest.mark.parametrize("name", ENCODER_CASES)
def test_encoder_both_ways(name, bert, tmp_path):
  make, peft_type, peft_config = ENCODER_CASES[name]
  bert, params, config = bert
  theirs = lambda model: model(torch.tensor(IDS)).last_hidden_state.detach().numpy()
  ours = lambda joined: our_states(joined, config)

  transform = make()
  frozen, trainable = transform.split(jax.random.key(0), params)
  trainable = trained(trainable)
  save_peft(tmp_path / "ours", transform, frozen, trainable, params, config, peft_type=peft_type)
  model = peft.PeftModel.from_pretrained(copy.deepcopy(bert), tmp_path / "ours").eval()
  first = relative_error(ours(transform.join(frozen, trainable)), theirs(model))
  assert relative_error(ours(params), theirs(model)) > 1e-3
  back = load_peft(tmp_path / "ours", params, config)
  np.testing.assert_array_equal(ours(back.transform.join(back.frozen, back.trainable)),
                                ours(transform.join(frozen, trainable)))

  model = peft.get_peft_model(copy.deepcopy(bert), peft_config()).eval()
  with torch.no_grad():
    for p in model.parameters():
      if p.requires_grad:
        p.add_(0.2 * torch.randn_like(p))
  model.save_pretrained(tmp_path / "theirs")
  adapter = load_peft(tmp_path / "theirs", params, config)
  second = relative_error(ours(adapter.transform.join(adapter.frozen, adapter.trainable)), theirs(model))
  print(f"encoder {name}: ours in peft {first:.1e}, peft in ours {second:.1e}")
  assert max(first, second) < 1e-5


PROMPTS = {
    "prompt": ("PROMPT_TUNING", lambda c: soft_prompt(4, c.dim), later("PromptTuning", 
        task_type="CAUSAL_LM", num_virtual_tokens=4)),
    "p_tuning": ("P_TUNING", lambda c: p_tuning(4, c.dim, hidden=12), later("PromptEncoder", 
        task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=12)),
    "prefix": ("PREFIX_TUNING", lambda c: prefix(c, 4), later("PrefixTuning", 
        task_type="CAUSAL_LM", num_virtual_tokens=4)),
    "prefix_mlp": ("PREFIX_TUNING", lambda c: prefix(c, 4, hidden=12), later("PrefixTuning", 
        task_type="CAUSAL_LM", num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=12)),
}


@pytest.mark.parametrize("name", tiers(PROMPTS, ("p_tuning", "prefix_mlp")))
def test_prompts_both_ways(name, base, tmp_path):
  llama, params, config, _ = base
  peft_type, make, peft_config = PROMPTS[name]
  method = make(config)
  numbers = trained(method.init(jax.random.key(0)))
  save_peft_prompt(tmp_path / "ours", numbers, config, peft_type=peft_type)
  got = our_logits(params, config, method.edits(numbers))
  first = relative_error(got, their_logits(load_theirs(llama, tmp_path / "ours")))
  plain = prefix(config, 4) if name.startswith("prefix") else soft_prompt(4, config.dim)
  back = load_peft_prompt(tmp_path / "ours", config)
  assert relative_error(our_logits(params, config, plain.edits(back)), got) < 1e-6

  model = adapted(llama, peft_config())
  model.save_pretrained(tmp_path / "theirs")
  read = load_peft_prompt(tmp_path / "theirs", config)
  second = relative_error(our_logits(params, config, plain.edits(read)), their_logits(model))
  print(f"{name}: ours in peft {first:.1e}, peft in ours {second:.1e}")
  assert max(first, second) < 1e-5
