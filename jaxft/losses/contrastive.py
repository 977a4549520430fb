"""Contrastive losses: softmax cross-entropy over similarities, with a mask of the candidates that do not compete.

All of them are written on global arrays: row i competes with the candidates of the whole batch, and on a mesh the
partitioner gathers what it needs. Similarities are products of unit vectors in float32 and lie in [-1, 1]. A loss gives
the values of its rows and what they weigh, 0 for padding: `Mean.of(*info_nce(...))`.
"""

import math

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxft.losses.reduction import count_of
from jaxft.signatures import AnyArray, check_arrays

_NORM_FLOOR = 1e-8


@check_arrays
def normalize(x: Float[AnyArray, "*batch dim"]) -> Float[Array, "*batch dim"]:
  """Unit vectors `x / max(|x|, 1e-8)` in float32; a zero vector stays zero, with a finite gradient.

  Any finite length will do: squares are summed in units of about the largest entry, and neither overflow nor vanish.

  Example:
    >>> normalize(jnp.array([[3.0, 4.0]]))
    Array([[0.6, 0.8]], dtype=float32)
  """
  x = jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
  # The unit divides out, so no gradient has to flow through it. It stays below a quarter of the largest number, as
  # compilers divide by multiplying with the reciprocal, and that of a larger one is subnormal, which becomes 0.
  largest = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=-1, keepdims=True)
  unit = jnp.clip(largest, _NORM_FLOOR, float(jnp.finfo(x.dtype).max) / 4)
  x = x / unit
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, jnp.square(_NORM_FLOOR / unit)))


@check_arrays
def cosine_similarity(
    a: Float[AnyArray, "rows dim"], b: Float[AnyArray, "columns dim"]
) -> Float[Array, "rows columns"]:
  """All pairs `<a_i, b_j> / (|a_i| |b_j|)`, in float32; a norm below 1e-8 counts as 1e-8, see `normalize`.

  Example:
    >>> cosine_similarity(jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]))
    Array([[ 1.,  0., -1.]], dtype=float32)
  """
  return _products(normalize(a), normalize(b))


def _products(a: Float[AnyArray, "rows dim"], b: Float[AnyArray, "columns dim"]) -> Float[Array, "rows columns"]:
  # Accelerators round float32 factors to bfloat16 unless told otherwise: 4e-3 in a cosine is 0.4 in a logit at
  # temperature 0.01, and makes ties of what a guide tells apart.
  return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


@check_arrays
def info_nce(
    similarity: Float[AnyArray, "batch candidates"],
    positive: Int[AnyArray, " batch"],
    *,
    temperature: float | Float[AnyArray, ""],
    drop: Bool[AnyArray, "batch candidates"] | None = None,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """InfoNCE: how far each row's positive is from winning the softmax over its candidates.

  `loss_i = -s[i, p_i] / t + log sum_{j kept} exp(s[i, j] / t)`, in nats, >= 0.

  Args:
    similarity: similarities, any scale.
    positive: the column of each row's positive; one that does not exist gives NaN.
    temperature: t > 0; a float, or a scalar that is trained.
    drop: True where a candidate leaves the denominator (a false negative, padding, the row itself). The positive is
      kept whatever stands here. Dropped entries may hold anything, NaN included.
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the rows, float32.

  Raises:
    ValueError: temperature <= 0 or not finite; a traced one gives NaN.

  Example:
    >>> similarity = cosine_similarity(jnp.eye(2), jnp.eye(2))
    >>> values, weights = info_nce(similarity, jnp.arange(2), temperature=1.0)
    >>> round(float(Mean.of(values, weights).value), 3)
    0.313

  Source: van den Oord et al. 2018 (arXiv 1807.03748), with cosine similarities and a temperature in place of the
  bilinear score.
  """
  _check_temperature(temperature)
  similarity = similarity.astype(jnp.promote_types(similarity.dtype, jnp.float32))
  if drop is not None:
    drop = drop & ~jax.nn.one_hot(positive, similarity.shape[1], dtype=bool)
  known = (positive >= 0) & (positive < similarity.shape[1])

  def loss(logits: Float[AnyArray, "batch candidates"]) -> Float[Array, " batch"]:
    values = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(known, positive, 0))
    return jnp.where(known, values, jnp.nan)

  return _row_losses(loss, similarity, temperature, drop, where)


@check_arrays
def supervised_contrastive(
    similarity: Float[AnyArray, "batch candidates"],
    positives: Bool[AnyArray, "batch candidates"],
    *,
    temperature: float | Float[AnyArray, ""] = 0.07,
    drop: Bool[AnyArray, "batch candidates"] | None = None,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """SupCon: InfoNCE with several positives in a row, averaged outside the logarithm.

  `loss_i = -1/|P_i| sum_{p in P_i} log softmax_{j kept}(s[i, j] / t)[p]`; without a positive a row gives and weighs 0.

  Args:
    similarity: similarities, any scale.
    positives: True at the positives of each row. An entry that is also dropped is no positive, so that a row's own
      column need only be named in `drop`.
    temperature: t > 0.
    drop: True where a candidate leaves both the denominator and the positives.
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the rows, float32.

  Raises:
    ValueError: temperature <= 0 or not finite; a traced one gives NaN.

  Example:
    >>> positives = jnp.array([[True, True, False]])
    >>> values, weights = supervised_contrastive(jnp.zeros((1, 3)), positives)
    >>> np.array(values).round(3)  # log 3
    array([1.099], dtype=float32)

  Source: Khosla et al. 2020 (arXiv 2004.11362), equation 2 (`L_out`), without its base temperature. The source's code
  counts the 0 of a row without a positive in its mean.
  """
  _check_temperature(temperature)
  similarity = similarity.astype(jnp.promote_types(similarity.dtype, jnp.float32))
  if drop is not None:
    positives = positives & ~drop
  count = jnp.sum(positives, axis=-1)

  def loss(logits: Float[AnyArray, "batch candidates"]) -> Float[Array, " batch"]:
    log_probs = jnp.where(positives, jax.nn.log_softmax(logits), 0)
    return -jnp.sum(log_probs, axis=-1) / jnp.maximum(count, 1)

  some = count > 0
  return _row_losses(loss, similarity, temperature, drop, some if where is None else some & where)


def _row_losses(loss, similarity, temperature, drop, where):
  """`(values, weights)` by `loss` of logits whose dropped entries and rows reach neither the value nor the gradient."""
  if drop is not None:
    similarity = jnp.where(drop, 0, similarity)
  if where is not None:
    similarity = jnp.where(where[:, None], similarity, 0)
  if isinstance(temperature, Tracer):
    temperature = jnp.where(temperature > 0, temperature, jnp.nan)
  logits = similarity / temperature
  if drop is not None:
    # Finite, unlike -inf: a row that has lost every candidate must not turn into NaN.
    logits = jnp.where(drop, jnp.finfo(logits.dtype).min / 2, logits)
  values = loss(logits)
  return values if where is None else jnp.where(where, values, 0), count_of(where, values.shape)


def _check_temperature(temperature: float | Float[AnyArray, ""]) -> None:
  if not isinstance(temperature, Tracer) and not 0 < temperature < math.inf:
    raise ValueError(f"temperature must be > 0 and finite; got {temperature}")


@check_arrays
def contrastive_blocks(
    query: Float[AnyArray, "batch dim"],
    positive: Float[AnyArray, "batch dim"],
    negative: Float[AnyArray, "batch negatives dim"] | None = None,
    *,
    queries: bool = True,
    positives: bool = True,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, "batch candidates"], Int[Array, " batch"], Bool[Array, "batch candidates"]]:
  """Cosine similarities of each row with every candidate of the batch, side by side in one layout.

  Columns: `[query . positive | query . negative | query . query | positive . positive]`, of B, B M, B and B columns.
  The last block compares row i's positive, not its query, with all positives.

  Args:
    query: anchors.
    positive: row i answers row i of `query`.
    negative: M hard negatives for each row; they are candidates for all rows.
    queries: include the query-query block.
    positives: include the positive-positive block.
    where: rows that are not padding. A row of padding is a candidate for nobody.

  Returns:
    similarity: as laid out above.
    positive_index: the column of each row's positive, which is i.
    drop: True at self pairs (the diagonals of the last two blocks) and at the candidates of padding rows.

  Example:
    >>> similarity, positive, same = contrastive_blocks(jnp.eye(2), jnp.eye(2), positives=False)
    >>> similarity.shape, positive  # candidates: the two positives, then the other queries
    ((2, 4), Array([0, 1], dtype=int32))
  """
  if where is not None:
    # Zeroed here, not only dropped below: a NaN in a padding row would come back through the gradient as 0 * NaN.
    query, positive = (jnp.where(where[:, None], x, 0) for x in (query, positive))
    negative = None if negative is None else jnp.where(where[:, None, None], negative, 0)
  query, positive = normalize(query), normalize(positive)
  size = query.shape[0]
  absent = jnp.zeros((size,), bool) if where is None else ~where
  absent_columns, own = jnp.broadcast_to(absent, (size, size)), jnp.eye(size, dtype=bool)
  blocks, drops = [_products(query, positive)], [absent_columns]
  if negative is not None:
    count = negative.shape[1]
    blocks.append(_products(query, normalize(negative).reshape(size * count, -1)))
    drops.append(jnp.repeat(absent_columns, count, axis=1))
  if queries:
    blocks.append(_products(query, query))
    drops.append(absent_columns | own)
  if positives:
    blocks.append(_products(positive, positive))
    drops.append(absent_columns | own)
  return jnp.concatenate(blocks, axis=1), jnp.arange(size), jnp.concatenate(drops, axis=1)


@check_arrays
def multiple_negatives_ranking(
    query: Float[AnyArray, "batch dim"],
    positive: Float[AnyArray, "batch dim"],
    negative: Float[AnyArray, "batch negatives dim"] | None = None,
    *,
    temperature: float | Float[AnyArray, ""] = 0.05,
    queries: bool = False,
    positives: bool = False,
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
    where: rows that are not padding; padding is a candidate for nobody, gives 0 and weighs 0.

  Returns:
    `(values, weights)` of the rows, float32.

  Raises:
    ValueError: temperature <= 0 or not finite; a traced one gives NaN.

  Example:
    >>> values, weights = multiple_negatives_ranking(jnp.eye(3), jnp.eye(3), temperature=1.0)
    >>> np.array(values).round(3), weights
    (array([0.551, 0.551, 0.551], dtype=float32), Array([1., 1., 1.], dtype=float32))

  Source: Henderson et al. 2017 (arXiv 1705.00652); Li et al. 2023 (arXiv 2308.03281) for the extended form.
  """
  similarity, index, drop = contrastive_blocks(
      query, positive, negative, queries=queries, positives=positives, where=where
  )
  return info_nce(similarity, index, temperature=temperature, drop=drop, where=where)


@check_arrays
def clip(
    a: Float[AnyArray, "batch dim"],
    b: Float[AnyArray, "batch dim"],
    *,
    temperature: float | Float[AnyArray, ""] = 0.07,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """CLIP's symmetric InfoNCE: row i of `a` must find row i of `b`, and the other way around; the mean of the two.

  Args:
    a: embeddings of one side, such as images.
    b: of the other side, such as texts.
    temperature: t > 0.
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
  """
  forward, weights = multiple_negatives_ranking(a, b, temperature=temperature, where=where)
  backward, _ = multiple_negatives_ranking(b, a, temperature=temperature, where=where)
  return (forward + backward) / 2, weights
