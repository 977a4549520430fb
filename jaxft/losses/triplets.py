"""Triplet losses: an anchor is to be nearer to its positive than to a negative, by a margin.

Of given triplets, or of those that labels make of a batch, the global one: all of them, the hardest of each anchor, or
semi-hard ones. Margins are in units of the metric. Labels below 0 are unknown: such a row is neither anchor nor
positive nor negative. What a value weighs is the number of triplets in it, so that the mean of a batch is that of its
triplets.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxft.checks import in_range
from jaxft.losses.distances import Metric, all_distances, pair_distances
from jaxft.losses.reduction import count_of
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def triplet(
    anchor: Float[AnyArray, "batch dim"],
    positive: Float[AnyArray, "batch dim"],
    negative: Float[AnyArray, "batch dim"],
    *,
    margin: float = 0.2,
    metric: Metric = "cosine",
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """`max(0, d(anchor, positive) - d(anchor, negative) + margin)` of each given triplet.

  Args:
    anchor, positive, negative: embeddings.
    margin: sentence-transformers takes 5, with Euclidean distances.
    metric: see `pair_distances`.
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the rows, float32.

  Raises:
    ValueError: an unknown metric, or a margin that is not finite.

  Example:
    >>> a, b = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    >>> [round(float(triplet(a, *others)[0][0]), 3) for others in ((a, b), (b, a))]  # d = 0 and 1, d = 1 and 0
    [0.0, 1.2]

  Source: Schroff et al. 2015, FaceNet (arXiv 1503.03832), with a margin of 0.2 of squared Euclidean distances of unit
  vectors, which are twice the cosine ones.

  sentence-transformers: `TripletLoss`, `SparseTripletLoss`
  """
  in_range("margin", margin)
  if where is not None:
    anchor, positive, negative = (jnp.where(where[:, None], x, 0) for x in (anchor, positive, negative))
  gap = pair_distances(anchor, positive, metric=metric) - pair_distances(anchor, negative, metric=metric)
  values = jnp.maximum(gap + margin, 0.0)
  return values if where is None else jnp.where(where, values, 0), count_of(where, values.shape)


@check_arrays
def batch_all_triplet(
    embeddings: Float[AnyArray, "batch dim"],
    labels: Int[AnyArray, " batch"],
    *,
    margin: float = 0.2,
    metric: Metric = "cosine",
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """The triplet loss of all triplets of the batch, averaged over those that cost something.

  Args:
    embeddings: of all rows.
    labels: classes >= 0; below 0 unknown.
    margin, metric: see `triplet`.
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the anchors, float32: the mean of an anchor's triplets above 0, and their number.

  Raises:
    ValueError: see `triplet`.

  Example:
    >>> values, weights = batch_all_triplet(jnp.eye(3), jnp.array([0, 0, 1]))  # all distances are 1
    >>> np.array(values).round(3), weights
    (array([0.2, 0.2, 0. ], dtype=float32), Array([1., 1., 0.], dtype=float32))

  Source: Hermans et al. 2017 (arXiv 1703.07737), the mean over non-zero triplets. An anchor's negatives are sorted, so
  that memory grows with the square of the batch and not with its cube.

  sentence-transformers: `BatchAllTripletLoss`
  """
  distance, positive, negative = _mined(embeddings, labels, margin, metric, where)
  sorted_negatives = jnp.sort(jnp.where(negative, distance, jnp.inf), axis=1)
  reach = distance + margin
  nearer = _places(sorted_negatives, reach, "left")
  finite = jnp.where(jnp.isfinite(sorted_negatives), sorted_negatives, 0.0)
  sums = jnp.cumsum(jnp.pad(finite, ((0, 0), (1, 0))), axis=1)
  # Of the triplets (i, j, k) with d_ik < d_ij + m: the sum over k of d_ij + m - d_ik.
  total = nearer * reach - jnp.take_along_axis(sums, nearer, axis=1)
  count = jnp.sum(jnp.where(positive, nearer, 0), axis=1).astype(jnp.float32)
  return jnp.sum(jnp.where(positive, total, 0.0), axis=1) / jnp.maximum(count, 1), count


@check_arrays
def batch_hard_triplet(
    embeddings: Float[AnyArray, "batch dim"],
    labels: Int[AnyArray, " batch"],
    *,
    margin: float | None = 0.2,
    metric: Metric = "cosine",
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """The triplet loss of each anchor with its furthest positive and its nearest negative.

  Args:
    embeddings: of all rows.
    labels: classes >= 0; below 0 unknown.
    margin: None is the soft margin, `log(1 + exp(d+ - d-))`.
    metric: see `triplet`.
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the anchors, float32; one without a positive or a negative gives 0 and weighs 0.

  Raises:
    ValueError: see `triplet`.

  Example:
    >>> values, weights = batch_hard_triplet(jnp.eye(3), jnp.array([0, 0, 1]), margin=None)
    >>> np.array(values).round(3), weights  # log 2
    (array([0.693, 0.693, 0.   ], dtype=float32), Array([1., 1., 0.], dtype=float32))

  Source: Hermans et al. 2017 (arXiv 1703.07737). sentence-transformers keeps anchors that lack a positive, at a
  distance of 0 from it.

  sentence-transformers: `BatchHardTripletLoss`, `BatchHardSoftMarginTripletLoss`
  """
  distance, positive, negative = _mined(embeddings, labels, 0.0 if margin is None else margin, metric, where)
  whole = jnp.any(positive, axis=1) & jnp.any(negative, axis=1)
  furthest = jnp.max(jnp.where(positive, distance, 0.0), axis=1)
  nearest = jnp.min(jnp.where(negative | ~whole[:, None], distance, jnp.inf), axis=1)
  gap = furthest - nearest
  values = jax.nn.softplus(gap) if margin is None else jnp.maximum(gap + margin, 0.0)
  return jnp.where(whole, values, 0.0), whole.astype(jnp.float32)


@check_arrays
def batch_semi_hard_triplet(
    embeddings: Float[AnyArray, "batch dim"],
    labels: Int[AnyArray, " batch"],
    *,
    margin: float = 0.2,
    metric: Metric = "cosine",
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """The triplet loss of each pair of a class with the nearest negative beyond it, or the furthest where none is.

  Args:
    embeddings: of all rows.
    labels: classes >= 0; below 0 unknown.
    margin, metric: see `triplet`.
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the anchors, float32: the mean over an anchor's positives, and their number, 0 where it has
    no negative.

  Raises:
    ValueError: see `triplet`.

  Example:
    >>> values, weights = batch_semi_hard_triplet(jnp.eye(3), jnp.array([0, 0, 1]))
    >>> np.array(values).round(3), weights
    (array([0.2, 0.2, 0. ], dtype=float32), Array([1., 1., 0.], dtype=float32))

  Source: Schroff et al. 2015, FaceNet (arXiv 1503.03832).

  sentence-transformers: `BatchSemiHardTripletLoss`
  """
  distance, positive, negative = _mined(embeddings, labels, margin, metric, where)
  some = jnp.any(negative, axis=1, keepdims=True)
  positive &= some
  sorted_negatives = jnp.sort(jnp.where(negative, distance, jnp.inf), axis=1)
  beyond = _places(sorted_negatives, distance, "right")
  last = jnp.sum(negative, axis=1, keepdims=True) - 1
  chosen = jnp.take_along_axis(sorted_negatives, jnp.clip(beyond, 0, jnp.maximum(last, 0)), axis=1)
  each = jnp.maximum(distance - jnp.where(some, chosen, 0.0) + margin, 0.0)
  count = jnp.sum(positive, axis=1).astype(jnp.float32)
  return jnp.sum(jnp.where(positive, each, 0.0), axis=1) / jnp.maximum(count, 1), count


def _mined(embeddings, labels, margin, metric, where):
  """All distances of a batch, and which columns are positives and negatives of each row."""
  in_range("margin", margin)
  known = labels >= 0
  if where is not None:
    embeddings = jnp.where(where[:, None], embeddings, 0)
    known &= where
  both, same = known[:, None] & known, labels[:, None] == labels
  positive = both & same & ~jnp.eye(len(labels), dtype=bool)
  return all_distances(embeddings, embeddings, metric=metric), positive, both & ~same


def _places(rows: Array, values: Array, side: Literal["left", "right"]) -> Array:
  """Where values would stand in rows that are sorted."""
  return jax.vmap(lambda row, at: jnp.searchsorted(row, at, side=side))(*map(jax.lax.stop_gradient, (rows, values)))
