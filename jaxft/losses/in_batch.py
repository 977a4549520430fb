"""Contrastive losses whose candidates are the rest of the batch, which is the global one.

All of them are written on global arrays: row i competes with the candidates of the whole batch, and on a mesh the
partitioner gathers what it needs. Copies of a row's texts are no negatives of it: a loss that gets ids, such as
`text_ids` makes of tokens, drops them. Without ids it cannot know them.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxft.checks import in_range, one_of
from jaxft.losses.contrastive import info_nce, normalize, products
from jaxft.losses.reduction import count_of
from jaxft.signatures import AnyArray, check_arrays

Similarity = Literal["cosine", "dot"]


@check_arrays
def contrastive_blocks(
    query: Float[AnyArray, "batch dim"],
    positive: Float[AnyArray, "batch dim"],
    negative: Float[AnyArray, "batch negatives dim"] | None = None,
    *,
    queries: bool = True,
    positives: bool = True,
    similarity: Similarity = "cosine",
    query_ids: Int[AnyArray, " batch"] | None = None,
    positive_ids: Int[AnyArray, " batch"] | None = None,
    negative_ids: Int[AnyArray, "batch negatives"] | None = None,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, "batch candidates"], Int[Array, " batch"], Bool[Array, "batch candidates"]]:
  """Similarities of each row with every candidate of the batch, side by side in one layout.

  Columns: `[query . positive | query . negative | query . query | positive . positive]`, of B, B M, B and B columns.
  The last block compares row i's positive, not its query, with all positives.

  Args:
    query: anchors.
    positive: row i answers row i of `query`.
    negative: M hard negatives for each row; they are candidates for all rows.
    queries: include the query-query block.
    positives: include the positive-positive block.
    similarity: "cosine", or "dot" for products of vectors as they are.
    query_ids, positive_ids, negative_ids: of the texts, equal where texts are, all of one numbering. A candidate whose
      text is the row's query or its positive is dropped, and so is what belongs to a copy of either: the positive of
      an equal query, the query of an equal positive. Any of them may be None.
    where: rows that are not padding. A row of padding is a candidate for nobody.

  Returns:
    similarity: as laid out above.
    positive_index: the column of each row's positive, which is i.
    drop: True at self pairs (the diagonals of the last two blocks), at copies and at the candidates of padding rows;
      never at a row's own positive.

  Raises:
    ValueError: an unknown similarity, or negative_ids without negatives.

  Example:
    >>> similarity, positive, same = contrastive_blocks(jnp.eye(2), jnp.eye(2), positives=False)
    >>> similarity.shape, positive  # candidates: the two positives, then the other queries
    ((2, 4), Array([0, 1], dtype=int32))
    >>> contrastive_blocks(jnp.eye(3), jnp.eye(3), queries=False, positives=False, positive_ids=jnp.array([7, 7, 8]))[2]
    Array([[False,  True, False],
           [ True, False, False],
           [False, False, False]], dtype=bool)
  """
  one_of("similarity", similarity, get_args(Similarity))
  if negative is None and negative_ids is not None:
    raise ValueError("negative_ids must be of negatives; got them with negative None")
  if where is not None:
    # Zeroed here, not only dropped below: a NaN in a padding row would come back through the gradient as 0 * NaN.
    query, positive = (jnp.where(where[:, None], x, 0) for x in (query, positive))
    negative = None if negative is None else jnp.where(where[:, None, None], negative, 0)
  if similarity == "cosine":
    query, positive = normalize(query), normalize(positive)
    negative = None if negative is None else normalize(negative)
  size = query.shape[0]
  own = jnp.eye(size, dtype=bool)
  absent = jnp.broadcast_to(jnp.zeros((size,), bool) if where is None else ~where, (size, size))

  def copies(candidates: AnyArray | None) -> Array:
    """True where a candidate's text is the row's query or its positive."""
    own_texts = [ids for ids in (query_ids, positive_ids) if ids is not None]
    if candidates is None or not own_texts:
      return jnp.zeros((), bool)
    return jnp.any(jnp.stack([jnp.asarray(ids[:, None] == candidates.reshape(-1)) for ids in own_texts]), axis=0)

  def partners(ids: AnyArray | None) -> Array:
    return jnp.asarray(False if ids is None else ids[:, None] == ids)

  positive_columns = absent | copies(positive_ids) | partners(query_ids)
  query_columns = absent | copies(query_ids) | partners(positive_ids)
  blocks, drops = [products(query, positive)], [positive_columns & ~own]
  if negative is not None:
    count = negative.shape[1]
    blocks.append(products(query, negative.reshape(size * count, -1)))
    drops.append(jnp.repeat(absent, count, axis=1) | copies(negative_ids))
  if queries:
    blocks.append(products(query, query))
    drops.append(query_columns | own)
  if positives:
    blocks.append(products(positive, positive))
    drops.append(positive_columns | own)
  return jnp.concatenate(blocks, axis=1), jnp.arange(size), jnp.concatenate(drops, axis=1)


@check_arrays
def in_batch_scores(
    query: Float[AnyArray, "batch dim"],
    positive: Float[AnyArray, "batch dim"],
    negative: Float[AnyArray, "batch negatives dim"] | None = None,
    *,
    temperature: float = 0.05,
    similarity: Similarity = "cosine",
    where: Bool[AnyArray, " batch"] | None = None,
) -> Float[Array, "batch candidates"]:
  """The logits of `multiple_negatives_ranking`, very low where a candidate does not compete: what is distilled.

  Args:
    query, positive, negative, temperature, similarity, where: see `multiple_negatives_ranking`.

  Raises:
    ValueError: temperature <= 0 or not finite, or an unknown similarity.

  Example:
    >>> in_batch_scores(jnp.eye(2), jnp.eye(2), temperature=0.5)
    Array([[2., 0.],
           [0., 2.]], dtype=float32)
  """
  in_range("temperature", temperature, "(0, inf)")
  scores, _, drop = contrastive_blocks(
      query, positive, negative, queries=False, positives=False, similarity=similarity, where=where)
  return jnp.where(drop, jnp.finfo(scores.dtype).min / 2, scores / temperature)


@check_arrays
def multiple_negatives_ranking(
    query: Float[AnyArray, "batch dim"],
    positive: Float[AnyArray, "batch dim"],
    negative: Float[AnyArray, "batch negatives dim"] | None = None,
    *,
    temperature: float | Float[AnyArray, ""] = 0.05,
    queries: bool = False,
    positives: bool = False,
    similarity: Similarity = "cosine",
    query_ids: Int[AnyArray, " batch"] | None = None,
    positive_ids: Int[AnyArray, " batch"] | None = None,
    negative_ids: Int[AnyArray, "batch negatives"] | None = None,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """InfoNCE against every other example of the batch; with `queries` and `positives`, GTE's extended form.

  Args:
    query: anchors.
    positive: row i answers row i of `query`.
    negative: M hard negatives for each row; they compete in all rows.
    temperature: the inverse of sentence-transformers' `scale` (20).
    queries: other queries compete too.
    positives: the positive competes with other positives too.
    similarity: "cosine" or "dot", which sparse encoders take with a temperature of 1.
    query_ids, positive_ids, negative_ids: of the texts; copies are no negatives, see `contrastive_blocks`.
    where: rows that are not padding; padding is a candidate for nobody, gives 0 and weighs 0.

  Returns:
    `(values, weights)` of the rows, float32.

  Raises:
    ValueError: temperature <= 0 or not finite; a traced one gives NaN. See also `contrastive_blocks`.

  Example:
    >>> values, weights = multiple_negatives_ranking(jnp.eye(3), jnp.eye(3), temperature=1.0)
    >>> np.array(values).round(3), weights
    (array([0.551, 0.551, 0.551], dtype=float32), Array([1., 1., 1.], dtype=float32))

  Source: Henderson et al. 2017 (arXiv 1705.00652); Li et al. 2023 (arXiv 2308.03281) for the extended form.

  sentence-transformers: `MultipleNegativesRankingLoss`, `SparseMultipleNegativesRankingLoss`
  """
  scores, index, drop = contrastive_blocks(
      query, positive, negative, queries=queries, positives=positives, similarity=similarity, query_ids=query_ids,
      positive_ids=positive_ids, negative_ids=negative_ids, where=where)
  return info_nce(scores, index, temperature=temperature, drop=drop, where=where)


@check_arrays
def symmetric_multiple_negatives_ranking(
    query: Float[AnyArray, "batch dim"],
    positive: Float[AnyArray, "batch dim"],
    negative: Float[AnyArray, "batch negatives dim"] | None = None,
    *,
    temperature: float | Float[AnyArray, ""] = 0.05,
    similarity: Similarity = "cosine",
    query_ids: Int[AnyArray, " batch"] | None = None,
    positive_ids: Int[AnyArray, " batch"] | None = None,
    negative_ids: Int[AnyArray, "batch negatives"] | None = None,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """Half `multiple_negatives_ranking`, half the same from the positives: each must find its query among all queries.

  Args:
    query, positive, temperature, similarity, query_ids, positive_ids, where: see `multiple_negatives_ranking`.
    negative, negative_ids: compete where queries search; nothing searches for them.

  Returns:
    `(values, weights)` of the rows, float32.

  Raises:
    ValueError: see `multiple_negatives_ranking`.

  Example:
    >>> values, weights = symmetric_multiple_negatives_ranking(jnp.eye(3), jnp.eye(3), temperature=1.0)
    >>> np.array(values).round(3), weights
    (array([0.551, 0.551, 0.551], dtype=float32), Array([1., 1., 1.], dtype=float32))

  Source: with hard negatives Günther et al. 2023, Jina embeddings 2 (arXiv 2310.19923).

  sentence-transformers: `MultipleNegativesSymmetricRankingLoss`
  """
  forward, weights = multiple_negatives_ranking(
      query, positive, negative, temperature=temperature, similarity=similarity, query_ids=query_ids,
      positive_ids=positive_ids, negative_ids=negative_ids, where=where)
  backward, _ = multiple_negatives_ranking(
      positive, query, temperature=temperature, similarity=similarity, query_ids=positive_ids, positive_ids=query_ids,
      where=where)
  return (forward + backward) / 2, weights


@check_arrays
def clip(
    a: Float[AnyArray, "batch dim"],
    b: Float[AnyArray, "batch dim"],
    *,
    temperature: float | Float[AnyArray, ""] = 0.07,
    a_ids: Int[AnyArray, " batch"] | None = None,
    b_ids: Int[AnyArray, " batch"] | None = None,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """CLIP's symmetric InfoNCE: row i of `a` must find row i of `b`, and the other way around; the mean of the two.

  Args:
    a: embeddings of one side, such as images.
    b: of the other side, such as texts.
    temperature: t > 0.
    a_ids, b_ids: equal where images or texts are; five captions of one image are then no negatives of each other. The
      two sides are numbered in one, so that a number on both sides says that the two are the same.
    where: rows that are not padding; padding is a candidate for nobody, gives 0 and weighs 0.

  Returns:
    `(values, weights)` of the rows, float32.

  Raises:
    ValueError: temperature <= 0 or not finite; a traced one gives NaN.

  Example:
    >>> values, weights = clip(jnp.eye(3), jnp.eye(3), temperature=1.0)
    >>> np.array(values).round(3), weights
    (array([0.551, 0.551, 0.551], dtype=float32), Array([1., 1., 1.], dtype=float32))

  Source: Radford et al. 2021 (arXiv 2103.00020), where the temperature is trained from 0.07.

  sentence-transformers: `ContrastiveTensionLossInBatchNegatives`
  """
  return symmetric_multiple_negatives_ranking(
      a, b, temperature=temperature, query_ids=a_ids, positive_ids=b_ids, where=where)


@check_arrays
def siglip(
    a: Float[AnyArray, "batch dim"],
    b: Float[AnyArray, "batch dim"],
    *,
    temperature: float | Float[AnyArray, ""] = 0.1,
    bias: float | Float[AnyArray, ""] = -10.0,
    a_ids: Int[AnyArray, " batch"] | None = None,
    b_ids: Int[AnyArray, " batch"] | None = None,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """SigLIP: each pair of the batch by itself, by logistic loss; no softmax, so no candidate depends on the others.

  `loss_i = -sum_j log sigmoid(z_ij (cos(a_i, b_j) / t + bias))`, where z is 1 at j = i and -1 elsewhere.

  Args:
    a, b: embeddings of the two sides.
    temperature: t > 0, where training begins.
    bias: of all logits, where training begins: most pairs are negatives.
    a_ids, b_ids: see `clip`; a pair that is a copy counts as neither.
    where: rows that are not padding; padding is a candidate for nobody, gives 0 and weighs 0.

  Returns:
    `(values, weights)` of the rows of `a`, float32.

  Raises:
    ValueError: temperature <= 0 or not finite, or a bias that is not; a traced temperature gives NaN.

  Example:
    >>> values, weights = siglip(jnp.eye(2), jnp.eye(2), temperature=1.0, bias=0.0)
    >>> np.array(values).round(3), weights  # log(1 + 1/e) + log 2
    (array([1.006, 1.006], dtype=float32), Array([1., 1.], dtype=float32))

  Source: Zhai et al. 2023 (arXiv 2303.15343).
  """
  in_range("temperature", temperature, "(0, inf)")
  in_range("bias", bias)
  scores, _, drop = contrastive_blocks(
      a, b, queries=False, positives=False, query_ids=a_ids, positive_ids=b_ids, where=where)
  if isinstance(temperature, Tracer):
    temperature = jnp.where(temperature > 0, temperature, jnp.nan)
  sign = 2 * jnp.eye(len(scores)) - 1
  each = jnp.where(drop, 0.0, jax.nn.softplus(-sign * (scores / temperature + bias)))
  values = jnp.sum(each, axis=1)
  return values if where is None else jnp.where(where, values, 0), count_of(where, values.shape)


@check_arrays
def mega_batch_margin(
    query: Float[AnyArray, "batch dim"],
    positive: Float[AnyArray, "batch dim"],
    *,
    positive_margin: float = 0.8,
    negative_margin: float = 0.3,
    query_ids: Int[AnyArray, " batch"] | None = None,
    positive_ids: Int[AnyArray, " batch"] | None = None,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """Two hinges a row: its positive at least so near, the nearest other positive of a very large batch at most so near.

  `loss_i = max(0, m+ - cos(q_i, p_i)) + max(0, max_{j != i} cos(q_i, p_j) - m-)`

  Args:
    query: anchors.
    positive: row i answers row i of `query`.
    positive_margin: m+, a cosine.
    negative_margin: m-, a cosine.
    query_ids, positive_ids: of the texts; copies are no negatives, see `contrastive_blocks`.
    where: rows that are not padding; padding is a candidate for nobody, gives 0 and weighs 0.

  Returns:
    `(values, weights)` of the rows, float32.

  Raises:
    ValueError: a margin that is not finite.

  Example:
    >>> values, weights = mega_batch_margin(jnp.eye(2), jnp.array([[0.0, 1.0], [1.0, 0.0]]))
    >>> np.array(values).round(3), weights  # 0.8 - 0, and 1 - 0.3
    (array([1.5, 1.5], dtype=float32), Array([1., 1.], dtype=float32))

  Source: Wieting and Gimpel 2018, ParaNMT-50M (arXiv 1711.05732), with the margins of sentence-transformers.

  sentence-transformers: `MegaBatchMarginLoss`
  """
  in_range("positive_margin", positive_margin)
  in_range("negative_margin", negative_margin)
  scores, index, drop = contrastive_blocks(
      query, positive, queries=False, positives=False, query_ids=query_ids, positive_ids=positive_ids, where=where)
  own = jnp.eye(len(scores), dtype=bool)
  nearest = jnp.max(jnp.where(drop | own, -1.0, scores), axis=1)
  hinge = lambda x: jnp.maximum(x, 0.0)
  values = hinge(positive_margin - scores[index, index]) + hinge(nearest - negative_margin)
  return values if where is None else jnp.where(where, values, 0), count_of(where, values.shape)
