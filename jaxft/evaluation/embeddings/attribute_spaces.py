"""How much of one attribute shows in the embedding space of another."""

import numpy as np
from jaxtyping import Float, Int

from jaxft.evaluation.ranges import require_range
from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def attribute_precision(
    embeddings: Float[AnyArray, "spaces items dim"], labels: Int[AnyArray, "items attributes"]
) -> Float[np.ndarray, "spaces attributes items"]:
  """The average precision with which each item finds the others of its value of an attribute, in each space.

  The others are ranked by inner product; equal ones by position.

  Args:
    embeddings: of the same items in each space; unit vectors for cosine similarity.
    labels: the values of each attribute; below 0 unknown: such an item is no query and in no gallery.

  Returns:
    NaN for an item whose value is unknown or that no other has; `np.nanmean(..., axis=-1)` is the mAP matrix.

  Raises:
    ValueError: an embedding that is not finite.

  Example:
    >>> x = np.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    >>> np.nanmean(attribute_precision(x, np.array([[0, 0], [0, 1], [1, 0], [1, 1]])), axis=-1).round(2).tolist()
    [[1.0, 0.42]]

  Source: the protocol of attribute-specific retrieval, as in Song et al. 2023 (arXiv 2307.13254).
  """
  require_finite(embeddings=embeddings)
  embeddings, labels = np.asarray(embeddings, np.float64), np.asarray(labels)
  spaces, items, _ = embeddings.shape
  out = np.full((spaces, labels.shape[1], items), np.nan)
  for space, x in enumerate(embeddings):
    scores = x @ x.T
    np.fill_diagonal(scores, -np.inf)  # itself comes last, and is cut off
    order = np.argsort(-scores, axis=1, kind="stable")[:, :-1]
    for attribute, values in enumerate(labels.T):
      known = values >= 0
      hits = ((values[order] == values[:, None]) & known[:, None]).astype(np.float64)
      rank = np.cumsum(known[order], axis=1)  # among those that are known
      total = hits.sum(axis=1)
      precision = np.cumsum(hits, axis=1) / np.maximum(rank, 1)
      some = total > 0
      out[space, attribute, some] = (hits * precision).sum(axis=1)[some] / total[some]
  return out


@check_arrays
def chance_precision(labels: Int[AnyArray, "items attributes"]) -> Float[np.ndarray, " attributes"]:
  """The share of other items that have a query's value, in the mean over queries: about the mAP of a random order.

  Args:
    labels: as of `attribute_precision`; items that are no query are left out.

  Raises:
    ValueError: an attribute of which no two items have one value.

  Example:
    >>> chance_precision(np.array([[0], [0], [1], [1], [-1]])).round(3).tolist()
    [0.333]
  """
  out = []
  for attribute, values in enumerate(np.asarray(labels).T):
    counts = np.unique(values[values >= 0], return_counts=True)[1]
    shared = counts[counts > 1]
    if not len(shared):
      raise ValueError(f"labels must have two items of one value in each attribute; attribute {attribute} has not")
    out.append(float((shared * (shared - 1)).sum() / shared.sum() / (counts.sum() - 1)))
  return np.array(out)


@check_arrays
def entanglement(
    precision: Float[AnyArray, "attributes attributes"], chance: Float[AnyArray, " attributes"]
) -> float:
  """How much of what an attribute's own space knows of it all other spaces know too.

  `mean over c != k of (P[c, k] - chance_k) / (P[k, k] - chance_k)`: 1 where all spaces are one, 0 where an attribute
  shows in its own alone, below 0 where others hide it.

  Args:
    precision: `P[c, k]`, the mAP of attribute k in the space of c, the first axis the spaces.
    chance: of each attribute, see `chance_precision`.

  Raises:
    ValueError: fewer than two attributes, a number out of [0, 1], or an attribute that is no better than chance in its
      own space.

  Example:
    >>> entanglement(np.array([[0.9, 0.1], [0.5, 0.6]]), np.array([0.1, 0.1]))  # half of the first, none of the second
    0.25
  """
  require_finite(precision=precision, chance=chance)
  require_range(0.0, 1.0, precision=precision, chance=chance)
  precision, chance = np.asarray(precision, np.float64), np.asarray(chance, np.float64)
  gain, own = precision - chance, np.diagonal(precision) - chance
  if len(chance) < 2 or not (own > 0).all():
    raise ValueError("precision must be of two attributes or more, each above chance in its own space; above it by "
                     f"{own.tolist()}")
  return float((gain / own)[~np.eye(len(own), dtype=bool)].mean())
