"""Late interaction: a text is many vectors, and each of a query's looks for the document's vector that is nearest.

The scores go where scores of single vectors go: `late_interaction` has them compete in a batch, `margin_mse` and
`distill_scores` take `maxsim_candidates`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxft.losses.contrastive import info_nce
from jaxft.losses.in_batch import contrastive_blocks
from jaxft.signatures import AnyArray, check_arrays

# Below any real score, and finite when it is divided by a temperature.
_EMPTY = -1e9


@check_arrays
def maxsim(
    query: Float[AnyArray, "queries query_time dim"],
    document: Float[AnyArray, "documents document_time dim"],
    *,
    query_mask: Bool[AnyArray, "queries query_time"] | None = None,
    document_mask: Bool[AnyArray, "documents document_time"] | None = None,
    per_token: bool = False,
    chunk: int | None = None,
) -> Float[Array, "queries documents"]:
  """`sum over a query's tokens of the highest product with a token of the document`, of all with all.

  Args:
    query: the tokens' vectors, usually of unit length.
    document: likewise.
    query_mask, document_mask: True at tokens that count; None counts all. A document with none scores -1e9.
    per_token: divide by the number of the query's tokens.
    chunk: score so many documents at a time, again in the backward pass, so that the products of all tokens with all
      are never held together; None takes all at once.

  Raises:
    ValueError: chunk below 1.

  Example:
    >>> maxsim(jnp.eye(2)[None], jnp.array([[[1.0, 0.0]], [[0.5, 0.75]]]))
    Array([[1.  , 1.25]], dtype=float32)

  Source: Khattab and Zaharia 2020, ColBERT (arXiv 2004.12832).
  """
  if chunk is not None and chunk < 1:
    raise ValueError(f"chunk must be at least 1, or None for all documents at once; got {chunk}")
  counts, mask = _counts(query, query_mask, per_token), _all(document, document_mask)
  query, document = _read(query, query_mask), _read(document, document_mask)
  if chunk is None:
    return _scores(query, document, mask, counts)
  one = jax.checkpoint(lambda d: _scores(query, d[0][None], d[1][None], counts)[:, 0])
  return jax.lax.map(one, (document, mask), batch_size=chunk).T


@check_arrays
def maxsim_candidates(
    query: Float[AnyArray, "batch query_time dim"],
    candidates: Float[AnyArray, "batch candidates document_time dim"],
    *,
    query_mask: Bool[AnyArray, "batch query_time"] | None = None,
    candidate_mask: Bool[AnyArray, "batch candidates document_time"] | None = None,
    per_token: bool = False,
) -> Float[Array, "batch candidates"]:
  """`maxsim` of each query with candidates of its own.

  Args:
    query: the tokens' vectors.
    candidates: of each query, the positive first where a loss says so.
    query_mask, candidate_mask, per_token: see `maxsim`.

  Example:
    >>> maxsim_candidates(jnp.eye(2)[None], jnp.array([[[[1.0, 0.0]], [[0.5, 0.75]]]]))
    Array([[1.  , 1.25]], dtype=float32)
  """
  counts, mask = _counts(query, query_mask, per_token), _all(candidates, candidate_mask)
  query, candidates = _read(query, query_mask), _read(candidates, candidate_mask)
  one = lambda q, c, m, n: _scores(q[None], c, m, n[None])[0]
  return jax.vmap(one)(query, candidates, mask, counts)


@check_arrays
def late_interaction(
    query: Float[AnyArray, "batch query_time dim"],
    positive: Float[AnyArray, "batch document_time dim"],
    negative: Float[AnyArray, "batch negatives document_time dim"] | None = None,
    *,
    query_mask: Bool[AnyArray, "batch query_time"] | None = None,
    positive_mask: Bool[AnyArray, "batch document_time"] | None = None,
    negative_mask: Bool[AnyArray, "batch negatives document_time"] | None = None,
    temperature: float | Float[AnyArray, ""] = 1.0,
    per_token: bool = False,
    chunk: int | None = None,
    query_ids: Int[AnyArray, " batch"] | None = None,
    positive_ids: Int[AnyArray, " batch"] | None = None,
    negative_ids: Int[AnyArray, "batch negatives"] | None = None,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """InfoNCE of `maxsim` scores: each query is to find its document among those of the batch.

  Args:
    query, positive: the tokens' vectors; row i of `positive` answers row i of `query`.
    negative: M hard negatives for each row; they compete in all rows.
    query_mask, positive_mask, negative_mask, per_token, chunk: see `maxsim`.
    temperature: t > 0.
    query_ids, positive_ids, negative_ids: of the texts; copies are no negatives, see `contrastive_blocks`.
    where: rows that count; padding is a candidate for nobody, gives 0 and weighs 0.

  Returns:
    `(values, weights)` of the rows, float32.

  Raises:
    ValueError: temperature <= 0 or not finite, chunk below 1, or a mask of negatives that are not given.

  Example:
    >>> texts = jnp.eye(4).reshape(2, 2, 4)  # of two tokens each
    >>> values, weights = late_interaction(texts, texts)
    >>> np.array(values).round(3), weights  # log(1 + e^-2)
    (array([0.127, 0.127], dtype=float32), Array([1., 1.], dtype=float32))

  Source: Khattab and Zaharia 2020 (arXiv 2004.12832), with the negatives of the whole batch.

  sentence-transformers: `MultiVectorMultipleNegativesRankingLoss`
  """
  if negative is None and negative_mask is not None:
    raise ValueError("negative_mask must be of negatives; got it with negative None")
  if where is not None:
    rows = lambda x: jnp.where(where.reshape(where.shape + (1,) * (x.ndim - 1)), x, 0)
    query, positive = rows(query), rows(positive)
    negative = None if negative is None else rows(negative)
  score = partial(maxsim, query, query_mask=query_mask, per_token=per_token, chunk=chunk)
  blocks = [score(positive, document_mask=positive_mask)]
  if negative is not None:
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    blocks.append(score(flat(negative), document_mask=None if negative_mask is None else flat(negative_mask)))
  # Which candidates compete does not depend on what the vectors are.
  size = len(query)
  stand_in = jnp.zeros((size, 1))
  _, index, drop = contrastive_blocks(
      stand_in, stand_in, None if negative is None else jnp.zeros((size, negative.shape[1], 1)), queries=False,
      positives=False, query_ids=query_ids, positive_ids=positive_ids, negative_ids=negative_ids, where=where)
  return info_nce(jnp.concatenate(blocks, axis=1), index, temperature=temperature, drop=drop, where=where)


def _all(x, mask):
  return jnp.ones(x.shape[:-1], bool) if mask is None else mask


def _read(x, mask):
  x = jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
  return x if mask is None else jnp.where(mask[..., None], x, 0)


def _counts(query, mask, per_token):
  """What each query's score is divided by."""
  if not per_token:
    return jnp.ones(len(query))
  return jnp.maximum(jnp.sum(_all(query, mask), axis=1), 1).astype(jnp.float32)


def _scores(query, document, document_mask, counts):
  """`[queries, documents]`; a query's masked tokens are zeros, whose highest product is 0 with any document."""
  each = jnp.einsum("qsd,ntd->qnst", query, document, precision=jax.lax.Precision.HIGHEST)
  each = jnp.where(document_mask[None, :, None], each, -jnp.inf)
  total = jnp.sum(jnp.max(each, axis=-1), axis=-1) / counts[:, None]
  return jnp.where(document_mask.any(axis=-1), total, _EMPTY)
