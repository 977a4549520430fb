"""Losses of single predictions: a logit, the logits of classes, a number."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxft.checks import in_range
from jaxft.losses.reduction import count_of
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def binary_cross_entropy(
    logits: Float[AnyArray, " batch"],
    labels: Float[AnyArray, " batch"],
    *,
    positive_weight: float = 1.0,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """`-w y log sigmoid(x) - (1 - y) log sigmoid(-x)`: whether a pair fits.

  Args:
    logits: x, of any scale.
    labels: y in [0, 1].
    positive_weight: w >= 0, for positives that are rare.
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the rows, float32.

  Raises:
    ValueError: positive_weight below 0 or not finite.

  Example:
    >>> values, weights = binary_cross_entropy(jnp.zeros(2), jnp.array([1.0, 0.0]))
    >>> np.array(values).round(3), weights
    (array([0.693, 0.693], dtype=float32), Array([1., 1.], dtype=float32))

  sentence-transformers: `BinaryCrossEntropyLoss`
  """
  in_range("positive_weight", positive_weight, "[0, inf)")
  x, y = _float32(logits, where), _float32(labels, where)
  return _kept(positive_weight * y * jax.nn.softplus(-x) + (1 - y) * jax.nn.softplus(x), where)


@check_arrays
def cross_entropy(
    logits: Float[AnyArray, "batch classes"],
    labels: Int[AnyArray, " batch"],
    *,
    label_smoothing: float = 0.0,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """`-(1 - s) log p(label) - s mean_c log p(c)` of `p = softmax(logits)`, in nats.

  Args:
    logits: of the classes.
    labels: in [0, classes); others give NaN where they count.
    label_smoothing: s in [0, 1).
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the rows, float32.

  Raises:
    ValueError: label_smoothing out of range.

  Example:
    >>> values, weights = cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))
    >>> np.array(values).round(3), weights
    (array([1.386, 1.386], dtype=float32), Array([1., 1.], dtype=float32))

  sentence-transformers: `CrossEntropyLoss`
  """
  in_range("label_smoothing", label_smoothing, "[0, 1)")
  known = (labels >= 0) & (labels < logits.shape[1])
  log_p = jax.nn.log_softmax(_float32(logits, where))
  picked = jnp.take_along_axis(log_p, jnp.where(known, labels, 0)[:, None], axis=1)[:, 0]
  values = -(1 - label_smoothing) * picked
  if label_smoothing:
    values -= label_smoothing * jnp.mean(log_p, axis=1)
  return _kept(jnp.where(known, values, jnp.nan), where)


@check_arrays
def soft_cross_entropy(
    logits: Float[AnyArray, "batch classes"],
    targets: Float[AnyArray, "batch classes"],
    *,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """`-sum_c target_c log p_c` of `p = softmax(logits)`: labels that are mixed, or a teacher's.

  Args:
    logits: of the classes.
    targets: >= 0; they need not sum to 1. A class of target 0 costs nothing, however unlikely it is.
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the rows, float32.

  Example:
    >>> values, weights = soft_cross_entropy(jnp.zeros((1, 4)), jnp.array([[0.5, 0.5, 0.0, 0.0]]))
    >>> np.array(values).round(3), weights
    (array([1.386], dtype=float32), Array([1.], dtype=float32))
  """
  y = _float32(targets, where)
  log_p = jax.nn.log_softmax(_float32(logits, where))
  return _kept(-jnp.sum(y * jnp.where(y == 0, 0.0, log_p), axis=1), where)


@check_arrays
def squared_error(
    predictions: Float[AnyArray, " batch"],
    targets: Float[AnyArray, " batch"],
    *,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """`(prediction - target)^2`.

  Args:
    predictions: of a regressor, or the scores of pairs.
    targets: of the same scale.
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the rows, float32.

  Example:
    >>> values, weights = squared_error(jnp.array([3.0]), jnp.array([1.0]))
    >>> np.array(values), weights
    (array([4.], dtype=float32), Array([1.], dtype=float32))

  sentence-transformers: `MSELoss` of cross-encoders
  """
  return _kept(jnp.square(_float32(predictions, where) - _float32(targets, where)), where)


def _float32(x, where):
  """What does not count is replaced before it is read: NaN and infinity then reach neither value nor gradient."""
  if where is not None:
    x = jnp.where(where.reshape(where.shape + (1,) * (x.ndim - 1)), x, 0)
  return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))


def _kept(values, where):
  return values if where is None else jnp.where(where, values, 0.0), count_of(where, values.shape)
