"""Perplexity, the windows it rolls over, and the scoring of pairs of unequal lengths."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.evaluation.perplexity import bits_per_byte, perplexity, rolling_windows
from jaxft.evaluation.scoring import encode_pair, score_choices
from jaxft.losses import token_log_probs

VOCAB = 11


def test_uniform_models():
  assert float(perplexity(20 * np.log(50.0), 20)) == pytest.approx(50, rel=1e-5)
  assert float(bits_per_byte(100 * np.log(256.0), 100)) == pytest.approx(8, rel=1e-6)


def test_windows_of_the_harness():
  # lm-evaluation-harness' own illustration: ten tokens, four at a time.
  assert list(rolling_windows(range(10), 4, 100)) == [
      ([100], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]
  assert list(rolling_windows(range(5), 4, 100, context_length=4)) == [([100], [0, 1, 2, 3]), ([0, 1, 2, 3], [4])]
  assert list(rolling_windows([], 4, 100)) == []


@pytest.mark.parametrize("context_length", [1, 2, 5])
@pytest.mark.parametrize("length", [1, 4, 5, 6, 17])
def test_every_token_is_predicted_once_after_what_precedes_it(length, context_length):
  tokens, predicted = list(range(length)), []
  for context, continuation in rolling_windows(tokens, 5, -1, context_length=context_length):
    assert len(context) + len(continuation) <= 6
    start = len(predicted)
    assert context == ([-1] + tokens)[start + 1 - len(context) : start + 1]
    assert start == 0 or len(context) >= context_length
    predicted += continuation
  assert predicted == tokens


def test_context_length_out_of_range_raises_at_the_call():
  with pytest.raises(ValueError, match="context_length must lie in"):
    rolling_windows([1], 4, 0, context_length=5)


def bigram_values(shapes):
  """Token values of a bigram model with random logits, which sees no padding; records the shapes it was given."""
  table = jnp.asarray(np.random.default_rng(0).normal(size=(VOCAB, VOCAB)), jnp.float32)

  @jax.jit
  def values(tokens, mask):
    shapes.append(tokens.shape)  # once for each compilation
    logits = table[tokens]
    greedy = jnp.roll(jnp.argmax(logits, -1), 1, axis=-1) == tokens
    return {"log_probs": token_log_probs(logits, tokens, mask)[0], "misses": ~greedy & mask}

  return values, np.asarray(jax.nn.log_softmax(table))


def test_scores_are_those_of_each_pair_alone_in_the_order_given():
  rng, shapes = np.random.default_rng(1), []
  values, log_probs = bigram_values(shapes)
  pairs = [
      (rng.integers(0, VOCAB, rng.integers(1, 40)).tolist(), rng.integers(0, VOCAB, rng.integers(1, 6)).tolist())
      for _ in range(25)
  ]
  got = score_choices(values, pairs, max_length=64, batch_size=4, buckets=(8, 16, 32))
  for i, (context, continuation) in enumerate(pairs):
    steps = list(pairwise([context[-1], *continuation]))
    assert got["log_probs"][i] == pytest.approx(sum(log_probs[a, b] for a, b in steps), rel=1e-5)
    assert got["misses"][i] == sum(log_probs[a].argmax() != b for a, b in steps)
  assert set(shapes) <= {(4, w) for w in (8, 16, 32, 64)} and len(shapes) == len(set(shapes)) >= 2


def test_long_pairs_lose_the_left_of_their_context():
  values, log_probs = bigram_values([])
  pair = (list(range(10)), [3, 4])
  short = score_choices(values, [(pair[0][-2:], pair[1])], max_length=4)
  assert score_choices(values, [pair], max_length=4)["log_probs"][0] == pytest.approx(short["log_probs"][0])


def test_perplexity_of_a_document_through_windows():
  values, log_probs = bigram_values([])
  tokens = np.random.default_rng(2).integers(0, VOCAB, 23).tolist()
  nll = -score_choices(values, list(rolling_windows(tokens, 6, 0)), max_length=7)["log_probs"].sum()
  expected = -sum(log_probs[a, b] for a, b in pairwise([0, *tokens]))  # a bigram model needs one token of context
  assert nll == pytest.approx(expected, rel=1e-5)


def test_pairs_are_cut_where_the_harness_cuts_them():
  encode = lambda text: [ord(c) for c in text]
  assert encode_pair(encode, "ab ", "cd") == (encode("ab"), encode(" cd"))
  assert encode_pair(encode, "", "cd", prefix_token=0) == ([0], encode("cd"))
  with_prefix = lambda text: [0, *encode(text)]
  assert encode_pair(with_prefix, "ab", " c", prefix_token=0) == (with_prefix("ab"), encode(" c"))
  assert encode_pair(with_prefix, "", "c", prefix_token=0) == ([0], encode("c"))
  with pytest.raises(ValueError, match="give prefix_token"):
    encode_pair(encode, "", "cd")
  with pytest.raises(ValueError, match="has no token of its own"):
    encode_pair(encode, "ab", "")


def test_errors_name_the_pair():
  values, _ = bigram_values([])
  with pytest.raises(ValueError, match="pair 1 must have a context and a continuation; got 0 and 1"):
    score_choices(values, [([1], [2]), ([], [2])], max_length=8)
  with pytest.raises(ValueError, match="pair 0 has a continuation of 8 tokens; max_length = 8"):
    score_choices(values, [([1], [2] * 8)], max_length=8)
