"""Losses of labelled pairs: near or far, or with a score whose order the cosines are to keep."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxft.checks import in_range
from jaxft.losses.contrastive import normalize
from jaxft.losses.distances import Metric, pair_distances
from jaxft.losses.reduction import count_of
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def contrastive_pairs(
    a: Float[AnyArray, "batch dim"],
    b: Float[AnyArray, "batch dim"],
    labels: Bool[AnyArray, " batch"],
    *,
    margin: float = 0.5,
    metric: Metric = "cosine",
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """The contrastive loss: pairs of one kind to distance 0, others at least a margin apart.

  `loss = (y d^2 + (1 - y) max(0, margin - d)^2) / 2`

  Args:
    a, b: embeddings of the two sides.
    labels: y, True where the two belong together.
    margin, metric: of the distance, see `pair_distances`.
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the rows, float32.

  Raises:
    ValueError: an unknown metric, or a margin that is not finite.

  Example:
    >>> values, weights = contrastive_pairs(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.array([True, False]))
    >>> np.array(values).round(3), weights
    (array([0.   , 0.125], dtype=float32), Array([1., 1.], dtype=float32))

  Source: Hadsell, Chopra and LeCun 2006, with the margin of sentence-transformers.

  sentence-transformers: `ContrastiveLoss`
  """
  in_range("margin", margin)
  distance = _distances(a, b, metric, where)
  y = jnp.asarray(labels, jnp.float32)
  values = (y * distance**2 + (1 - y) * jnp.maximum(margin - distance, 0.0) ** 2) / 2
  return _kept(values, where)


@check_arrays
def online_contrastive_pairs(
    a: Float[AnyArray, "batch dim"],
    b: Float[AnyArray, "batch dim"],
    labels: Bool[AnyArray, " batch"],
    *,
    margin: float = 0.5,
    metric: Metric = "cosine",
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """The contrastive loss of the hard pairs of a batch alone, without its factor of 1/2.

  A positive pair is hard where it is further apart than the nearest negative one, a negative pair where it is nearer
  than the furthest positive one; where a batch has one kind alone, its mean takes that place.

  Args:
    a, b: embeddings of the two sides.
    labels: True where the two belong together.
    margin, metric: see `contrastive_pairs`.
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the rows, float32; a pair that is not hard gives 0 and weighs 1. sentence-transformers sums:
    `Mean.of(...).total`.

  Raises:
    ValueError: see `contrastive_pairs`.

  Example:
    >>> a, b = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> values, weights = online_contrastive_pairs(a, b, jnp.array([True, True, False]))
    >>> np.array(values).round(3)  # the first is nearer than the negative pair
    array([0.   , 1.   , 0.043], dtype=float32)

  Source: sentence-transformers (Reimers and Gurevych 2019, arXiv 1908.10084).

  sentence-transformers: `OnlineContrastiveLoss`
  """
  in_range("margin", margin)
  distance = _distances(a, b, metric, where)
  kept = jnp.ones(distance.shape, bool) if where is None else where
  positive, negative = labels & kept, ~labels & kept
  fixed = jax.lax.stop_gradient(distance)
  mean = lambda of: jnp.sum(jnp.where(of, fixed, 0.0)) / jnp.maximum(jnp.sum(of), 1)
  nearest = jnp.where(negative.any(), jnp.min(jnp.where(negative, fixed, jnp.inf)), mean(positive))
  furthest = jnp.where(positive.any(), jnp.max(jnp.where(positive, fixed, -jnp.inf)), mean(negative))
  values = jnp.where(positive & (fixed > nearest), distance**2, 0.0)
  values += jnp.where(negative & (fixed < furthest), jnp.maximum(margin - distance, 0.0) ** 2, 0.0)
  return values, count_of(where, values.shape)


@check_arrays
def cosine_regression(
    a: Float[AnyArray, "batch dim"],
    b: Float[AnyArray, "batch dim"],
    scores: Float[AnyArray, " batch"],
    *,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """`(cos(a, b) - score)^2`.

  Args:
    a, b: embeddings of the two sides.
    scores: what the cosine is to be, in [-1, 1].
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the rows, float32.

  Example:
    >>> values, weights = cosine_regression(jnp.ones((1, 3)), jnp.ones((1, 3)), jnp.array([0.5]))
    >>> np.array(values).round(3), weights
    (array([0.25], dtype=float32), Array([1.], dtype=float32))

  Source: Reimers and Gurevych 2019 (arXiv 1908.10084).

  sentence-transformers: `CosineSimilarityLoss`, `SparseCosineSimilarityLoss`
  """
  similarity = 1 - _distances(a, b, "cosine", where)
  # Replaced before it is read: a score of NaN would come back through the gradient as 0 * NaN.
  scores = scores if where is None else jnp.where(where, scores, 0)
  return _kept(jnp.square(similarity - jnp.asarray(scores, jnp.float32)), where)


@check_arrays
def cosent(
    a: Float[AnyArray, "batch dim"],
    b: Float[AnyArray, "batch dim"],
    scores: Float[AnyArray, " batch"],
    *,
    temperature: float = 0.05,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """CoSENT: of any two pairs of the batch, that with the higher score is to have the higher cosine.

  `loss = log(1 + sum over score_i > score_j of exp((s_j - s_i) / t))`, one number of the whole batch.

  Args:
    a, b: embeddings of the two sides.
    scores: of the pairs, of any scale; pairs of equal scores are not compared.
    temperature: t > 0.
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the rows, float32: each row gives the loss of the batch, whose mean is the loss.

  Raises:
    ValueError: temperature <= 0 or not finite.

  Example:
    >>> a, b = jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[0.0, 1.0], [1.0, 0.0]])
    >>> values, weights = cosent(a, b, jnp.array([1.0, 0.0]), temperature=1.0)
    >>> np.array(values).round(3)  # log(1 + e): the order is wrong
    array([1.313, 1.313], dtype=float32)

  Source: Su 2022, as published by Huang et al. 2024 (doi 10.1109/TASLP.2024.3402087).

  sentence-transformers: `CoSENTLoss`, `SparseCoSENTLoss`
  """
  return _order(1 - _distances(a, b, "cosine", where), scores, temperature, where)


@check_arrays
def angle(
    a: Float[AnyArray, "batch dim"],
    b: Float[AnyArray, "batch dim"],
    scores: Float[AnyArray, " batch"],
    *,
    temperature: float = 0.05,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """AnglE: `cosent` of angles in complex space, whose gradient does not vanish where a cosine saturates.

  The halves of a vector are the real and imaginary parts of z and w: the similarity is `|Re + Im of sum z conj(w)|`
    over
  the lengths.

  Args:
    a, b: embeddings of the two sides; an odd dimension gets a 0 at its end.
    scores, temperature, where: see `cosent`.

  Returns:
    As `cosent`.

  Raises:
    ValueError: temperature <= 0 or not finite.

  Example:
    >>> a, b = jnp.array([[1.0, 0.0], [1.0, 1.0]]), jnp.array([[1.0, 0.0], [-1.0, 1.0]])
    >>> values, weights = angle(a, b, jnp.array([1.0, 0.0]), temperature=1.0)  # both similarities are 1
    >>> np.array(values).round(3)
    array([0.693, 0.693], dtype=float32)

  Source: Li and Li 2023 (arXiv 2309.12871), the angle term alone, whose weight beside `cosent` and an in-batch loss is
  theirs to choose.

  sentence-transformers: `AnglELoss`, `SparseAnglELoss`
  """
  if where is not None:
    a, b = (jnp.where(where[:, None], x, 0) for x in (a, b))
  a, b = (jnp.pad(normalize(x), ((0, 0), (0, x.shape[1] % 2))) for x in (a, b))
  (real_a, imaginary_a), (real_b, imaginary_b) = (jnp.split(x, 2, axis=1) for x in (a, b))
  along = jnp.sum(a * b, axis=1) + jnp.sum(imaginary_a * real_b - real_a * imaginary_b, axis=1)
  return _order(along * jnp.sign(along), scores, temperature, where)


@check_arrays
def contrastive_tension(
    a: Float[AnyArray, "batch dim"],
    b: Float[AnyArray, "batch dim"],
    labels: Bool[AnyArray, " batch"],
    *,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """Logistic loss of the product of two embeddings, by two copies of a model, of one sentence or of two.

  Args:
    a, b: embeddings by the one copy and by the other.
    labels: True where both are of one sentence; the source has seven others to each of these.
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the rows, float32. sentence-transformers sums: `Mean.of(...).total`.

  Example:
    >>> values, weights = contrastive_tension(jnp.eye(2), jnp.eye(2), jnp.array([True, False]))
    >>> np.array(values).round(3)  # log(1 + 1/e), log(1 + e)
    array([0.313, 1.313], dtype=float32)

  Source: Carlsson et al. 2021, Semantic Re-tuning with Contrastive Tension (ICLR).

  sentence-transformers: `ContrastiveTensionLoss`
  """
  if where is not None:
    a, b = (jnp.where(where[:, None], x, 0) for x in (a, b))
  score = jnp.sum(jnp.asarray(a, jnp.float32) * jnp.asarray(b, jnp.float32), axis=1)
  return _kept(jax.nn.softplus(jnp.where(labels, -score, score)), where)


@check_arrays
def pair_features(
    a: Float[AnyArray, "batch dim"], b: Float[AnyArray, "batch dim"], *, product: bool = False
) -> Float[Array, "batch features"]:
  """What a classifier of pairs reads: `[a, b, |a - b|]` and, if asked, `a b`, side by side in float32.

  `cross_entropy` of a linear layer over it trains an encoder on entailment.

  Args:
    a, b: embeddings of the two sides.
    product: append the product of each two entries.

  Example:
    >>> pair_features(jnp.array([[1.0, 2.0]]), jnp.array([[4.0, 1.0]]))
    Array([[1., 2., 4., 1., 3., 1.]], dtype=float32)

  Source: Reimers and Gurevych 2019 (arXiv 1908.10084).

  sentence-transformers: `SoftmaxLoss`, with `cross_entropy` over a linear layer
  """
  a, b = (jnp.asarray(x, jnp.float32) for x in (a, b))
  difference = a - b
  return jnp.concatenate([a, b, difference * jnp.sign(difference), *([a * b] if product else [])], axis=1)


def _distances(a, b, metric, where):
  if where is not None:
    a, b = (jnp.where(where[:, None], x, 0) for x in (a, b))
  return pair_distances(a, b, metric=metric)


def _kept(values, where):
  return values if where is None else jnp.where(where, values, 0.0), count_of(where, values.shape)


def _order(similarity, scores, temperature, where):
  in_range("temperature", temperature, "(0, inf)")
  higher = scores[:, None] > scores
  if where is not None:
    higher &= where[:, None] & where
  excess = jnp.where(higher, (similarity - similarity[:, None]) / temperature, -jnp.inf)
  loss = jax.nn.logsumexp(jnp.append(excess.reshape(-1), 0.0))
  return _kept(jnp.full(similarity.shape, loss), where)
