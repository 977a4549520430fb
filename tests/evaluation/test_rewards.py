"""Best of n against all subsets, and the order of rewards against a count by hand."""

import itertools

import numpy as np
import pytest

from jaxft.evaluation import best_of_n_curve, best_of_n_divergence, pairwise_consistency


def test_best_of_n_is_the_mean_over_all_subsets():
  rng = np.random.default_rng(0)
  proxy, gold = rng.integers(0, 4, (3, 6)).astype(float), rng.normal(size=(3, 6))
  proxy[0] = rng.permutation(6)  # without ties
  for n in range(1, 7):
    expected = []
    for p, g in zip(proxy, gold, strict=True):
      best = lambda rows, p=p, g=g: np.mean([g[i] for i in rows if p[i] == max(p[list(rows)])])
      expected.append(np.mean([best(rows) for rows in itertools.combinations(range(6), n)]))
    np.testing.assert_allclose(best_of_n_curve(proxy, gold, [n])[:, 0], expected, rtol=1e-9)
  large = rng.normal(size=(1, 4096))
  curve = best_of_n_curve(large, large, [1, 64, 4096])[0]
  assert curve[[0, 2]] == pytest.approx([large.mean(), large.max()]) and np.all(np.diff(curve) > 0)
  np.testing.assert_allclose(best_of_n_divergence([1, 2]), [0, np.log(2) - 0.5])


def test_consistency_counts_pairs_of_different_ranks():
  rng = np.random.default_rng(1)
  rewards, ranks = rng.integers(0, 3, (20, 5)).astype(float), rng.integers(1, 4, (20, 5))
  valid = rng.random((20, 5)) < 0.7
  shares, pairs = pairwise_consistency(np.where(valid, rewards, np.nan), ranks, valid=valid)
  for i in range(20):
    scores = [(np.sign(rewards[i, a] - rewards[i, b]) + 1) / 2 for a in range(5) for b in range(5)
              if valid[i, a] and valid[i, b] and ranks[i, a] < ranks[i, b]]
    assert pairs[i] == len(scores) and shares[i] == pytest.approx(np.mean(scores) if scores else 0)
  assert [x.tolist() for x in pairwise_consistency(np.ones((1, 1)), np.ones((1, 1)))] == [[0.0], [0.0]]


def test_what_is_refused():
  good = np.ones((2, 3))
  with pytest.raises(ValueError, match=r"n must be integers in \[1, responses = 3\]"):
    best_of_n_curve(good, good, [4])
  with pytest.raises(ValueError, match="n must be integers"):
    best_of_n_curve(good, good, [])
  with pytest.raises(ValueError, match="gold must be finite"):
    best_of_n_curve(good, np.nan * good, [1])
  with pytest.raises(ValueError, match="n must be at least 1"):
    best_of_n_divergence([0.5])
  with pytest.raises(ValueError, match=r"must be \[prompts, responses\]; got \(2, 3\), \(2, 2\)"):
    pairwise_consistency(good, good[:, :2])
