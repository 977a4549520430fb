"""Hard examples made by mixing embeddings, on the sphere or in feature space, and the targets of what is mixed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxft.checks import in_range
from jaxft.losses.contrastive import (
    cosine_similarity,
    normalize,
)
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
