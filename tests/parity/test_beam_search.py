"""Beam search against transformers' `generate(num_beams=...)`, on SmolLM2 and on a random small Llama."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.decoding import beam_search, stepwise_decoder
from jaxft.formats.huggingface import load_directory
from tests.parity.libraries import library

torch = library("torch")
transformers = library("transformers")


def theirs(model, ids, mask, *, beams, new, length_penalty, eos_id):
  with torch.no_grad():
    out = model.generate(
        torch.tensor(ids), attention_mask=torch.tensor(mask), num_beams=beams, num_return_sequences=beams,
        max_new_tokens=new, length_penalty=length_penalty, do_sample=False, early_stopping=False, eos_token_id=eos_id,
        pad_token_id=0, output_scores=True, return_dict_in_generate=True)
  rows = []
  for sequence in out.sequences[:, ids.shape[1]:].tolist():
    ends = [i for i, token in enumerate(sequence) if token == eos_id]
    rows.append(sequence[: ends[0] + 1] if ends else sequence)
  return rows, out.sequences_scores.numpy()


def agrees(params, config, model, ids, mask, *, beams, new, length_penalty, eos_id):
  rows, scores = theirs(model, ids, mask, beams=beams, new=new, length_penalty=length_penalty, eos_id=eos_id)
  out = beam_search(
      stepwise_decoder(params, config), jnp.asarray(ids), mask=jnp.asarray(mask), beams=beams, max_new_tokens=new,
      length_penalty=length_penalty, stop=[eos_id])
  np.testing.assert_allclose(np.asarray(out.scores).ravel(), scores, rtol=2e-4)
  got = [t[m].tolist() for t, m in zip(
      np.asarray(out.tokens).reshape(-1, new), np.asarray(out.mask).reshape(-1, new), strict=True)]
  # Rows that ended early are filled up with pads, which no beam generates here.
  assert got == [row[: len(g)] for row, g in zip(rows, got, strict=True)]
  assert not any(any(row[len(g):]) for row, g in zip(rows, got, strict=True))
  return out


def test_small_llama(tmp_path):
  torch.manual_seed(0)
  model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
      vocab_size=12, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
      intermediate_size=48, max_position_embeddings=64, initializer_range=0.3, tie_word_embeddings=True,
      bos_token_id=1, eos_token_id=2)).eval()
  model.save_pretrained(tmp_path)
  params, config = load_directory(tmp_path)
  ids = np.random.default_rng(0).integers(3, 12, (4, 6))
  mask = (np.arange(6) >= [[0], [2], [0], [3]]).astype(int)
  lengths = set()
  for length_penalty, eos_id in itertools.product((0.0, 1.0, 2.0), (5, 9)):
    out = agrees(params, config, model, ids, mask, beams=4, new=8, length_penalty=length_penalty, eos_id=eos_id)
    lengths |= set(np.asarray(out.mask).sum(-1).ravel().tolist())
  assert len(lengths) > 3  # beams did end at different steps


@pytest.mark.exhaustive
def test_smollm2(smollm2, torch_smollm2):
  model, _ = torch_smollm2
  smollm2.tokenizer.no_padding()
  ids = np.array([smollm2.tokenizer.encode("def add(a, b):\n  return").ids])
  options = {"beams": 5, "new": 8, "length_penalty": 1.0, "eos_id": smollm2.tokenizer.encode("\n").ids[0]}
  agrees(smollm2.params, smollm2.config, model, ids, np.ones_like(ids), **options)
