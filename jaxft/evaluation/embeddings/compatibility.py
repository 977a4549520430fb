"""Whether a new model's embeddings can be searched for among those that an older one has stored.

Queries by the model of step t look for their class in a gallery by the model of step k <= t: `hits[t, k]` says of each
query whether it was found, its mean over queries is the compatibility matrix, and two numbers sum that up.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxft.evaluation.ranges import require_range
from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, check_arrays, explain_errors
from jaxft.unit_rows import unit_rows


@check_arrays
def class_templates(
    features: Float[AnyArray, "examples dim"], labels: Int[AnyArray, " examples"], num_classes: int
) -> Float[np.ndarray, "classes dim"]:
  """The mean feature of each class, scaled to unit length; 0 for a class without examples.

  Args:
    features: of a gallery.
    labels: their classes, in [0, num_classes).
    num_classes: how many templates there are.

  Raises:
    ValueError: a feature that is not finite, or a label out of range.

  Example:
    >>> class_templates(np.array([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0]]), np.array([0, 0, 1]), 2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
  """
  require_finite(features=features)
  require_range(0, num_classes - 1, labels=labels)
  member = np.asarray(labels)[:, None] == np.arange(num_classes)
  sums = member.T.astype(np.float64) @ np.asarray(features, np.float64)
  return unit_rows(sums)  # of a mean and of a sum it is the same


@check_arrays
def identification_hits(
    queries: Float[AnyArray, "models queries dim"],
    templates: Float[AnyArray, "models classes dim"],
    labels: Int[AnyArray, " queries"],
) -> Bool[np.ndarray, "models models queries"]:
  """`hits[t, k, i]`: the query i by model t has the largest inner product with its own class's template by model k.

  Args:
    queries: features of the same examples by each of the models, from the oldest to the newest.
    templates: of each model's gallery, see `class_templates`.
    labels: classes of the queries, in [0, classes).

  Returns:
    Of all pairs of models, those with k > t as well, a newer gallery searched by an older model. Of equal templates the
    first wins.

  Raises:
    ValueError: a feature that is not finite, or a label out of range.

  Example:
    >>> hits = identification_hits(np.eye(2)[None], np.eye(2)[None, ::-1], np.array([0, 1]))  # templates swapped
    >>> hits.mean(axis=-1)
    array([[0.]])
  """
  require_finite(queries=queries, templates=templates)
  require_range(0, templates.shape[1] - 1, labels=labels)
  scores = np.einsum("tqd,kcd->tkqc", np.asarray(queries, np.float64), np.asarray(templates, np.float64))
  return scores.argmax(axis=-1) == np.asarray(labels)


@explain_errors
def average_compatibility(matrix: Float[AnyArray, "models models"]) -> float:
  """The share of pairs k < t in which a newer model's queries do better than the older model's own.

  `2 / (T (T - 1)) |{k < t: C[t, k] > C[k, k]}|`; equal is not better.

  Args:
    matrix: `C[t, k]`, the accuracy of queries by model t in a gallery by model k; its lower triangle counts.

  Raises:
    ValueError: it is not square, has one model, or an entry that counts is not finite.

  Example:
    >>> average_compatibility(np.array([[0.6, 0.0, 0.0], [0.7, 0.8, 0.0], [0.5, 0.9, 0.9]]))  # two of three
    0.6666666666666666

  Source: Biondi et al. 2024, Stationary Representations (arXiv 2405.02581), whose code gives 0 for one model.
  """
  matrix = _triangle(matrix, least=2)
  later, earlier = np.tril_indices(len(matrix), -1)
  return float(np.mean(matrix[later, earlier] > matrix[earlier, earlier]))


@explain_errors
def average_multimodel_accuracy(matrix: Float[AnyArray, "models models"]) -> float:
  """The mean of `C[t, k]` over k <= t: of every model's own gallery and of all older ones.

  Args:
    matrix: see `average_compatibility`.

  Raises:
    ValueError: it is not square, or an entry that counts is not finite.

  Example:
    >>> average_multimodel_accuracy(np.array([[0.6, 0.0], [0.3, 0.9]]))
    0.6

  Source: Biondi et al. 2024, Stationary Representations (arXiv 2405.02581), whose code leaves out entries of 0.
  """
  matrix = _triangle(matrix, least=1)
  return float(matrix[np.tril_indices(len(matrix))].mean())


@check_arrays
def compatibility_violations(
    old: Float[AnyArray, "examples dim"], new: Float[AnyArray, "examples dim"], labels: Int[AnyArray, " examples"]
) -> tuple[float, float]:
  """How often the definition of compatibility fails: shares of the pairs of one class, and of the pairs of two.

  For i and j of one class `|new_i - old_j| <= |old_i - old_j|` is asked for, for two classes `>=`; i is not j.

  Args:
    old, new: features of the same examples by both models.
    labels: their classes.

  Returns:
    The shares in [0, 1]; of no pairs 0.

  Raises:
    ValueError: a feature that is not finite.

  Example:
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> compatibility_violations(x, x, np.array([0, 0, 1]))  # equal is allowed
    (0.0, 0.0)

  Source: Shen et al. 2020, backward-compatible training (arXiv 2003.11942).
  """
  require_finite(old=old, new=new)
  old, new, labels = np.asarray(old, np.float64), np.asarray(new, np.float64), np.asarray(labels)
  # Squares, which compare as distances do; of differences, so that equal features are equally far to the bit.
  apart = lambda x: np.square(x[:, None] - old[None]).sum(axis=-1)
  before, after = apart(old), apart(new)
  same, other = labels[:, None] == labels, ~np.eye(len(labels), dtype=bool)
  share = lambda pairs, failed: float(failed[pairs].mean()) if pairs.any() else 0.0
  return share(same & other, after > before), share(~same, after < before)


def _triangle(matrix: Float[AnyArray, "models models"], *, least: int) -> Float[np.ndarray, "models models"]:
  matrix = np.asarray(matrix, np.float64)
  if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < least:
    raise ValueError(f"matrix must be square, of at least {least} models; got shape {matrix.shape}")
  require_finite(np.tri(len(matrix), dtype=bool), matrix=matrix)
  return matrix
