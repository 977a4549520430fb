"""A classifier that is fixed: the vertices of a regular simplex, where features of every model are drawn to."""

import math

import numpy as np
from jaxtyping import Float

from jaxft.checks import in_range
from jaxft.signatures import explain_errors


@explain_errors
def simplex_weights(num_classes: int) -> Float[np.ndarray, "classes dim"]:
  """The vertices of a regular simplex around 0: unit vectors `w_i` with `w_i . w_j = -1 / (num_classes - 1)`.

  A head `logits = features @ simplex_weights(num_classes).T` is the same for every model, so that features of models
  trained apart lie in the same directions and a gallery by one can be searched by another. Features are not scaled to
  unit length before it: cross-entropy makes them as long as it needs. It has nothing to train, and stays out of the
  params.

  Args:
    num_classes: all that will ever come; each keeps its row for life. The features have `num_classes - 1` dimensions.

  Returns:
    Weights `[num_classes, num_classes - 1]`, float32, whose rows sum to 0.

  Raises:
    ValueError: fewer than two classes.

  Example:
    >>> w = simplex_weights(3)  # three vectors at 120 degrees
    >>> (w @ w.T).round(2).tolist() == [[1.0, -0.5, -0.5], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0]]
    True

  Source: Biondi et al. 2024, Stationary Representations (arXiv 2405.02581).
  """
  in_range("num_classes", num_classes, "[2, inf)")
  dim = num_classes - 1
  vertices = np.concatenate([np.eye(dim), np.full((1, dim), (1 - math.sqrt(num_classes)) / dim)])
  vertices -= vertices.mean(axis=0)
  return (vertices / np.linalg.norm(vertices, axis=1, keepdims=True)).astype(np.float32)
