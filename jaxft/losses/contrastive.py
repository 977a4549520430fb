"""Contrastive losses: softmax cross-entropy over similarities, with a mask of the candidates that do not compete.

A loss gives the values of its rows and what they weigh, 0 for padding: `Mean.of(*info_nce(...))`. `in_batch.py` has
  those
whose candidates are the rest of the batch.
"""

import math

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxft.checks import in_range
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
  return products(normalize(a), normalize(b))


@check_arrays
def products(a: Float[AnyArray, "rows dim"], b: Float[AnyArray, "columns dim"]) -> Float[Array, "rows columns"]:
  """All pairs `<a_i, b_j>`, in float32 also where an accelerator would round its factors.

  Example:
    >>> products(jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 3.0]]))
    Array([[2., 0.]], dtype=float32)
  """
  # Accelerators round float32 factors to bfloat16 unless told otherwise: 4e-3 in a cosine is 0.4 in a logit at
  # temperature 0.01, and makes ties of what a guide tells apart.
  a, b = (jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32)) for x in (a, b))
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

  sentence-transformers: `MultipleNegativesRankingLoss` of cross-encoders, with `jax.nn.sigmoid(scores)` of a row's own
  candidates and a temperature of 0.1
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
    gamma: float = 0.0,
    drop: Bool[AnyArray, "batch candidates"] | None = None,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """SupCon: InfoNCE with several positives in a row, averaged outside the logarithm; focal with `gamma`.

      p_ij = softmax_{j kept}(s[i, j] / t),   loss_i = -1/|P_i| sum_{j in P_i} (1 - p_ij)^gamma log p_ij

  Without a positive a row gives and weighs 0.

  Args:
    similarity: similarities, any scale.
    positives: True at the positives of each row. An entry that is also dropped is no positive, so that a row's own
      column need only be named in `drop`.
    temperature: t > 0.
    gamma: >= 0; 0 is SupCon. Above, a positive counts the less the more certain it is, and the gradient flows through
      its weight too.
    drop: True where a candidate leaves both the denominator and the positives.
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the rows, float32.

  Raises:
    ValueError: temperature <= 0 or not finite; a traced one gives NaN. gamma below 0 or not finite.

  Example:
    >>> positives = jnp.array([[True, True, False]])
    >>> values, weights = supervised_contrastive(jnp.zeros((1, 3)), positives)
    >>> np.array(values).round(3)  # log 3
    array([1.099], dtype=float32)

  Source: Khosla et al. 2020 (arXiv 2004.11362), equation 2 (`L_out`), without its base temperature. The source's code
  counts the 0 of a row without a positive in its mean. Focal weights as in Core-tuning, Zhang et al. 2021
  (arXiv 2102.06605), with gamma 1, whose code divides by the number of columns in place of |P_i|.
  """
  _check_temperature(temperature)
  in_range("gamma", gamma, "[0, inf)")
  similarity = similarity.astype(jnp.promote_types(similarity.dtype, jnp.float32))
  if drop is not None:
    positives = positives & ~drop
  count = jnp.sum(positives, axis=-1)

  def loss(logits: Float[AnyArray, "batch candidates"]) -> Float[Array, " batch"]:
    log_probs = jnp.where(positives, jax.nn.log_softmax(logits), 0)
    # A certain positive costs nothing; its power is not formed, as that of 0 has no finite slope below 1.
    uncertain = log_probs < 0
    weight = jnp.where(uncertain, -jnp.expm1(jnp.where(uncertain, log_probs, -1.0)), 0.0) ** gamma if gamma else 1.0
    return -jnp.sum(weight * log_probs, axis=-1) / jnp.maximum(count, 1)

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
def focal(
    values: Float[AnyArray, " batch"], *, gamma: float = 0.5, stop_gradient: bool = True
) -> Float[Array, " batch"]:
  """`(1 - e^-value)^gamma value`: of a loss `-log p` in nats, what is nearly certain counts less.

  Args:
    values: of `info_nce` and its kin, >= 0.
    gamma: >= 0; 0 changes nothing.
    stop_gradient: take the factor for a constant.

  Returns:
    The values, float32. Their mean is over the same weights as before, so that the scale of the loss is kept.

  Raises:
    ValueError: gamma below 0 or not finite.

  Example:
    >>> values, weights = info_nce(jnp.zeros((1, 2)), jnp.array([0]), temperature=1.0)
    >>> focal(values, gamma=1.0).round(3)  # log 2 / 2
    Array([0.347], dtype=float32)

  Source: Lin et al. 2017 (arXiv 1708.02002), of InfoNCE with gamma 0.5 as in KaLM-Embedding-V2, Zhao et al. 2025
  (arXiv 2506.20923), which does not say whether the factor is a constant.
  """
  in_range("gamma", gamma, "[0, inf)")
  values = jnp.asarray(values, jnp.promote_types(values.dtype, jnp.float32))
  if not gamma:
    return values
  uncertain = values > 0
  factor = jnp.where(uncertain, -jnp.expm1(-jnp.where(uncertain, values, 1.0)), 0.0) ** gamma
  return values * (jax.lax.stop_gradient(factor) if stop_gradient else factor)


@check_arrays
def view_contrastive(
    features: Float[AnyArray, "batch views dim"],
    labels: Int[AnyArray, " batch"],
    *,
    temperature: float | Float[AnyArray, ""] = 0.07,
    gamma: float = 0.0,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, "batch views"], Float[Array, "batch views"]]:
  """SupCon among all views of a batch: each view is an anchor, all others of its class are its positives.

  Args:
    features: of each view, of any length; a teacher's views under `jax.lax.stop_gradient`.
    labels: classes; different numbers, `jnp.arange(batch)`, make it SimCLR.
    temperature, gamma: see `supervised_contrastive`.
    where: examples that count; the others are candidates for nobody, give 0 and weigh 0.

  Returns:
    `(values, weights)` of the views, float32.

  Raises:
    ValueError: see `supervised_contrastive`.

  Example:
    >>> values, weights = view_contrastive(jnp.ones((2, 2, 3)), jnp.array([0, 1]))
    >>> np.array(values).round(3)  # log 3: all views are alike
    array([[1.099, 1.099],
           [1.099, 1.099]], dtype=float32)

  Source: Khosla et al. 2020 (arXiv 2004.11362); with a slow teacher's view beside the student's, CoACT, Roy et al. 2024
  (arXiv 2405.16625), whose code mixes up examples where there are more than two views.
  """
  batch, views, dim = features.shape
  if where is not None:
    features = jnp.where(where[:, None, None], features, 0)
  flat = features.reshape(batch * views, dim)
  of_view = lambda x: jnp.repeat(x, views)
  label = of_view(labels)
  drop = jnp.eye(batch * views, dtype=bool)
  if where is not None:
    drop |= ~of_view(where)
  values, weights = supervised_contrastive(
      cosine_similarity(flat, flat), label[:, None] == label, temperature=temperature, gamma=gamma, drop=drop,
      where=None if where is None else of_view(where))
  return values.reshape(batch, views), weights.reshape(batch, views)
