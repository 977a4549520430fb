"""DeBERTa's second and third version against transformers, on random checkpoints: values, gradients, files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.formats.huggingface import load_directory, save_directory
from jaxft.models import encoder
from tests.parity.libraries import library

torch = library("torch")
transformers = library("transformers")

MASK = np.arange(40) < np.array([[40], [9]])
VARIANTS = {
    "version 3": {"share_att_key": True, "position_buckets": 8, "max_relative_positions": 20,
                  "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm", "position_biased_input": False},
    "own keys, no buckets": {"share_att_key": False, "max_relative_positions": 12, "pos_att_type": "c2p|p2c",
                             "type_vocab_size": 2},
    "to positions alone": {"position_buckets": 6, "pos_att_type": ["c2p"], "position_biased_input": False},
    "to content alone": {"share_att_key": True, "position_buckets": 10, "pos_att_type": ["p2c"]},
}


def relative_error(got, want):
  got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
  return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_values_gradients_and_files(variant, tmp_path):
  torch.manual_seed(0)
  config = transformers.DebertaV2Config(
      vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
      max_position_embeddings=48, initializer_range=0.3, relative_attention=True, **VARIANTS[variant])
  theirs = transformers.DebertaV2Model(config).eval()
  for name, parameter in theirs.named_parameters():
    if "LayerNorm" in name or name.endswith("bias"):
      torch.nn.init.normal_(parameter, 1.0 if "LayerNorm.weight" in name else 0.0, 0.3)
  theirs.save_pretrained(tmp_path / "theirs")
  params, ours = load_directory(tmp_path / "theirs")
  assert ours.disentangled is not None and ours.position_table == VARIANTS[variant].get("position_biased_input", True)
  ids = np.random.default_rng(0).integers(1, 61, (2, 40))
  call = lambda model: model(torch.tensor(ids), attention_mask=torch.tensor(MASK.astype(int))).last_hidden_state
  out = call(theirs)
  weight = np.random.default_rng(1).normal(size=(2, 40, 24)).astype(np.float32) * MASK[..., None]

  @jax.jit
  def both(params):
    def loss(params):
      states, _ = encoder.hidden_states(params, ours, ids, MASK)
      return jnp.sum(weight * states), states
    return jax.grad(loss, has_aux=True)(params)

  grads, states = both(params)
  assert relative_error(np.asarray(states)[MASK], out.detach().numpy()[MASK]) < 1e-5
  (torch.tensor(weight) * out).sum().backward()
  grad = lambda name: theirs.get_parameter(name).grad.numpy()
  assert relative_error(grads["relative"]["embedding"], grad("encoder.rel_embeddings.weight")) < 1e-4
  assert relative_error(grads["embed"]["tokens"]["embedding"], grad("embeddings.word_embeddings.weight")) < 1e-4
  for layer in range(2):
    attention = jax.tree.map(lambda x, layer=layer: x[layer], grads["layers"]["attention"])
    names = {"query": "query_proj", "key": "key_proj"}
    names |= {"position_key": "pos_key_proj", "position_query": "pos_query_proj"}
    for name in attention.keys() & names.keys():
      want = grad(f"encoder.layer.{layer}.attention.self.{names[name]}.weight").T
      assert relative_error(attention[name]["kernel"], want) < 1e-4

  save_directory(params, ours, tmp_path / "ours")
  again = transformers.DebertaV2Model.from_pretrained(tmp_path / "ours").eval()
  with torch.no_grad():
    assert relative_error(call(again), out.detach()) < 1e-6


def test_what_is_not_computed_is_refused():
  from jaxft.formats.huggingface_config import from_huggingface

  base = {"model_type": "deberta-v2", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
          "intermediate_size": 16, "vocab_size": 50, "relative_attention": True, "pos_att_type": "p2c|c2p"}
  assert from_huggingface(base, pooling="cls").pooling == "cls"
  for change, message in (
      ({"conv_kernel_size": 3}, "conv_kernel_size = 3 is not supported"), ({"embedding_size": 4}, "embedding_size = 4"),
      ({"relative_attention": False}, "relative_attention = False"), ({"pos_att_type": ["p2p"]}, "got p2p"),
      ({"norm_rel_ebd": "batch_norm"}, "got batch_norm"), ({"attention_head_size": 8}, "attention_head_size = 8")):
    with pytest.raises(ValueError, match=message):
      from_huggingface({**base, **change})
  with pytest.raises(ValueError, match="relative_attention must be true; it is absent"):
    from_huggingface({key: value for key, value in base.items() if key != "relative_attention"})
