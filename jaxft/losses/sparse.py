"""Losses of sparse embeddings: how many products a search takes, and how well a code gives back what it encodes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxft.checks import in_range
from jaxft.losses.in_batch import multiple_negatives_ranking
from jaxft.losses.reduction import count_of
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def splade_weights(
    logits: Float[AnyArray, "batch time vocab"], mask: Bool[AnyArray, "batch time"]
) -> Float[Array, "batch vocab"]:
  """A text as weights of the words of a vocabulary: `max_t log(1 + max(0, logits_t))`.

  Args:
    logits: of a masked language model's head.
    mask: True at real tokens.

  Example:
    >>> splade_weights(jnp.array([[[0.0, 1.0], [-1.0, 9.0]]]), jnp.array([[True, False]])).round(3)
    Array([[0.   , 0.693]], dtype=float32)

  Source: Formal et al. 2021, SPLADE v2 (arXiv 2109.10086).
  """
  logits = jnp.asarray(jnp.where(mask[..., None], logits, 0), jnp.promote_types(logits.dtype, jnp.float32))
  return jnp.log1p(jnp.maximum(jnp.max(logits, axis=1), 0.0))


@check_arrays
def flops(
    embeddings: Float[AnyArray, "batch vocab"],
    *,
    threshold: int | None = None,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """How many products two sparse embeddings take, smoothed: `sum_v (mean_i w_iv)^2`, as the shares of the rows.

  Row i's share is `sum_v w_iv mean_j w_jv`. Few entries and even ones both make it small.

  Args:
    embeddings: w >= 0.
    threshold: rows with at most so many entries other than 0 do not add to it; None counts all.
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the rows, float32, whose mean is the penalty.

  Raises:
    ValueError: threshold below 0.

  Example:
    >>> values, weights = flops(jnp.array([[2.0, 0.0], [0.0, 2.0]]))
    >>> np.array(values), weights  # 1^2 + 1^2
    (array([2., 2.], dtype=float32), Array([1., 1.], dtype=float32))

  Source: Paria et al. 2020 (arXiv 2004.05665).

  sentence-transformers: `FlopsLoss`
  """
  if threshold is not None:
    in_range("threshold", threshold, "[0, inf)")
  kept = jnp.ones(len(embeddings), bool) if where is None else where
  w = jnp.asarray(embeddings, jnp.promote_types(embeddings.dtype, jnp.float32))
  w = w if where is None else jnp.where(where[:, None], w, 0)
  if threshold is not None:
    w = jnp.where(jnp.sum(w != 0, axis=1, keepdims=True) > threshold, w, 0)
  mean = jnp.sum(w, axis=0) / jnp.maximum(jnp.sum(kept), 1)
  return jnp.sum(w * mean, axis=1), count_of(where, kept.shape)


@check_arrays
def splade(
    query: Float[AnyArray, "batch vocab"],
    positive: Float[AnyArray, "batch vocab"],
    negative: Float[AnyArray, "batch negatives vocab"] | None = None,
    *,
    query_weight: float = 5e-5,
    document_weight: float = 3e-5,
    temperature: float = 1.0,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """SPLADE: `multiple_negatives_ranking` of dot products, and `flops` of the queries and of the documents.

  Another loss and other weights are a sum of values: `values + 1e-4 * flops(embeddings, where=where)[0]`.

  Args:
    query, positive, negative: sparse embeddings, see `multiple_negatives_ranking`.
    query_weight, document_weight: >= 0, of the penalties; they usually rise from 0 over training. May be traced.
    temperature: t > 0.
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the rows, float32.

  Raises:
    ValueError: a weight below 0 or not finite, or temperature <= 0.

  Example:
    >>> values, weights = splade(jnp.eye(2), jnp.eye(2), query_weight=1.0, document_weight=1.0)
    >>> np.array(values).round(3), weights  # 0.313 + 0.5 + 0.5
    (array([1.313, 1.313], dtype=float32), Array([1., 1.], dtype=float32))

  Source: Formal et al. 2021 (arXiv 2109.10086); the weights are those of sentence-transformers' examples.

  sentence-transformers: `SpladeLoss`
  """
  in_range("query_weight", query_weight, "[0, inf)")
  in_range("document_weight", document_weight, "[0, inf)")
  values, weights = multiple_negatives_ranking(
      query, positive, negative, temperature=temperature, similarity="dot", where=where)
  documents = positive[:, None] if negative is None else jnp.concatenate([positive[:, None], negative], axis=1)
  count = documents.shape[1]
  each = jnp.repeat(where, count) if where is not None else None
  of_documents, _ = flops(documents.reshape(len(query) * count, -1), where=each)
  values += query_weight * flops(query, where=where)[0]
  return values + document_weight * jnp.mean(of_documents.reshape(len(query), count), axis=1), weights


@check_arrays
def csr_reconstruction(
    inputs: Float[AnyArray, "batch dim"],
    at_k: Float[AnyArray, "batch dim"],
    at_4k: Float[AnyArray, "batch dim"],
    auxiliary: Float[AnyArray, "batch dim"] | None = None,
    residual: Float[AnyArray, "batch dim"] | None = None,
    *,
    beta: float = 0.1,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """How well a sparse code with k and with 4k entries gives back the embedding, and its dead units the rest.

      loss = mse(at_k, x) + mse(at_4k, x) / 8 + beta mse(auxiliary, residual) / variance(residual)

  with means over coordinates, and the variance over the rows of the batch.

  Args:
    inputs: x, the dense embeddings.
    at_k, at_4k: what the decoder makes of the k and 4k largest entries.
    auxiliary: what it makes of entries that have long been dead; None leaves the term out.
    residual: what those are to give, x less the reconstruction at k without the decoder's bias; a constant.
    beta: >= 0, the weight of the auxiliary term.
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the rows, float32. The contrastive term of CSR is `multiple_negatives_ranking` of the codes.

  Raises:
    ValueError: beta below 0 or not finite, or one of auxiliary and residual without the other.

  Example:
    >>> values, weights = csr_reconstruction(jnp.ones((1, 4)), jnp.zeros((1, 4)), jnp.ones((1, 4)))
    >>> np.array(values), weights
    (array([1.], dtype=float32), Array([1.], dtype=float32))

  Source: Wen et al. 2025, CSR (arXiv 2503.01776).

  sentence-transformers: `CSRReconstructionLoss`, `CSRLoss`
  """
  in_range("beta", beta, "[0, inf)")
  if (auxiliary is None) != (residual is None):
    given, missing = ("auxiliary", "residual") if residual is None else ("residual", "auxiliary")
    raise ValueError(f"{missing} must be given with {given}; got None")
  kept = jnp.ones(len(inputs), bool) if where is None else where
  read = lambda x: jnp.asarray(jnp.where(kept[:, None], x, 0), jnp.promote_types(x.dtype, jnp.float32))
  error = lambda a, b: jnp.mean(jnp.square(a - b), axis=1)
  x = read(inputs)
  values = error(read(at_k), x) + error(read(at_4k), x) / 8
  if auxiliary is not None and residual is not None:
    rest = jax.lax.stop_gradient(read(residual))
    count = jnp.maximum(jnp.sum(kept), 1)
    variance = jnp.sum(jnp.where(kept, error(rest, jnp.sum(rest, axis=0) / count), 0.0)) / count
    values += beta * error(read(auxiliary), rest) / jnp.where(variance > 0, variance, 1.0)
  return jnp.where(kept, values, 0.0), count_of(where, values.shape)
