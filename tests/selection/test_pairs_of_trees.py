import numpy as np
import pytest

from jaxft.selection import hardest, sibling_pairs, word_overlap


def test_the_hardest_of_each_group():
  scores = np.array([5.0, 1.0, 9.0, 2.0, 3.0, 9.0])
  groups = np.array(["call", "call", "call", "chat", "chat", "call"])
  assert hardest(scores, 0.25, groups=groups).tolist() == [2, 4]  # of equal scores the first
  assert hardest(scores, 0.5, groups=groups).tolist() == [2, 4, 5]
  assert hardest(scores, 1.0, groups=groups).tolist() == hardest(scores, 1.0).tolist() == list(range(6))
  assert hardest(np.arange(10), 0.3).tolist() == [7, 8, 9]  # and not four, by 0.3 * 10 a little above 3
  assert hardest(np.array([4.0]), 0.1).tolist() == [0]
  for fraction in (0.0, 1.5, float("nan")):
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\]"):
      hardest(scores, fraction)
  with pytest.raises(ValueError, match="scores must be finite"):
    hardest(np.array([1.0, np.inf]))


#        0 -> 1 (0.9), 2 (0.2), 3 (0.5);   1 -> 4 (0.6), 5 (0.55);   2 -> 6 (-0.5), 7 (-1);   3 -> 8 (0.1)
PARENTS = np.array([-1, 0, 0, 0, 1, 1, 2, 2, 3])
FRAGMENTS = [None, "city=", "town=", "place=", "'Oslo'", "'Bergen'", "'x'", "'y'", "'z'"]
VALUES = np.array([0.0, 0.9, 0.2, 0.5, 0.6, 0.55, -0.5, -1.0, 0.1])


def found(**options):
  return [(pair.prefix, pair.chosen, pair.rejected) for pair in sibling_pairs(PARENTS, FRAGMENTS, VALUES, **options)]


def test_pairs_of_a_tree_made_by_hand():
  top, oslo, bad = ((), "city=", "town="), (("city=",), "'Oslo'", "'Bergen'"), (("town=",), "'x'", "'y'")
  assert found() == [top]
  assert found(min_gap=0.04) == [top, oslo]
  assert found(min_gap=0.04, min_value=-0.5) == [top, oslo, bad]
  assert found(min_gap=0.7000001) == []
  assert found(min_value=float("-inf")) == [top, bad]
  assert found(max_overlap=0.0) == [top]
  assert found(max_overlap=0.5, overlap=lambda a, b: 0.6) == []


def test_ties_and_nodes_without_a_value():
  parents = np.array([-1, 0, 0, 0])
  pair = sibling_pairs(parents, ["", "a", "b", "c"], np.array([0.0, 1.0, 1.0, 0.0]), min_gap=0.0)[0]
  assert (pair.chosen, pair.rejected, pair.gap) == ("a", "c", 1.0)
  assert sibling_pairs(parents, ["", "a", "b", "c"], np.array([0, 1, np.nan, np.nan])) == []
  assert sibling_pairs(np.array([-1]), [""], np.zeros(1)) == []


def test_overlap_is_of_the_shorter():
  assert word_overlap("a b c d", "a b") == 1.0 and word_overlap("a b c", "c d") == 0.5
  assert word_overlap("", "a") == word_overlap("('", "a") == 0.0


def test_what_pairs_refuse():
  for parents, values, options, message in (
      ([-1, 0], [0.0], {}, "must have one length; got 2, 2 and 1"),
      ([-1, 1], [0.0, 0.0], {}, "got 1 of node 1"), ([0, 0], [0.0, 0.0], {}, "got 0 of node 0"),
      ([-1, -1], [0.0, 0.0], {}, "got -1 of node 1"), ([-1, 0], [0.0, 0.0], {"min_gap": -1}, "min_gap must lie in"),
      ([-1, 0], [0.0, 0.0], {"max_overlap": 2}, "max_overlap must lie in"),
      ([-1, 0], [0.0, 0.0], {"min_value": float("nan")}, "min_value must be a number")):
    with pytest.raises(ValueError, match=message):
      sibling_pairs(np.array(parents), ["", "a"], np.array(values), **options)
