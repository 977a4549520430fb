"""Compatibility of models and the fixed simplex: identities, hand cases, and what is refused."""

import numpy as np
import pytest

from jaxft.evaluation.embeddings.compatibility import (
  average_compatibility,
  average_multimodel_accuracy,
  class_templates,
  compatibility_violations,
  identification_hits,
)
from jaxft.models.heads.simplex import simplex_weights


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_simplex_identities(classes):
  w = simplex_weights(classes).astype(np.float64)
  assert w.shape == (classes, classes - 1)
  gram = np.full((classes, classes), -1 / (classes - 1))
  np.fill_diagonal(gram, 1)
  np.testing.assert_allclose(w @ w.T, gram, atol=1e-6)
  np.testing.assert_allclose(w.sum(axis=0), 0, atol=1e-5)
  np.testing.assert_allclose(w.T @ w, classes / (classes - 1) * np.eye(classes - 1), atol=1e-5)
  logits = 3.0 * w @ w[0]  # features on the first vertex
  np.testing.assert_allclose(
      np.exp(logits[0]) / np.exp(logits).sum(), 1 / (1 + (classes - 1) * np.exp(-3 * classes / (classes - 1))),
      rtol=1e-5)


def test_simplex_refuses_one_class():
  with pytest.raises(ValueError, match="num_classes must be in|num_classes must lie in"):
    simplex_weights(1)


def test_templates_are_unit_means_and_an_absent_class_is_zero():
  found = class_templates(np.array([[1.0, 1.0], [3.0, -1.0], [0.0, -5.0]]), np.array([2, 2, 0]), 3)
  np.testing.assert_allclose(found, [[0, -1], [0, 0], [1, 0]])
  with pytest.raises(ValueError, match="labels must lie in 0..2; got 3"):
    class_templates(np.ones((1, 2)), np.array([3]), 3)
  with pytest.raises(ValueError, match="features must be finite"):
    class_templates(np.full((1, 2), np.nan), np.array([0]), 3)


def test_hits_by_a_turned_model():
  # The second model is the first turned by a quarter: right in its own gallery, wrong in the other's.
  x, labels = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]), np.arange(4)
  turned = x @ np.array([[0.0, 1.0], [-1.0, 0.0]])
  queries = np.stack([x, turned])
  templates = np.stack([class_templates(q, labels, 4) for q in queries])
  hits = identification_hits(queries, templates, labels)
  assert hits.shape == (2, 2, 4)
  np.testing.assert_array_equal(hits.mean(axis=-1), np.eye(2))
  # A turn of both sides alike changes nothing.
  np.testing.assert_array_equal(identification_hits(queries[:, :, ::-1], templates[:, :, ::-1], labels), hits)
  with pytest.raises(ValueError, match="labels must lie in 0..3"):
    identification_hits(queries, templates, labels + 1)


def test_summaries_of_the_matrix():
  rising = np.tile(np.arange(1.0, 4.0)[:, None], (1, 3))  # C[t, k] = t + 1
  assert average_compatibility(rising) == 1
  assert average_compatibility(np.ones((3, 3))) == 0  # ties fail
  above = np.array([[0.5, 0.9], [0.6, 0.0]])  # what lies above the diagonal is not read, and 0 counts
  assert average_compatibility(above) == 1
  assert average_multimodel_accuracy(above) == pytest.approx((0.5 + 0.6 + 0.0) / 3)
  assert average_multimodel_accuracy(np.array([[0.4]])) == 0.4
  with pytest.raises(ValueError, match="at least 2 models"):
    average_compatibility(np.array([[0.4]]))
  with pytest.raises(ValueError, match="matrix must be square"):
    average_multimodel_accuracy(np.ones((2, 3)))
  with pytest.raises(ValueError, match="matrix must be finite"):
    average_compatibility(np.array([[0.5, np.nan], [np.nan, 0.5]]))


def test_violations_of_the_definition():
  rng = np.random.default_rng(0)
  x, labels = rng.normal(size=(6, 3)), np.array([0, 0, 0, 1, 1, 2])
  assert compatibility_violations(x, x, labels) == (0, 0)
  new = rng.normal(size=x.shape)
  found = {True: [], False: []}
  for i in range(6):
    for j in range(6):
      if i != j:
        before, after = (np.linalg.norm(side[i] - x[j]) for side in (x, new))
        same = bool(labels[i] == labels[j])
        found[same].append(after > before if same else after < before)
  assert compatibility_violations(x, new, labels) == pytest.approx((np.mean(found[True]), np.mean(found[False])))
  assert compatibility_violations(x[:1], new[:1], labels[:1]) == (0, 0)
