"""Contrastive losses over examples that were mixed, of `jaxft.losses.mixing`."""


import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxft.checks import in_range
from jaxft.losses.contrastive import (
  cosine_similarity,
  focal,
  info_nce,
  normalize,
  products,
  supervised_contrastive,
)
from jaxft.losses.in_batch import contrastive_blocks
from jaxft.losses.mixing import slerp
from jaxft.losses.reduction import count_of
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def mixed_negative_contrastive(
    a: Float[AnyArray, "batch dim"],
    b: Float[AnyArray, "batch dim"],
    t: float | Float[AnyArray, "*#batch"],
    *,
    temperature: float | Float[AnyArray, ""] = 0.07,
    a_ids: Int[AnyArray, " batch"] | None = None,
    b_ids: Int[AnyArray, " batch"] | None = None,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """m2-Mix: each pair against negatives that lie between the modalities, `slerp(a_j, b_j, t)`.

      loss_i = (CE_i(a) + CE_i(b)) / 2,   CE_i(x) = -s_ii + log(exp s_ii + sum_{j != i} exp(cos(x_i, m_j) / tau))

  where `s_ii = cos(a_i, b_i) / tau`. It is added to `clip` with a small weight.

  Args:
    a, b: embeddings of the two modalities.
    t: in [0, 1], drawn from Beta(0.5, 0.5), one number for the batch in the source; the gradient flows into the
      mixture.
    temperature: > 0.
    a_ids, b_ids: see `clip`; the mixture of a copy is no negative.
    where: rows that count; padding is a candidate for nobody, gives 0 and weighs 0.

  Returns:
    `(values, weights)` of the rows, float32.

  Raises:
    ValueError: temperature <= 0 or not finite; a traced one gives NaN.

  Example:
    >>> values, weights = mixed_negative_contrastive(jnp.eye(2), jnp.eye(2), 0.5, temperature=1.0)
    >>> np.array(values).round(3), weights  # here the mixture is the pair's own
    (array([0.313, 0.313], dtype=float32), Array([1., 1.], dtype=float32))

  Source: Oh et al. 2023 (arXiv 2203.03897), the half-sum of its OpenCLIP form; its main script takes the sum.
  """
  in_range("temperature", temperature, "(0, inf)")
  if isinstance(temperature, Tracer):
    temperature = jnp.where(temperature > 0, temperature, jnp.nan)
  if where is not None:
    a, b = (jnp.where(where[:, None], x, 0) for x in (a, b))
  scores, _, drop = contrastive_blocks(
      a, b, queries=False, positives=False, query_ids=a_ids, positive_ids=b_ids, where=where)
  mixed = slerp(a, b, t)
  own = jnp.eye(len(scores), dtype=bool)

  def half(x: Float[AnyArray, "batch dim"]) -> Float[Array, " batch"]:
    logits = jnp.where(own, scores, products(normalize(x), mixed)) / temperature
    logits = jnp.where(drop & ~own, jnp.finfo(logits.dtype).min / 2, logits)
    return jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)

  values = (half(a) + half(b)) / 2
  return values if where is None else jnp.where(where, values, 0.0), count_of(where, values.shape)


@check_arrays
def soft_clip(
    a: Float[AnyArray, "batch dim"],
    b: Float[AnyArray, "batch dim"],
    targets: Float[AnyArray, "batch columns"],
    *,
    temperature: float | Float[AnyArray, ""] = 0.07,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """`clip` with shares of targets in place of the diagonal, as mixed pairs have them.

  Args:
    a, b: embeddings of the two sides.
    targets: `[batch, batch]`, how far row i of `a` belongs to row j of `b`, >= 0. `b` searches by their transpose. They
      need not sum to 1.
    temperature: t > 0.
    where: rows that count; padding is a candidate for nobody, gives 0 and weighs 0.

  Returns:
    `(values, weights)` of the rows, float32.

  Raises:
    ValueError: targets are not square; temperature <= 0 or not finite; a traced one gives NaN.

  Example:
    >>> values, weights = soft_clip(jnp.eye(3), jnp.eye(3), jnp.eye(3), temperature=1.0)  # as `clip`
    >>> np.array(values).round(3), weights
    (array([0.551, 0.551, 0.551], dtype=float32), Array([1., 1., 1.], dtype=float32))

  Source: the uni-modal and paired terms of m3-Mix, Oh et al. 2023 (arXiv 2203.03897).
  """
  in_range("temperature", temperature, "(0, inf)")
  if targets.shape[1] != len(a):
    raise ValueError(f"targets must be [batch, batch] with batch = {len(a)}; got {list(targets.shape)}")
  if isinstance(temperature, Tracer):
    temperature = jnp.where(temperature > 0, temperature, jnp.nan)
  kept = jnp.ones(len(a), bool) if where is None else where
  a, b = (jnp.where(kept[:, None], x, 0) for x in (a, b))
  both = kept[:, None] & kept
  logits = jnp.where(both, cosine_similarity(a, b) / temperature, jnp.finfo(jnp.float32).min / 2)
  targets = jnp.asarray(jnp.where(both, targets, 0), jnp.float32)
  cross = lambda y, x: -jnp.sum(y * jnp.where(y == 0, 0.0, jax.nn.log_softmax(x)), axis=1)
  values = (cross(targets, logits) + cross(targets.T, logits.T)) / 2
  return jnp.where(kept, values, 0.0), count_of(where, values.shape)


@check_arrays
def core_tuning(
    features: Float[AnyArray, "batch dim"],
    hard_positive: Float[AnyArray, "batch dim"],
    hard_negative: Float[AnyArray, "batch dim"],
    labels: Int[AnyArray, " batch"],
    *,
    temperature: float = 0.07,
    gamma: float = 1.0,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """Focal SupCon of each row among its batch and all mixed features, of which its hard positive alone is a positive.

  Args:
    features, hard_positive, hard_negative: projected, of `core_tuning_pairs`.
    labels: classes; rows of one are positives of each other.
    temperature, gamma: see `supervised_contrastive`.
    where: rows that count; padding is a candidate for nobody, gives 0 and weighs 0.

  Returns:
    `(values, weights)` of the rows, float32; they are added to `soft_cross_entropy` of all three with a weight of 0.1.

  Raises:
    ValueError: see `supervised_contrastive`.

  Example:
    >>> same = jnp.ones((2, 3))
    >>> values, weights = core_tuning(same, same, same, jnp.array([0, 1]), gamma=0.0)
    >>> np.array(values).round(3)  # log 5: all are alike, and a row is not its own candidate
    array([1.609, 1.609], dtype=float32)

  Source: Zhang et al. 2021 (arXiv 2102.06605) as the paper has it. Its code matches mixed rows by a hash of their
  targets,
  so that they are all negatives, stops the gradient of the features themselves and has all 3 B rows as anchors.
  """
  size = len(labels)
  if where is not None:
    features, hard_positive, hard_negative = (
        jnp.where(where[:, None], x, 0) for x in (features, hard_positive, hard_negative))
  own, none = jnp.eye(size, dtype=bool), jnp.zeros((size, size), bool)
  absent = none if where is None else jnp.broadcast_to(~where, none.shape)
  similarity = cosine_similarity(features, jnp.concatenate([features, hard_positive, hard_negative]))
  positives = jnp.concatenate([labels[:, None] == labels, own, none], axis=1)
  drop = jnp.concatenate([own | absent, absent, absent], axis=1)
  return supervised_contrastive(similarity, positives, temperature=temperature, gamma=gamma, drop=drop, where=where)


@check_arrays
def mixed_negatives_ranking(
    query: Float[AnyArray, "batch dim"],
    positive: Float[AnyArray, "batch dim"],
    negative: Float[AnyArray, "batch negatives dim"],
    made: Float[AnyArray, "batch made dim"],
    *,
    temperature: float | Float[AnyArray, ""] = 0.01,
    gamma: float = 0.5,
    query_ids: Int[AnyArray, " batch"] | None = None,
    positive_ids: Int[AnyArray, " batch"] | None = None,
    negative_ids: Int[AnyArray, "batch negatives"] | None = None,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """Focal `multiple_negatives_ranking`, where negatives that were made of a row's own compete in that row alone.

      Z_i = sum_j exp(s(q_i, p_j) / t) + sum_jk exp(s(q_i, n_jk) / t) + sum_k exp(s(q_i, m_ik) / t)
      loss_i = -(1 - P_i)^gamma log P_i,   P_i = exp(s(q_i, p_i) / t) / Z_i

  Args:
    query, positive, negative: see `multiple_negatives_ranking`.
    made: of `mix_negatives`, `blend_negatives`, or both side by side; the gradient flows into what they were made of.
    temperature: t > 0.
    gamma: see `focal`, whose factor is a constant here; 0 is InfoNCE.
    query_ids, positive_ids, negative_ids: of the texts; copies are no negatives, see `contrastive_blocks`.
    where: rows that are not padding; padding is a candidate for nobody, gives 0 and weighs 0.

  Returns:
    `(values, weights)` of the rows, float32.

  Raises:
    ValueError: temperature <= 0 or not finite; a traced one gives NaN. gamma below 0 or not finite.

  Example:
    >>> negatives = jnp.ones((2, 2, 2))
    >>> made = mix_negatives(jax.random.key(0), negatives)
    >>> values, weights = mixed_negatives_ranking(jnp.eye(2), jnp.eye(2), negatives, made, temperature=1.0, gamma=0.0)
    >>> np.array(values).round(3), weights
    (array([1.629, 1.629], dtype=float32), Array([1., 1.], dtype=float32))

  Source: the fine-tuning of KaLM-Embedding-V2, Zhao et al. 2025 (arXiv 2506.20923), as told by others; whether what is
  made competes in all rows is not known.
  """
  scores, index, drop = contrastive_blocks(
      query, positive, negative, queries=False, positives=False, query_ids=query_ids, positive_ids=positive_ids,
      negative_ids=negative_ids, where=where)
  if where is not None:
    query, made = jnp.where(where[:, None], query, 0), jnp.where(where[:, None, None], made, 0)
  own = jnp.sum(normalize(query)[:, None] * normalize(made), axis=-1)
  scores = jnp.concatenate([scores, own], axis=1)
  drop = jnp.concatenate([drop, jnp.zeros(own.shape, bool)], axis=1)
  values, weights = info_nce(scores, index, temperature=temperature, drop=drop, where=where)
  return focal(values, gamma=gamma), weights
