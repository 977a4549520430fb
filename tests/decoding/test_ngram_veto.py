"""No answer completes a blocked n-gram, with the prompt's tokens or without; without n-grams nothing changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.decoding import Stepwise, beam_search, generate, ngram_veto, with_ngram_veto


def chain(vocab=4):
  """A model of pairs: what follows depends on the last token alone."""
  table = jax.device_put(np.random.default_rng(0).normal(size=(vocab, vocab)).astype(np.float32) * 2)

  def start(params, prompt, mask, room):
    last = prompt.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    token = prompt[jnp.arange(len(prompt)), last]
    return params[token], token

  return Stepwise(params=table, start=start, step=lambda params, state, tokens, running: (params[tokens], tokens),
                  vocab_size=vocab)


def grams(rows, n):
  return {tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)}


def test_no_blocked_gram_is_drawn():
  prompts = np.array([[1, 2, 0], [0, 1, 2], [3, 3, 1]])
  mask = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1]])
  blocked = np.array([[1, 2, 3], [1, 2, 0], [2, 2, 2], [3, 1, 0], [0, 0, 0]])
  whole = lambda tokens: [[t for t, m in zip(p, k, strict=True) if m] + row for p, k, row in zip(
      prompts.tolist(), mask.tolist(), np.asarray(tokens).tolist(), strict=True)]
  draw = lambda model, seed: generate(model, prompts, jax.random.key(seed), mask=mask, max_new_tokens=24).tokens
  banned = {tuple(row) for row in blocked.tolist()}
  assert all(grams(whole(draw(chain(), seed)), 3) & banned for seed in range(3))
  vetoed = with_ngram_veto(chain(), blocked)
  for seed in range(3):
    assert not grams(whole(draw(vetoed, seed)), 3) & banned
  found = beam_search(vetoed, prompts, beams=2, max_new_tokens=8, mask=mask)
  assert not grams(whole(np.asarray(found.tokens)[:, 0]), 3) & banned
  again = with_ngram_veto(model := chain(), blocked + 0), with_ngram_veto(model, blocked[::-1])
  static = [jax.tree.structure(one) for one in again]
  assert static[0] == static[1]  # so that a loop is compiled once
  none = with_ngram_veto(chain(), np.zeros((0, 3), int))
  np.testing.assert_array_equal(draw(none, 0), draw(chain(), 0))


def test_a_penalty_is_taken_off_once():
  logits, prefix = jnp.zeros((2, 4)), jnp.array([[1, 2], [-1, 2]])
  twice = jnp.array([[1, 2, 3], [1, 2, 3], [1, 2, 0], [2, 2, 1]])
  assert ngram_veto(logits, prefix, twice, penalty=1.5).tolist() == [[-1.5, 0, 0, -1.5], [0, 0, 0, 0]]
  assert np.isneginf(ngram_veto(logits, prefix, twice)).tolist() == [[True, False, False, True], [False] * 4]


def test_against_transformers():
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  rng = np.random.default_rng(1)
  blocked, prefix = rng.integers(0, 3, (6, 3)), rng.integers(0, 3, (8, 2))
  logits = rng.normal(size=(8, 3)).astype(np.float32)
  there = transformers.NoBadWordsLogitsProcessor(blocked.tolist(), eos_token_id=99)(
      torch.tensor(prefix), torch.tensor(logits))
  np.testing.assert_array_equal(ngram_veto(logits, prefix, blocked), there.numpy())


def test_what_is_refused():
  for blocked in (np.zeros((2, 1), int), np.zeros((2, 3)), np.full((1, 2), -1)):
    with pytest.raises(ValueError, match="blocked must be token ids"):
      with_ngram_veto(chain(), blocked)
  with pytest.raises(ValueError, match="penalty must"):
    with_ngram_veto(chain(), np.zeros((1, 2), int), penalty=-1.0)
  with pytest.raises(ValueError, match="prefix must be of 2 tokens"):
    ngram_veto(jnp.zeros((1, 3)), jnp.zeros((1, 1), int), jnp.zeros((1, 3), int))
