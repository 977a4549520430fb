"""Separability and neighbours against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from jaxft.evaluation import class_separability, knn_accuracy

RNG = np.random.default_rng(0)
LABELS = np.repeat([0, 2, 5], [20, 11, 14])
FEATURES = RNG.normal(size=(45, 6)) + 1.2 * RNG.normal(size=(6, 6))[LABELS]


def test_separability_is_scikit_learns():
  got = class_separability(FEATURES.astype(np.float32), LABELS)
  assert got.silhouette == pytest.approx(silhouette_score(FEATURES, LABELS), rel=1e-5)
  assert got.centroid_accuracy == pytest.approx(NearestCentroid().fit(FEATURES, LABELS).score(FEATURES, LABELS))
  cosine = FEATURES @ FEATURES.T / np.outer(*[np.linalg.norm(FEATURES, axis=1)] * 2)
  same = LABELS[:, None] == LABELS
  assert got.different_cosine == pytest.approx(cosine[~same].mean(), rel=1e-4)
  assert got.same_cosine == pytest.approx(cosine[same & ~np.eye(45, dtype=bool)].mean(), rel=1e-4)


def test_scatter_ratio_of_two_clouds_whatever_the_scale_and_rotation():
  rng, d, s, dim = np.random.default_rng(1), 3.0, 0.7, 4
  x = s * rng.normal(size=(20000, dim))
  labels = np.arange(20000) % 2
  x[:, 0] += d * labels
  few, of_few = x[:400], labels[:400]
  ratio = class_separability(few, of_few)
  assert ratio.scatter_ratio == pytest.approx(d**2 / 4 / (s**2 * dim), rel=0.15)
  rotation = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
  turned = class_separability(5 * few @ rotation + 2, of_few)
  np.testing.assert_allclose(turned[:3], ratio[:3], rtol=1e-6)


def test_a_class_of_one_item_counts_nothing_and_points_are_infinitely_apart():
  x, labels = np.array([[0.0, 1], [0, 1], [3, 1], [4, 1]]), np.array([0, 0, 1, 2])
  got = class_separability(x, labels)
  assert got.scatter_ratio == np.inf and got.same_cosine == pytest.approx(1)
  assert got.silhouette == pytest.approx(silhouette_score(x, labels))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 7])
def test_neighbours_are_scikit_learns(metric, k):
  train, test = np.arange(45) % 3 > 0, np.arange(45) % 3 == 0
  theirs = KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(FEATURES[train], LABELS[train])
  got = knn_accuracy(FEATURES[train], LABELS[train], FEATURES[test], LABELS[test], k=k, metric=metric)
  assert got == pytest.approx(theirs.score(FEATURES[test], LABELS[test]))


def test_weighted_votes_let_the_nearest_win():
  x, labels = np.array([[1.0, 0], [0, 1], [-0.1, 1]]), np.array([0, 1, 1])
  query = np.array([[1.0, 0.1]])
  assert knn_accuracy(x, labels, query, np.array([1]), k=3) == 1.0
  assert knn_accuracy(x, labels, query, np.array([0]), k=3, temperature=0.07) == 1.0


@pytest.mark.parametrize(("call", "message"), [
  (lambda: class_separability(FEATURES, np.zeros(45, int)), "labels must have at least two classes"),
  (lambda: class_separability(FEATURES * np.nan, LABELS), "features must be finite"),
  (lambda: knn_accuracy(FEATURES, LABELS, FEATURES, LABELS, k=46), r"k must lie in \[1, 45\]"),
  (lambda: knn_accuracy(FEATURES, LABELS, FEATURES[:, :2], LABELS), "test_features must be 6 wide"),
  (lambda: knn_accuracy(FEATURES, LABELS, FEATURES, LABELS, metric="euclidean", temperature=0.1),
   "temperature must be None with metric 'euclidean'"),
])
def test_what_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
