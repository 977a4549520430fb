"""Pairs by scores: every pair within a group that differs enough, and no other."""

import numpy as np
import pytest

from jaxft.selection import preference_pairs


def test_all_pairs_of_a_group_that_differ_enough():
  rng = np.random.default_rng(0)
  scores, groups = rng.integers(0, 5, 40).astype(float), rng.integers(0, 6, 40)
  for gap in (0.0, 1.0):
    pairs = set(zip(*map(np.ndarray.tolist, preference_pairs(scores, groups, min_gap=gap)), strict=True))
    assert pairs == {(i, j) for i in range(40) for j in range(40)
                     if groups[i] == groups[j] and scores[i] - scores[j] > gap}
  for tied in (np.ones(3), np.zeros(1), np.zeros(0)):
    assert [len(x) for x in preference_pairs(tied, np.zeros(len(tied)))] == [0, 0]


def test_some_pairs_of_each_group():
  scores, groups = np.arange(20.0), np.repeat([7, 3], 10)
  chosen, rejected = preference_pairs(scores, groups, per_group=5, seed=1)
  assert groups[chosen].tolist() == groups[rejected].tolist() == [7] * 5 + [3] * 5
  assert len(set(zip(chosen.tolist(), rejected.tolist(), strict=True))) == 10 and np.all(chosen > rejected)
  again, other = (preference_pairs(scores, groups, per_group=5, seed=seed)[0].tolist() for seed in (1, 2))
  assert again == chosen.tolist() != other


def test_what_is_refused():
  for options, message in (({"min_gap": -1.0}, "min_gap must lie in"), ({"per_group": 0}, "per_group must be at")):
    with pytest.raises(ValueError, match=message):
      preference_pairs(np.ones(2), np.ones(2), **options)
  with pytest.raises(ValueError, match="scores must be finite"):
    preference_pairs(np.array([1.0, np.nan]), np.ones(2))
  with pytest.raises(ValueError, match="groups must be one for each of the 2 scores"):
    preference_pairs(np.ones(2), np.ones(3))
