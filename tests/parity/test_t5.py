"""T5 against transformers, on random checkpoints of unequal depth: values, gradients, greedy decoding, files."""

import jax
import numpy as np
import pytest

from jaxft.decoding import generate, stepwise_encoder_decoder
from jaxft.formats.huggingface import load_directory, save_directory
from jaxft.losses import Mean
from jaxft.models import encoder_decoder
from tests.parity.libraries import library

torch = library("torch")
transformers = library("transformers")

INPUTS_MASK = np.arange(30) < np.array([[30], [9]])
TARGETS_MASK = np.arange(25) < np.array([[4], [25]])


def relative_error(got, want):
  got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
  return np.abs(got - want).max() / np.abs(want).max()


@pytest.fixture(scope="module", params=["tied relu", "untied gated-gelu"])
def pair(request, tmp_path_factory):
  torch.manual_seed(0)
  tying, kind = request.param.split()
  tied = tying == "tied"
  model = transformers.T5ForConditionalGeneration(transformers.T5Config(
      vocab_size=61, d_model=24, d_kv=10, d_ff=40, num_layers=2, num_decoder_layers=3, num_heads=4,
      relative_attention_num_buckets=8, relative_attention_max_distance=20, feed_forward_proj=kind,
      tie_word_embeddings=tied, decoder_start_token_id=0)).eval()
  for name, parameter in model.named_parameters():
    if "relative_attention_bias" in name or "layer_norm" in name:
      torch.nn.init.normal_(parameter, 1.0, 0.3)
  if not tied:
    model.lm_head.weight = torch.nn.Parameter(torch.randn(61, 24))
  path = tmp_path_factory.mktemp("t5")
  model.save_pretrained(path)
  return model, path


def test_values_gradients_and_files(pair, tmp_path):
  theirs, path = pair
  params, config = load_directory(path)
  rng = np.random.default_rng(0)
  inputs, targets = rng.integers(2, 61, (2, 30)), rng.integers(2, 61, (2, 25))
  call = {"input_ids": torch.tensor(inputs), "attention_mask": torch.tensor(INPUTS_MASK.astype(int)),
          "labels": torch.tensor(np.where(TARGETS_MASK, targets, -100))}
  out = theirs(**call, output_hidden_states=True)

  @jax.jit
  def ours(params):
    states, read = encoder_decoder.encode(params, config, inputs, INPUTS_MASK, record=("layers/out",))
    shifted = encoder_decoder.shift_right(targets, 0)
    hidden, _, said = encoder_decoder.decode(params, config, shifted, states, INPUTS_MASK, record=("layers/out",))
    return states, read["layers/out"], said["layers/out"], encoder_decoder.logits(params, config, hidden)

  states, read, said, logits = ours(params)
  array = lambda x: x.detach().numpy()
  assert relative_error(np.asarray(states)[INPUTS_MASK], array(out.encoder_last_hidden_state)[INPUTS_MASK]) < 1e-5
  for layer in (0,):
    want = array(out.encoder_hidden_states[layer + 1])[INPUTS_MASK]
    assert relative_error(np.asarray(read[layer])[INPUTS_MASK], want) < 1e-5
  for layer in (0, 1):
    want = array(out.decoder_hidden_states[layer + 1])[TARGETS_MASK]
    assert relative_error(np.asarray(said[layer])[TARGETS_MASK], want) < 1e-5
  assert relative_error(np.asarray(logits)[TARGETS_MASK], array(out.logits)[TARGETS_MASK]) < 1e-5

  out.loss.backward()
  loss = lambda p: Mean.of(*encoder_decoder.target_nll(
      p, config, inputs, targets, inputs_mask=INPUTS_MASK, targets_mask=TARGETS_MASK, chunk=8)).value
  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  assert float(value) == pytest.approx(out.loss.item(), rel=1e-6)
  grad = lambda name: theirs.get_parameter(name).grad.numpy()
  assert relative_error(grads["embed"]["tokens"]["embedding"], grad("shared.weight")) < 1e-5
  bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
  for side, depth in (("encoder", 2), ("decoder", 3)):
    assert relative_error(grads[side]["relative"]["embedding"], grad(f"{side}.{bias}")) < 1e-5
    for layer in range(depth):
      own = jax.tree.map(lambda x, layer=layer: x[layer], grads[side]["layers"])
      query = grad(f"{side}.block.{layer}.layer.0.SelfAttention.q.weight").T
      assert relative_error(own["attention"]["query"]["kernel"], query) < 1e-4
  cross = grads["decoder"]["layers"]["cross_attention"]["key"]["kernel"][2]
  assert relative_error(cross, grad("decoder.block.2.layer.1.EncDecAttention.k.weight").T) < 1e-4
  if not config.tie_embeddings:
    assert relative_error(grads["head"]["kernel"], grad("lm_head.weight").T) < 1e-5

  save_directory(params, config, tmp_path / "ours")
  again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
  with torch.no_grad():
    assert relative_error(again(**call).logits, array(out.logits)) < 1e-6


def test_greedy_tokens(pair):
  theirs, path = pair
  params, config = load_directory(path)
  inputs = np.random.default_rng(1).integers(2, 61, (2, 30))
  with torch.no_grad():  # the cache of transformers 5.23 has as many layers as the encoder, too few for this decoder
    want = theirs.generate(
        torch.tensor(inputs), attention_mask=torch.tensor(INPUTS_MASK.astype(int)), max_new_tokens=40, do_sample=False,
        num_beams=1, use_cache=False)[:, 1:].numpy()
  got = generate(stepwise_encoder_decoder(params, config), inputs, jax.random.key(0), max_new_tokens=40,
                 mask=INPUTS_MASK, temperature=0)
  np.testing.assert_array_equal(np.asarray(got.tokens)[:, :want.shape[1]], want)
  assert (np.asarray(got.tokens)[:, want.shape[1]:] == 0).all()


def test_config_variants():
  """What released files say; what the model does not compute is refused by name."""
  from jaxft.formats.huggingface_config import from_huggingface

  base = {"model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 50,
          "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "is_encoder_decoder": True}
  first, second = from_huggingface(base), from_huggingface(
      {**base, "tie_word_embeddings": False, "feed_forward_proj": "gated-silu"})  # the latter is UL2's
  assert (first.tie_embeddings, first.activation, first.gated, first.decoder_layers) == (True, "relu", False, 2)
  assert (second.tie_embeddings, second.activation, second.gated) == (False, "silu", True)
  for change, message in (
      ({"feed_forward_proj": "gelu"}, "feed_forward_proj = 'gelu' is not supported"),
      ({"is_encoder_decoder": False}, "is_encoder_decoder = False"),
      ({"dense_act_fn": "silu"}, "dense_act_fn = 'silu'"),
      ({"tie_word_embeddings": False, "scale_decoder_outputs": True}, "scale_decoder_outputs = True"),
      ({"decoder_start_token_id": None, "pad_token_id": None}, "decoder_start_token_id must be a token id"),
      ({"sparse_step": 2}, "sparse_step = 2 is not supported")):
    with pytest.raises(ValueError, match=message):
      from_huggingface({**base, **change})
