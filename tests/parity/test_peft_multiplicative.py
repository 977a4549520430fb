"""IA3, OFT, BOFT, HRA, RoAd and trainable tokens against peft: merged weights and logits of a small random Llama."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.formats.huggingface import load_directory
from jaxft.leaves import materialize
from jaxft.models import decoder
from jaxft.transforms.entries.trainable_tokens import trainable_tokens
from jaxft.transforms.multiplicative.block_rotations import Butterfly
from jaxft.transforms.multiplicative.boft import boft
from jaxft.transforms.multiplicative.hra import hra
from jaxft.transforms.multiplicative.ia3 import ia3
from jaxft.transforms.multiplicative.oft import oft
from jaxft.transforms.multiplicative.road import road
from jaxft.tree import path_of
from tests.parity.libraries import later, library

torch = library("torch")
transformers = library("transformers")
peft = library("peft")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension"),
    pytest.mark.filterwarnings("ignore:Setting boft_n_butterfly_factor to 1"),   # what peft says after it
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
]

LAYERS = 2
NAMES = {"attention/query": "self_attn.q_proj", "attention/key": "self_attn.k_proj",
         "attention/value": "self_attn.v_proj", "mlp/down": "mlp.down_proj"}
SELECT = "**/{query,value,down}/kernel"
TARGETS = ["q_proj", "v_proj", "down_proj"]
IDS = np.random.default_rng(0).integers(0, 61, (2, 7))


def relative_error(got, want):
  got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
  return np.abs(got - want).max() / np.abs(want).max()


def small_llama(tied=False):
  torch.manual_seed(0)
  return transformers.LlamaForCausalLM(transformers.LlamaConfig(
      vocab_size=61, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
      intermediate_size=48, max_position_embeddings=64, initializer_range=0.2, tie_word_embeddings=tied,
      bos_token_id=1, eos_token_id=2)).eval()


def load(model, path):
  model.save_pretrained(path)
  return load_directory(path)


def adapted(config, tied=False):
  """peft's model with random numbers in all that trains."""
  model = peft.get_peft_model(small_llama(tied), config).eval()
  torch.manual_seed(1)
  with torch.no_grad():
    for p in model.parameters():
      if p.requires_grad:
        p.add_(0.3 * torch.randn_like(p))
  return model


def theirs(start, model, read):
  """What trains here, read out of peft's modules, layer by layer."""

  def stacked(keys, leaf):
    parts = path_of(keys).split("/")
    at = parts.index("layers")
    name = "base_model.model.model.layers.{}." + NAMES["/".join(parts[at + 1:at + 3])]
    values = [read[parts[-1]](model.get_submodule(name.format(i))) for i in range(LAYERS)]
    out = jnp.asarray(np.stack([v.detach().numpy() for v in values]))
    assert out.shape == leaf.shape
    return out

  return jax.tree_util.tree_map_with_path(stacked, start)


def skew_entries(module):
  r = module.boft_R["default"]
  q = (r - r.transpose(-1, -2)) / 2
  rows, columns = torch.triu_indices(4, 4, 1)
  return q[..., rows, columns]


ROAD = {"theta": lambda m: m.road_theta["default"], "alpha": lambda m: m.road_alpha["default"]}
CASES = {
    "ia3": (later("IA3", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]), ia3(),
            {"scale": lambda m: m.ia3_l["default"].T}),
    "oft_exact": (later("OFT", oft_block_size=8, use_cayley_neumann=False, target_modules=TARGETS),
                  oft(SELECT, block=8), {"skew": lambda m: m.oft_R["default"].weight}),
    "oft_series": (later("OFT", oft_block_size=8, target_modules=TARGETS), oft(SELECT, block=8, terms=5),
                   {"skew": lambda m: m.oft_R["default"].weight}),
    "boft": (later("BOFT", boft_block_size=4, target_modules=TARGETS), boft(SELECT, block=4),
             {"skew": skew_entries, "scale": lambda m: m.boft_s["default"].T}),
    "hra": (later("HRA", r=4, target_modules=TARGETS), hra(SELECT, rank=4), {"u": lambda m: m.hra_u["default"]}),
    **{f"road_{v}": (later("Road", variant=f"road_{v}", group_size=8, target_modules=TARGETS),
                     road(SELECT, variant=v, group=8), ROAD) for v in (1, 2, 4)},
}


# The files' tests compare the logits of each method, and the contract of transforms its products with what it forms.
@pytest.mark.parametrize("name", [
    name if name == "hra" else pytest.param(name, marks=pytest.mark.exhaustive) for name in CASES])
def test_merged_weights_and_logits(name, tmp_path):
  config, transform, read = CASES[name]
  params, ours = load(small_llama(), tmp_path / "base")
  model = adapted(config())
  frozen, start = transform.split(jax.random.key(0), params)
  joined = transform.join(frozen, theirs(start, model, read))
  with torch.no_grad():
    want_logits = model(torch.tensor(IDS)).logits.numpy()
  merged = model.merge_and_unload()
  want, _ = load(merged, tmp_path / "merged")
  got = materialize(joined)
  errors = jax.tree.map(relative_error, got, want)
  moved = jax.tree.map(relative_error, params, want)
  assert max(jax.tree.leaves(errors)) < 1e-6
  assert sum(x > 0.01 for x in jax.tree.leaves(moved)) == 3
  hidden = decoder.hidden_states(joined, ours, jnp.asarray(IDS)).hidden
  error = relative_error(decoder.logits(joined, ours, hidden), want_logits)
  assert error < 1e-5


def test_butterflies_of_several_factors_are_pefts():
  """peft runs them only with its CUDA extension, but makes the permutations anywhere."""
  from peft.tuners.boft.layer import BOFTLayer

  n, block, factors = 32, 4, 3
  blocks = np.random.default_rng(0).normal(size=(factors, n // block, block, block))
  want = np.eye(n)
  for j in range(factors):
    order = BOFTLayer.block_butterfly_perm(None, n, n // block // 2**j, block // 2, factors - 1).numpy()
    p = np.eye(n)[order]
    want = p @ np.asarray(torch.block_diag(*torch.tensor(blocks[j]))) @ p.T @ want
  by = Butterfly(jnp.asarray(blocks, jnp.float32))
  assert relative_error(by(jnp.eye(n)), want) < 1e-6
  assert relative_error(by.transposed(jnp.eye(n)), want.T) < 1e-6


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_trainable_tokens(tied, tmp_path):
  tokens = [7, 60, 3]
  params, ours = load(small_llama(tied), tmp_path / "base")
  model = adapted(peft.TrainableTokensConfig(token_indices=tokens, target_modules=["embed_tokens"]), tied)
  delta = model.get_submodule("base_model.model.model.embed_tokens").trainable_tokens_delta["default"]
  transform = trainable_tokens(tokens)
  frozen, start = transform.split(jax.random.key(0), params)
  joined = transform.join(frozen, jax.tree.map(lambda x: jnp.asarray(delta.detach().numpy()), start))
  with torch.no_grad():
    want_logits = model(torch.tensor(IDS)).logits.numpy()
  hidden = decoder.hidden_states(joined, ours, jnp.asarray(IDS)).hidden
  assert relative_error(decoder.logits(joined, ours, hidden), want_logits) < 1e-5
  want, _ = load(model.merge_and_unload(), tmp_path / "merged")
  assert max(jax.tree.leaves(jax.tree.map(relative_error, materialize(joined), want))) < 1e-6
