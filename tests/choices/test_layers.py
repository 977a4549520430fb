"""Layers chosen by one score of each."""

import numpy as np
import pytest

from jaxft.choices.layers import robust_threshold_layers, top_layers


def chosen(mask):
  return np.flatnonzero(mask).tolist()


def test_the_largest_and_the_smallest():
  scores = np.array([2.0, 5.0, 5.0, 1.0])
  assert chosen(top_layers(scores, k=1)) == [1] and chosen(top_layers(scores, k=2)) == [1, 2]
  assert chosen(top_layers(scores, k=2, largest=False)) == [0, 3]
  assert not top_layers(scores, k=0).any() and top_layers(scores, k=4).all()
  with pytest.raises(ValueError, match=r"k must lie in 0\.\.4"):
    top_layers(scores, k=5)
  with pytest.raises(ValueError, match="finite"):
    top_layers(np.array([1.0, np.nan]), k=1)


def test_outstanding_layers_of_each_band():
  scores = np.array([0.0, 9.0, 8.0, 0.0, 7.0, 0.0, 0.0, 0.0, 0.1])
  assert chosen(robust_threshold_layers(scores, bands=1)) == [1, 2, 4]  # three of nine
  # One a band; the last band's best counts too, as the median and the deviation from it are 0.
  assert chosen(robust_threshold_layers(scores)) == [1, 4, 8]
  # Two a band would be three: what is left goes to the best that remain.
  assert chosen(robust_threshold_layers(scores, max_layers=4)) == [1, 2, 4, 8]
  high = np.array([1.0, 2.0, 3.0, 4.0, 50.0, 60.0, 3.0, 2.0, 1.0])
  assert chosen(robust_threshold_layers(high)) == [3, 4, 5]  # none of the outer bands reaches 3 + 1: they get no share


def test_ties_and_few_layers():
  assert chosen(robust_threshold_layers(np.ones(4))) == [0, 2]  # two of four, in two bands
  assert chosen(robust_threshold_layers(np.array([3.0]))) == [0]
  assert robust_threshold_layers(np.zeros(0)).shape == (0,)
  rng = np.random.default_rng(0)
  for layers in range(1, 30):  # the threshold never leaves out the best
    scores = rng.normal(size=layers) ** 3
    found = robust_threshold_layers(scores)
    assert found[scores.argmax()] and found.sum() <= np.ceil(np.sqrt(layers))
  with pytest.raises(ValueError, match="at least 1; got 0 and 3"):
    robust_threshold_layers(np.ones(4), max_layers=0)
  with pytest.raises(ValueError, match="finite"):
    robust_threshold_layers(np.array([1.0, np.inf]))
