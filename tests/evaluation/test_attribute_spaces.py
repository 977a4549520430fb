"""Attributes in each other's embedding spaces: parity with scikit-learn, closed forms, unknown values."""

import numpy as np
import pytest

from jaxft.evaluation.embeddings.attribute_spaces import attribute_precision, chance_precision, entanglement


def test_precision_is_scikit_learns():
  average_precision_score = pytest.importorskip("sklearn.metrics").average_precision_score
  rng = np.random.default_rng(0)
  x, labels = rng.normal(size=(2, 12, 3)), rng.integers(0, 3, (12, 2))
  labels[3, 1] = -1
  got = attribute_precision(x, labels)
  for space in range(2):
    for attribute in range(2):
      values = labels[:, attribute]
      for i in range(12):
        others = [j for j in range(12) if j != i and values[j] >= 0]
        relevant = values[others] == values[i]
        if values[i] < 0 or not relevant.any():
          assert np.isnan(got[space, attribute, i])
        else:
          want = average_precision_score(relevant, x[space, others] @ x[space, i])
          assert got[space, attribute, i] == pytest.approx(want)


def test_one_space_for_all_is_entangled_and_labels_as_spaces_are_not():
  rng = np.random.default_rng(1)
  labels = rng.integers(0, 2, (400, 2))
  chance = chance_precision(labels)
  mean = lambda spaces: np.nanmean(attribute_precision(spaces, labels), axis=-1)
  shared = np.concatenate([np.eye(2)[labels[:, 0]], np.eye(2)[labels[:, 1]]], axis=1)
  assert entanglement(mean(np.stack([shared, shared])), chance) == pytest.approx(1)
  own = np.stack([np.eye(2)[labels[:, k]] + 1e-3 * rng.normal(size=(400, 2)) for k in range(2)])
  assert abs(entanglement(mean(own), chance)) < 0.05


def test_refusals():
  with pytest.raises(ValueError, match="attribute 1 has not"):
    chance_precision(np.array([[0, 0], [0, 1]]))
  with pytest.raises(ValueError, match="above chance in its own space"):
    entanglement(np.array([[0.5, 0.5], [0.5, 0.5]]), np.array([0.5, 0.1]))
  with pytest.raises(ValueError, match="precision must lie in"):
    entanglement(np.array([[1.5, 0.5], [0.5, 0.5]]), np.array([0.1, 0.1]))
  with pytest.raises(ValueError, match="embeddings must be finite"):
    attribute_precision(np.full((1, 2, 2), np.nan), np.zeros((2, 1), int))
