"""Scores by environment, against loops."""

import numpy as np
import pytest

from jaxft.evaluation import by_environment


def test_each_and_the_worst():
  rng = np.random.default_rng(0)
  correct, environment = rng.random(40) < 0.6, rng.integers(0, 4, 40)
  got = by_environment(correct, environment)
  want = [correct[environment == e].mean() for e in range(4)]
  np.testing.assert_allclose(got.each, want)
  assert got.worst == min(want) and np.isclose(got.mean, np.mean(want)) and np.isclose(got.overall, correct.mean())
  assert got.counts.sum() == 40


def test_the_order_of_examples_is_nothing_and_an_empty_environment_is_no_worst():
  scores = by_environment(np.array([1.0, 0.5, 0.0]), np.array([3, 0, 3]), environments=5)
  np.testing.assert_array_equal(scores.each, [0.5, np.nan, np.nan, 0.5, np.nan])
  assert scores.worst == 0.5 and scores.mean == 0.5
  again = by_environment(np.array([0.0, 1.0, 0.5]), np.array([3, 3, 0]), environments=5)
  np.testing.assert_array_equal(again.each, scores.each)


def test_errors():
  with pytest.raises(ValueError, match=r"environment must lie in \[0, 2\); got 0 to 2"):
    by_environment(np.zeros(3), np.arange(3), environments=2)
  with pytest.raises(ValueError, match="no axis of it empty"):
    by_environment(np.zeros(0), np.zeros(0, int))
  with pytest.raises(ValueError, match="finite"):
    by_environment(np.array([np.nan]), np.array([0]))
