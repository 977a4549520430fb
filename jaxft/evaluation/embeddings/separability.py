"""How well features keep classes apart: scatter, silhouette, centroids and neighbours."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxft.checks import in_range, one_of
from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, explain_errors
from jaxft.unit_rows import unit_rows


class Separability(NamedTuple):
  """How far classes lie apart in some features.

  Attributes:
    scatter_ratio: of the scatter between classes to that within them, traces both; infinite where classes are points.
    silhouette: mean over the items, in [-1, 1].
    centroid_accuracy: share of items whose nearest centroid is that of their class.
    same_cosine, different_cosine: means over pairs of one class, and of two.
  """

  scatter_ratio: float
  silhouette: float
  centroid_accuracy: float
  same_cosine: float
  different_cosine: float


@explain_errors
def class_separability(features: Float[AnyArray, "items dim"], labels: Int[AnyArray, " items"]) -> Separability:
  """Ratios of scatter, the silhouette score and the accuracy of centroids, of features with known classes.

      tr(S_b) / tr(S_w) = sum_c n_c |m_c - m|^2 / sum_i |x_i - m_{y_i}|^2
      silhouette_i = (b_i - a_i) / max(a_i, b_i)

  with a_i the mean distance to the others of an item's class and b_i that to the nearest other class; 0 for a class of
  one item. All but the cosines are the same after a rotation, a shift or another scale.

  >>> result = class_separability(np.array([[0.0, 1.0], [2.0, 1.0], [0.0, 5.0], [2.0, 5.0]]), np.array([0, 0, 1, 1]))
  >>> result.scatter_ratio, result.centroid_accuracy
  (4.0, 1.0)

  Args:
    features: embeddings or states.
    labels: classes, at least two.

  Raises:
    ValueError: lengths that differ, fewer than two classes, or features that are not finite.

  On the host in float64; memory grows by the square of the items. Source: Rousseeuw 1987; as measures of augmented text
  Chen et al. 2023 (arXiv 2303.02577).
  """
  x, label = _items(features, labels)
  classes, of = np.unique(label, return_inverse=True)
  if len(classes) < 2:
    raise ValueError(f"labels must have at least two classes; got {classes.tolist()}")
  counts, one_hot = np.bincount(of), np.eye(len(classes))[of]
  centroids = one_hot.T @ x / counts[:, None]
  between = np.sum(counts * np.sum((centroids - x.mean(0)) ** 2, axis=1))
  within = np.sum((x - centroids[of]) ** 2)

  distance = _distances(x, x)
  np.fill_diagonal(distance, 0.0)
  to_class = distance @ one_hot
  mine = counts[of]
  a = np.take_along_axis(to_class, of[:, None], axis=1)[:, 0] / np.maximum(mine - 1, 1)
  to_others = np.where(one_hot > 0, np.inf, to_class / counts)
  b = to_others.min(axis=1)
  largest = np.maximum(a, b)
  silhouette = np.where((mine > 1) & (largest > 0), (b - a) / np.where(largest > 0, largest, 1), 0.0)

  unit = unit_rows(x)
  cosine, same = unit @ unit.T, of[:, None] == of
  pairs = same & ~np.eye(len(x), dtype=bool)
  return Separability(
      float(between / within) if within > 0 else np.inf, float(silhouette.mean()),
      float(np.mean(np.argmin(_distances(x, centroids), axis=1) == of)),
      float(cosine[pairs].mean()) if pairs.any() else np.nan, float(cosine[~same].mean()))


@explain_errors
def knn_accuracy(
    features: Float[AnyArray, "items dim"], labels: Int[AnyArray, " items"], test_features: Float[AnyArray, "test dim"],
    test_labels: Int[AnyArray, " test"], *, k: int = 5, metric: Literal["cosine", "euclidean"] = "cosine",
    temperature: float | None = None,
) -> float:
  """Accuracy of a vote among the k nearest items; of equal votes the class with the lowest number wins.

  >>> x, y = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), np.array([0, 0, 1])
  >>> knn_accuracy(x, y, np.array([[1.0, 0.2], [0.1, 1.0]]), np.array([0, 1]), k=1)
  1.0

  Args:
    features, labels: items that vote.
    test_features, test_labels: those that are told.
    k: at most the number of items.
    metric: by which the nearest are found.
    temperature: a vote counts `exp(cosine / temperature)`; None counts each as one.

  Raises:
    ValueError: lengths or widths that differ, features that are not finite, k out of range, an unknown metric, or a
      temperature <= 0 or without the cosine.

  Source: with weights Wu et al. 2018 (arXiv 1805.01978).
  """
  one_of("metric", metric, ("cosine", "euclidean"))
  (x, label), (test, wanted) = _items(features, labels), _items(test_features, test_labels)
  if x.shape[1] != test.shape[1]:
    raise ValueError(f"test_features must be {x.shape[1]} wide, as features are; got {test.shape[1]}")
  in_range("k", k, f"[1, {len(x)}]")
  if temperature is not None:
    in_range("temperature", temperature, "(0, inf)")
    if metric != "cosine":
      raise ValueError(f"temperature must be None with metric {metric!r}; got {temperature}")
  classes, of = np.unique(label, return_inverse=True)
  if metric == "cosine":
    x, test = unit_rows(x), unit_rows(test)
    near = test @ x.T
  else:
    near = -_distances(test, x)
  order = np.argsort(-near, axis=1, kind="stable")[:, :k]
  best = np.take_along_axis(near, order, axis=1)
  weight = np.ones_like(best) if temperature is None else np.exp((best - best[:, :1]) / temperature)
  votes = np.einsum("tk,tkc->tc", weight, np.eye(len(classes))[of[order]])
  return float(np.mean(classes[np.argmax(votes, axis=1)] == wanted))


def _items(features: Float[AnyArray, "items dim"], labels: Int[AnyArray, " items"]) -> tuple[np.ndarray, np.ndarray]:
  x, label = np.asarray(features, np.float64), np.asarray(labels)
  if x.ndim != 2 or label.shape != x.shape[:1] or not x.size:
    raise ValueError(f"features must be [items, dim] with a label each; got shapes {x.shape} and {label.shape}")
  require_finite(features=x)
  return x, label


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  square = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1) - 2 * a @ b.T
  return np.sqrt(np.maximum(square, 0.0))
