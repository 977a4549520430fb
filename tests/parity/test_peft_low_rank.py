"""The low-rank family and the structured deltas against peft: merged weights, logits, and what inits make of them."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.formats.huggingface import load_directory
from jaxft.leaves import materialize
from jaxft.leaves.annotated import Annotated
from jaxft.models import decoder
from jaxft.transforms import lora, train
from jaxft.transforms.low_rank.adalora import (
  adalora,
  keep_triplets,
  orthogonality,
  rank_budget,
  top_triplets,
  triplet_scores,
  update_importance,
  zero_importance,
)
from jaxft.transforms.low_rank.corda import corda
from jaxft.transforms.low_rank.delora import delora
from jaxft.transforms.low_rank.dora import dora
from jaxft.transforms.low_rank.input_covariance import add_inputs
from jaxft.transforms.low_rank.mica import mica
from jaxft.transforms.low_rank.olora import olora
from jaxft.transforms.low_rank.pissa import pissa
from jaxft.transforms.low_rank.rand_lora import rand_lora
from jaxft.transforms.low_rank.vb_lora import vb_lora
from jaxft.transforms.low_rank.vera import vera
from jaxft.transforms.structured.c3a import c3a
from jaxft.transforms.structured.fourier_ft import fourier_ft
from jaxft.transforms.structured.hira import hira
from jaxft.transforms.structured.loha import loha
from jaxft.transforms.structured.lokr import lokr
from jaxft.transforms.structured.miss import miss
from jaxft.tree import leaves_with_paths, map_with_path, path_of
from tests.parity.libraries import later, library

torch = library("torch")
transformers = library("transformers")
peft = library("peft")

pytestmark = pytest.mark.filterwarnings("ignore")
LAYERS = 2
NAMES = {"query": "self_attn.q_proj", "value": "self_attn.v_proj", "down": "mlp.down_proj"}
SELECT = "**/{query,value,down}/kernel"  # [32, 32], [32, 16] and [48, 32]
TARGETS = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
IDS = np.random.default_rng(0).integers(0, 61, (2, 7))


def relative_error(got, want):
  got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
  return np.abs(got - want).max() / np.abs(want).max()


@functools.cache
def _llama():
  torch.manual_seed(0)
  return transformers.LlamaForCausalLM(transformers.LlamaConfig(
      vocab_size=61, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
      intermediate_size=48, max_position_embeddings=64, initializer_range=0.2, bos_token_id=1, eos_token_id=2)).eval()


def small_llama():
  return copy.deepcopy(_llama())


def load(model, path):
  model.save_pretrained(path)
  return load_directory(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """The params and the config of the small Llama."""
  return load(small_llama(), tmp_path_factory.mktemp("base"))


@functools.partial(jax.jit, static_argnames="config")
def our_logits(params, config):
  return decoder.logits(params, config, decoder.hidden_states(params, config, jnp.asarray(IDS)).hidden)


def module_of(model, path, layer):
  name = next(NAMES[part] for part in path.split("/") if part in NAMES)
  return model.get_submodule(f"base_model.model.model.layers.{layer}.{name}")


def stacked(model, path, read):
  values = [torch.as_tensor(read(module_of(model, path, i))).detach() for i in range(LAYERS)]
  return jnp.asarray(np.stack([v.numpy() if v.dtype == torch.int64 else v.float().numpy() for v in values]))


def theirs(model, frozen, trainable, read, note):
  """The two sides of the transform with peft's numbers in what trains, and in the notes that peft draws by itself."""

  def trained(keys, leaf):
    name = path_of(keys).split("/")[-1]
    out = jnp.asarray(read[name](model)) if name == "bank" else stacked(model, path_of(keys), read[name])
    assert out.shape == leaf.shape
    return out

  def noted(path, leaf):
    if not isinstance(leaf, Annotated) or note is None:
      return leaf
    m, n = leaf.shape[-2:]
    out = {name: stacked(model, path, lambda module: f(module, m, n)) for name, f in note.items()}
    assert jax.tree.map(jnp.shape, out) == jax.tree.map(jnp.shape, leaf.note)
    return Annotated(leaf.w, out)

  return map_with_path(noted, frozen), jax.tree_util.tree_map_with_path(trained, trainable)


def factor(name, *rest):
  """Reads a parameter of the adapter, transposed to rows of inputs."""
  return lambda module: get(module, name).T


def get(module, name):
  x = getattr(module, name)["default"]
  return x.weight if hasattr(x, "weight") else x


def wide(module, m, n):
  """peft flattens its longer basis by (term, rank) and its shorter one by (rank, term)."""
  terms = module.num_bases
  b = get(module, "randlora_B")[: max(m, n), :terms]
  return b.reshape(len(b), -1, terms).permute(1, 2, 0)


FACTORS = {"a": factor("lora_A"), "b": factor("lora_B")}
LORA = {"r": 4, "lora_alpha": 6, **TARGETS}
CASES = {
    "lora": (later("Lora", **LORA), lora(SELECT, rank=4, alpha=6), FACTORS),
    "rslora": (later("Lora", use_rslora=True, **LORA), lora(SELECT, rank=4, alpha=6, rank_stabilized=True), FACTORS),
    "dora": (later("Lora", use_dora=True, **LORA), dora(SELECT, rank=4, alpha=6),
             {**FACTORS, "magnitude": lambda m: get(m, "lora_magnitude_vector")}),
    "adalora": (later("AdaLora", init_r=4, target_r=2, total_step=10, lora_alpha=6, **TARGETS),
                adalora(SELECT, rank=4, alpha=6), {**FACTORS, "e": lambda m: get(m, "lora_E")[:, 0]}),
    "vera": (later("Vera", r=6, **TARGETS), vera(SELECT, rank=6),
             {"d": factor("vera_lambda_d"), "s": factor("vera_lambda_b")},
             {"a": lambda module, m, n: get(module, "vera_A")[:, :m].T,
              "b": lambda module, m, n: get(module, "vera_B")[:n].T}),
    "hira": (later("Hira", r=4, **TARGETS), hira(SELECT, rank=4), {"a": factor("hira_A"), "b": factor("hira_B")}),
    **{f"loha_{r}": (later("LoHa", r=r, alpha=6, **TARGETS), loha(SELECT, rank=r, alpha=6),
                     {"a1": factor("hada_w1_b"), "b1": factor("hada_w1_a"),
                      "a2": factor("hada_w2_b"), "b2": factor("hada_w2_a")})
       for r in (2, 5)},
    **{f"lokr_{r}_{f}": (later("LoKr", r=r, alpha=6, decompose_factor=f or -1, **TARGETS),
                         lokr(SELECT, rank=r, alpha=6, factor=f),
                         {"left": factor("lokr_w1"), "right": factor("lokr_w2"),
                          "a": factor("lokr_w2_b"), "b": factor("lokr_w2_a")})
       for r, f in ((2, None), (2, 4), (8, 2))},
    "delora": (later("Delora", r=4, delora_lambda=3, **TARGETS), delora(SELECT, rank=4, strength=3.0),
               {"a": factor("delora_A"), "b": factor("delora_B"), "strength": lambda m: get(m, "delora_lambda")[0]}),
    "miss": (later("Miss", r=5, **TARGETS), miss(SELECT, rank=5), {"shard": lambda m: get(m, "miss_block")}),
    "fourier_ft": (later("FourierFT", n_frequency=20, **TARGETS), fourier_ft(SELECT, frequencies=20),
                   {"spectrum": factor("fourierft_spectrum")},
                   {"places": lambda module, m, n: module.indices["default"][1] * n + module.indices["default"][0]}),
    "c3a": (later("C3A", block_size=8, **TARGETS), c3a(SELECT, block=8), {"kernel": lambda m: get(m, "c3a_kernel")}),
    "vb_lora": (later("VBLoRA", r=4, num_vectors=7, vector_length=8, **TARGETS),
                vb_lora(SELECT, rank=4, vectors=7, length=8),
                {"a": lambda m: get(m, "vblora_logits_A"), "b": lambda m: get(m, "vblora_logits_B"),
                 "bank": lambda model: model.base_model.vblora_vector_bank["default"].detach().numpy()}),
    "rand_lora": (later("RandLora", r=5, randlora_alpha=6, **TARGETS), rand_lora(SELECT, rank=5, alpha=6),
                  {"scales": lambda m: get(m, "randlora_lambda"),
                   "weights": lambda m: get(m, "randlora_gamma").T if m.in_features <= m.out_features
                              else get(m, "randlora_gamma")},
                  {"narrow": lambda module, m, n: get(module, "randlora_A")[:, 0, : min(m, n)], "wide": wide}),
}


# The files' tests compare the logits of each method, and the contract of transforms its products with what it forms.
@pytest.mark.parametrize("name", [
    name if name in ("lora", "vera") else pytest.param(name, marks=pytest.mark.exhaustive) for name in CASES])
def test_merged_weights_and_logits(name, base, tmp_path):
  config, transform, read, note = (*CASES[name], None)[:4]
  params, ours = base
  model = peft.get_peft_model(small_llama(), config()).eval().float()
  torch.manual_seed(1)
  with torch.no_grad():
    for p in model.parameters():
      if p.requires_grad:
        p.add_(0.3 * torch.randn_like(p))
    logits = model(torch.tensor(IDS)).logits.numpy()
  joined = transform.join(*theirs(model, *transform.split(jax.random.key(0), params), read, note))
  want, _ = load(model.merge_and_unload(), tmp_path / "merged")
  errors = jax.tree.map(relative_error, materialize(joined), want)
  moved = jax.tree.map(relative_error, params, want)
  assert sum(x > 0.01 for x in jax.tree.leaves(moved)) == 3
  error = relative_error(our_logits(joined, ours), logits)
  print(f"{name}: weights {max(jax.tree.leaves(errors)):.1e}, logits {error:.1e}")
  assert max(jax.tree.leaves(errors)) < 1e-6 and error < 1e-5


@pytest.mark.exhaustive
def test_layer_norms_have_pefts_weights_and_logits(base, tmp_path):
  params, ours = base
  model = peft.get_peft_model(small_llama(), peft.LNTuningConfig(target_modules=["norm", "input_layernorm"])).eval()
  torch.manual_seed(1)
  with torch.no_grad():
    for p in model.parameters():
      if p.requires_grad:
        p.add_(0.3 * torch.randn_like(p))
  frozen, trainable = (transform := train(["**/attention_norm/scale", "norm/scale"])).split(jax.random.key(0), params)
  layers = [model.get_submodule(f"base_model.model.model.layers.{i}.input_layernorm") for i in range(LAYERS)]
  scale = lambda module: module.ln_tuning_layers["default"].weight.detach().numpy()
  trainable["layers"]["attention_norm"]["scale"] = jnp.asarray(np.stack([scale(module) for module in layers]))
  trainable["norm"]["scale"] = jnp.asarray(scale(model.base_model.model.model.norm))
  with torch.no_grad():
    logits = model(torch.tensor(IDS)).logits.numpy()
  joined = transform.join(frozen, trainable)
  want, _ = load(model.merge_and_unload(), tmp_path / "merged")
  jax.tree.map(np.testing.assert_array_equal, joined, want)
  changed = jax.tree.map(relative_error, params, want)
  assert [path for path, x in leaves_with_paths(changed) if x > 0.01] == ["layers/attention_norm/scale", "norm/scale"]
  error = relative_error(our_logits(joined, ours), logits)
  print(f"ln_tuning: logits {error:.1e}")
  assert error < 1e-5


def inputs_of(model, sequences):
  """The inputs of each adapted module, by our paths: a list over sequences of `{path: [layer, position, in]}`."""
  out = []
  for ids in sequences:
    seen = {}
    hooks = [model.get_submodule(f"model.layers.{i}.{name}").register_forward_pre_hook(
        lambda module, args, at=(path, i): seen.__setitem__(at, args[0][0].numpy()))
        for path, name in NAMES.items() for i in range(LAYERS)]
    with torch.no_grad():
      model(torch.tensor(ids)[None])
    for hook in hooks:
      hook.remove()
    out.append({path: np.stack([seen[path, i] for i in range(LAYERS)]) for path in NAMES})
  return out


PATHS = {"query": "layers/attention/query", "value": "layers/attention/value", "down": "layers/mlp/down"}


@pytest.mark.parametrize("name", ["pissa", "olora", "mica", "corda_ipm", "corda_kpm"])
def test_inits_split_weights_as_peft_does(name, base):
  params, _ = base
  model, options, statistics = small_llama(), {"init_lora_weights": name.split("_")[0]}, None
  if name.startswith("corda"):
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda
    sequences = np.random.default_rng(1).integers(0, 61, (12, 9))
    for x in inputs_of(model, sequences):
      each = jax.vmap(lambda rows: add_inputs(None, rows[None], by_example=True))
      batch = {PATHS[path]: each(rows) for path, rows in x.items()}
      statistics = batch if statistics is None else jax.tree.map(jnp.add, statistics, batch)
    options["corda_config"] = CordaConfig(corda_method=name[-3:], verbose=False)
    config = peft.LoraConfig(**LORA, **options)

    def run():
      with torch.no_grad():
        for ids in sequences:
          model(torch.tensor(ids)[None])

    preprocess_corda(model, config, run_model=run)
  model = peft.get_peft_model(model, peft.LoraConfig(**LORA, **options))
  init = {"pissa": pissa, "olora": olora, "corda_ipm": corda("preview"), "corda_kpm": corda("preserve")}.get(name, mica)
  transform = lora(
      SELECT, rank=4, alpha=6, init=init, statistics=statistics, train="a" if init is mica else "ab")
  frozen, trainable = transform.split(jax.random.key(0), params)
  joined = transform.join(frozen, trainable)
  for part, short in (("attention", "query"), ("attention", "value"), ("mlp", "down")):
    leaf = joined["layers"][part][short]["kernel"]
    weight = stacked(model, short, lambda module: module.get_base_layer().weight.T)
    assert relative_error(leaf.w, weight) < 1e-4
    b = stacked(model, short, factor("lora_B"))
    if name == "mica":
      assert not jnp.any(leaf.a)
      cosines = jnp.abs(leaf.b @ jnp.swapaxes(b, -1, -2))
      assert relative_error(cosines, jnp.broadcast_to(jnp.eye(4), cosines.shape)) < 1e-3
    else:
      assert relative_error(leaf.a @ leaf.b, stacked(model, short, factor("lora_A")) @ b) < 1e-3


def triplets_of(model, read):
  names = {"a": "lora_A", "b": "lora_B", "e": "lora_E"}
  read_all = lambda short: {k: stacked(model, short, lambda module: read(get(module, v)).T) for k, v in names.items()}
  out = {short: read_all(short) for short in NAMES}
  return {short: {**t, "e": t["e"][:, 0]} for short, t in out.items()}


def test_adalora_budget_scores_and_regularizer_are_pefts():
  total, kept = 4 * 3 * LAYERS, 9
  config = peft.AdaLoraConfig(init_r=4, target_r=2, tinit=3, tfinal=5, total_step=30, deltaT=1, **TARGETS)
  model = peft.get_peft_model(small_llama(), config)
  allocator = model.base_model.rankallocator
  for step in range(30):
    got = rank_budget(step, initial=total, target=total // 2, warmup=3, final=5, total=30)
    assert int(got) == allocator.budget_schedule(step)[0], step

  ids = torch.tensor(IDS)
  losses = []
  for weight in (0.5, 0.0):
    model.peft_config["default"].orth_reg_weight = weight
    losses.append(model.base_model(ids, labels=ids).loss.item())
  triplets = triplets_of(model, lambda p: p)
  assert float(0.5 * orthogonality(triplets)) == pytest.approx(losses[0] - losses[1], rel=1e-4)

  torch.manual_seed(2)
  importance = zero_importance(triplets)
  with torch.no_grad():
    for _ in range(2):
      for name, p in model.named_parameters():
        if "lora_" in name:
          p.copy_(torch.randn_like(p))
          p.grad = torch.randn_like(p)
      allocator.update_ipt(model)
      grads = triplets_of(model, lambda p: p.grad)
      importance = update_importance(importance, triplets_of(model, lambda p: p), grads)
    triplets = triplets_of(model, lambda p: p)
    allocator.mask_to_budget(model, kept)
  pruned = keep_triplets(triplets, top_triplets(triplet_scores(importance), kept))
  assert sum(int(jnp.sum(t["e"] != 0)) for t in pruned.values()) == kept
  for got, want in zip(jax.tree.leaves(pruned), jax.tree.leaves(triplets_of(model, lambda p: p)), strict=True):
    np.testing.assert_array_equal(got, want)
