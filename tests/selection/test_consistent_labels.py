"""A judge that likes what it reads first is heard where it says the same in both orders."""

import numpy as np
import pytest

from jaxft.selection import consistent_labels


def test_labels_that_stand_in_both_orders():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 200))
  for bias in (0.0, 0.5, 10.0, -0.5):
    labels = consistent_labels(lambda first, second: np.subtract(first, second) + bias, a.tolist(), b.tolist())
    assert labels.tolist() == np.where(abs(a - b) > abs(bias), np.sign(a - b), 0).tolist()
  assert consistent_labels(lambda first, second: [0.0] * len(first), ["x"], ["y"]).tolist() == [0]
  assert consistent_labels(lambda first, second: np.zeros(0), [], []).shape == (0,)


def test_what_is_refused():
  with pytest.raises(ValueError, match="judge must give one finite number for each of 2 pairs; got shape"):
    consistent_labels(lambda first, second: [1.0], ["a", "b"], ["c", "d"])
  with pytest.raises(ValueError, match="a and b must be of one length; got 1 and 2"):
    consistent_labels(lambda first, second: [1.0], ["a"], ["c", "d"])
