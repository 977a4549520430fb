"""Hard examples made by mixing embeddings, on the sphere or in feature space, and the losses over them."""

from typing import NamedTuple

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
from jaxft.losses.reduction import count_of
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def slerp(
    a: Float[AnyArray, "*batch dim"],
    b: Float[AnyArray, "*batch dim"],
    t: float | Float[AnyArray, "*#batch"],
    *,
    eps: float = 1e-4,
) -> Float[Array, "*batch dim"]:
  """The unit vector on the arc between two directions, at the share `t` of its length from `b`: `a` at 1, `b` at 0.

  `(sin(t w) a + sin((1 - t) w) b) / sin w`, w being the angle between them.

  Args:
    a, b: vectors of any length.
    t: in [0, 1]; a number, or one for each pair.
    eps: where `sin w` is below it, the vectors are the same or opposite to rounding, and the straight line between them
      is taken, brought to unit length.

  Example:
    >>> slerp(jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0]), 0.5).round(3)
    Array([0.707, 0.707], dtype=float32)

  Source: Shoemake 1985; of the two modalities of a pair Oh et al. 2023, Geodesic Multi-Modal Mixup (arXiv 2203.03897),
  whose code has no guard where the vectors are the same.
  """
  a, b = normalize(a), normalize(b)
  t = jnp.asarray(t, a.dtype)[..., None]
  cosine = jnp.sum(a * b, axis=-1, keepdims=True)
  # Both branches are finite, forwards and backwards: the slope of arccos has no bound at 1.
  bent = 1 - jnp.square(cosine) > eps**2
  angle = jnp.arccos(jnp.where(bent, cosine, 0.0))
  arc = (jnp.sin(t * angle) * a + jnp.sin((1 - t) * angle) * b) / jnp.sin(angle)
  return jnp.where(bent, arc, normalize(t * a + (1 - t) * b))


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
def mixup_targets(
    partner: Int[AnyArray, " batch"], t: float | Float[AnyArray, "*#batch"]
) -> Float[Array, "batch batch"]:
  """`t` on the diagonal and `1 - t` at each row's partner: targets of `soft_clip` for `slerp(a, a[partner], t)`.

  Args:
    partner: the row that each is mixed with.
    t: in [0, 1], a number or one for each row.

  Example:
    >>> mixup_targets(jnp.array([1, 0]), 0.75)
    Array([[0.75, 0.25],
           [0.25, 0.75]], dtype=float32)
  """
  size = len(partner)
  t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), (size,))[:, None]
  return t * jnp.eye(size) + (1 - t) * jax.nn.one_hot(partner, size)


class HardestPairs(NamedTuple):
  """Of each row, the index of its hardest positive and negative, and whether it has one; itself where it has none."""

  positive: Int[Array, " batch"]
  negative: Int[Array, " batch"]
  has_positive: Bool[Array, " batch"]
  has_negative: Bool[Array, " batch"]


@check_arrays
def hardest_pairs(
    similarity: Float[AnyArray, "batch columns"],
    labels: Int[AnyArray, " batch"],
    *,
    where: Bool[AnyArray, " batch"] | None = None,
) -> HardestPairs:
  """The row of the same class that is least similar, and the row of another class that is most similar.

  Args:
    similarity: `[batch, batch]`.
    labels: classes.
    where: rows that count.

  Raises:
    ValueError: similarity is not square.

  Example:
    >>> pairs = hardest_pairs(jnp.array([[1.0, 0.5, 0.9], [0.5, 1.0, 0.1], [0.9, 0.1, 1.0]]), jnp.array([0, 0, 1]))
    >>> pairs.positive, pairs.negative, pairs.has_positive
    (Array([1, 0, 2], dtype=int32), Array([2, 2, 0], dtype=int32), Array([ True,  True, False], dtype=bool))

  Source: Zhang et al. 2021, Core-tuning (arXiv 2102.06605), whose code masks with zeros, and so mostly finds a row
  itself.
  """
  size = len(labels)
  if similarity.shape[1] != size:
    raise ValueError(f"similarity must be [batch, batch] with batch = {size}; got {list(similarity.shape)}")
  kept = jnp.ones(size, bool) if where is None else where
  both, same, itself = kept[:, None] & kept, labels[:, None] == labels, jnp.arange(size)
  positive, negative = both & same & ~jnp.eye(size, dtype=bool), both & ~same
  has_positive, has_negative = jnp.any(positive, axis=1), jnp.any(negative, axis=1)
  furthest = jnp.argmin(jnp.where(positive, similarity, jnp.inf), axis=1)
  nearest = jnp.argmax(jnp.where(negative, similarity, -jnp.inf), axis=1)
  return HardestPairs(
      jnp.where(has_positive, furthest, itself), jnp.where(has_negative, nearest, itself), has_positive, has_negative)


@check_arrays
def core_tuning_pairs(
    key: jax.Array,
    features: Float[AnyArray, "batch dim"],
    targets: Float[AnyArray, "batch classes"],
    labels: Int[AnyArray, " batch"],
    *,
    alpha: float = 1.0,
    negative_floor: float = 0.8,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, "views batch dim"], Float[Array, "views batch classes"]]:
  """The features with a hard positive and a hard negative of each, made by mixing, and targets mixed alike.

  All are `[3, batch, ...]`. The hard positive is `l f_hp + (1 - l) f_hn` of the hardest positive and negative, the hard
  negative `(1 - m) f_i + m f_r` with another row r; l and m are from Beta(alpha, alpha), m at least `negative_floor`.

  Args:
    key: draws l, m and r for each row.
    features: of the backbone. The gradient flows through them; what is hardest is found by constants.
    targets: of the classes, one-hot or soft.
    labels: classes.
    alpha: > 0.
    negative_floor: in [0, 1].
    where: rows that count; the others are mixed with nobody.

  Raises:
    ValueError: alpha or negative_floor out of range.

  Example:
    >>> labels = jnp.array([0, 0, 1, 1])
    >>> mixed, targets = core_tuning_pairs(jax.random.key(0), jnp.eye(4), jax.nn.one_hot(labels, 2), labels)
    >>> mixed.shape, targets.sum(axis=-1).round(3)[1]
    ((3, 4, 4), Array([1., 1., 1., 1.], dtype=float32))

  Source: Zhang et al. 2021 (arXiv 2102.06605). A row without a positive takes itself, one without a negative its
  hardest
  positive alone.
  """
  in_range("alpha", alpha, "(0, inf)")
  in_range("negative_floor", negative_floor, "[0, 1]")
  size = len(labels)
  kept = jnp.ones(size, bool) if where is None else where
  features, targets = (jnp.asarray(jnp.where(kept[:, None], x, 0), jnp.float32) for x in (features, targets))
  fixed = jax.lax.stop_gradient(features)
  hp, hn, _, has_negative = hardest_pairs(cosine_similarity(fixed, fixed), labels, where=where)
  for_l, for_m, for_r = jax.random.split(key, 3)
  share = jnp.where(has_negative, jax.random.beta(for_l, alpha, alpha, (size,)), 1.0)[:, None]
  other = jnp.maximum(jax.random.beta(for_m, alpha, alpha, (size,)), negative_floor)[:, None]
  # Any row that counts, drawn for each: a permutation would bring in those that do not.
  r = jax.random.categorical(for_r, jnp.where(kept, 0.0, -1e9), shape=(size,))
  mixed = lambda x: jnp.stack([x, share * x[hp] + (1 - share) * x[hn], (1 - other) * x + other * x[r]])
  return mixed(features), mixed(targets)


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
def mix_negatives(
    key: jax.Array,
    negatives: Float[AnyArray, "batch negatives dim"],
    *,
    count: int = 1,
    alpha: float = 2.0,
    where: Bool[AnyArray, "batch negatives"] | None = None,
) -> Float[Array, "batch count dim"]:
  """New hard negatives of each row between two of its own: `normalize(l a + (1 - l) b)`, l from Beta(alpha, alpha).

  Args:
    key: draws the pairs and l.
    negatives: hard negatives of each row.
    count: how many are made for each.
    alpha: > 0.
    where: negatives that are there; a row with one alone gives it back, with none zeros.

  Raises:
    ValueError: there are no two negatives, count below 1, or alpha out of range.

  Example:
    >>> mix_negatives(jax.random.key(0), jnp.ones((2, 3, 4)), count=5).shape
    (2, 5, 4)

  Source: the pair-wise mixing of KaLM-Embedding-V2, Zhao et al. 2025 (arXiv 2506.20923), as told by others; how many
  are
  made is not known.
  """
  batch, size, _ = negatives.shape
  if size < 2:
    raise ValueError(f"negatives must be two or more in a row to be mixed; got {size}")
  if count < 1:
    raise ValueError(f"count must be at least 1; got {count}")
  in_range("alpha", alpha, "(0, inf)")
  kept = jnp.ones((batch, size), bool) if where is None else where
  unit = normalize(jnp.where(kept[..., None], negatives, 0))
  for_pairs, for_l = jax.random.split(key)
  draw = jnp.where(kept[:, None], jax.random.uniform(for_pairs, (batch, count, size)), -1.0)
  at = jax.lax.top_k(draw, 2)[1]
  # What is not there is never drawn while two others are; of one alone the pair is with itself.
  at = jnp.where(jnp.take_along_axis(kept[:, None], at, axis=2), at, at[..., :1])
  share = jax.random.beta(for_l, alpha, alpha, (batch, count))[..., None]
  pick = lambda i: jnp.take_along_axis(unit, at[..., i : i + 1], axis=1)
  return normalize(share * pick(0) + (1 - share) * pick(1))


@check_arrays
def blend_negatives(
    query: Float[AnyArray, "batch dim"],
    negatives: Float[AnyArray, "batch negatives dim"],
    *,
    temperature: float = 0.01,
    where: Bool[AnyArray, "batch negatives"] | None = None,
) -> Float[Array, "batch one dim"]:
  """One new hard negative of each row, `normalize(sum_k softmax(cos(q, n) / t)_k n_k)`, whose weights are constants.

  Args:
    query: anchors.
    negatives: hard negatives of each row.
    temperature: t > 0: towards 0 it is the hardest one, towards infinity the mean.
    where: negatives that are there.

  Raises:
    ValueError: temperature <= 0 or not finite.

  Example:
    >>> blend_negatives(jnp.array([[1.0, 0.0]]), jnp.array([[[0.6, 0.8], [0.0, 1.0]]])).round(3)
    Array([[[0.6, 0.8]]], dtype=float32)

  Source: a reading of the list-wise mixing of KaLM-Embedding-V2, Zhao et al. 2025 (arXiv 2506.20923), whose weights are
  not confirmed.
  """
  in_range("temperature", temperature, "(0, inf)")
  kept = jnp.ones(negatives.shape[:2], bool) if where is None else where
  unit = normalize(jnp.where(kept[..., None], negatives, 0))
  scores = jnp.sum(normalize(query)[:, None] * unit, axis=-1)
  weights = jax.nn.softmax(jnp.where(kept, scores / temperature, jnp.finfo(scores.dtype).min / 2))
  return normalize(jnp.sum(jax.lax.stop_gradient(weights)[..., None] * unit, axis=1))[:, None]


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
