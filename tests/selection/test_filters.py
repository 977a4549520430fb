"""Filters by perplexity and by ranking."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.selection import ranking_consistent, select_band, sequence_perplexity


def test_perplexity_is_over_the_tokens_that_count():
  rng = np.random.default_rng(0)
  logits, targets = rng.normal(size=(2, 3, 5)).astype(np.float32), rng.integers(0, 5, (2, 3)).astype(np.int32)
  where = np.array([[False, True, True], [True, False, False]])
  logits[0, 0] = 50.0  # a token that does not count
  got = sequence_perplexity(logits, targets, where)
  log_probs = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
  of = lambda i, places: np.exp(-np.mean([log_probs[i, t, targets[i, t]] for t in places]))
  np.testing.assert_allclose(got, [of(0, (1, 2)), of(1, (0,))], rtol=1e-5)


def test_the_lowest_and_a_band_ties_by_place():
  scores = np.array([2.0, 1.0, 1.0, 3.0, 1.0, 4.0, 0.5, 9.0, 8.0, 7.0])
  assert select_band(scores).tolist() == [1, 6] and select_band(scores, high=1.0).tolist() == list(range(10))
  assert select_band(scores, low=0.2, high=0.5).tolist() == [0, 2, 4]
  eligible = scores > 1
  assert select_band(scores, eligible=eligible, high=0.5).tolist() == [0, 3, 5]
  assert select_band(np.where(eligible, scores, np.nan), eligible=eligible, high=0.5).tolist() == [0, 3, 5]


def test_the_candidate_at_the_rank_decides():
  scores = np.array([[0.1, 0.9, 0.5, 0.3]] * 3, np.float32)
  positive = jnp.array([0.5, 0.49, 0.3])
  assert ranking_consistent(scores, positive, rank=2).tolist() == [True, False, False]
  assert ranking_consistent(scores, positive, rank=3).tolist() == [True, True, True]


@pytest.mark.parametrize(("call", "message"), [
  (lambda: select_band(np.ones(3), low=0.3, high=0.3), "low must be below high"),
  (lambda: select_band(np.array([np.nan, 1.0])), "scores must be finite"),
  (lambda: ranking_consistent(np.ones((1, 3)), np.ones(1), rank=4), r"rank must lie in \[1, 3\], the candidates"),
])
def test_what_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
