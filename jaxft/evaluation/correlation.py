"""Agreement of two series: Pearson and Spearman correlation, coefficient of determination."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jaxft.finite import or_nan, require_finite
from jaxft.signatures import AnyArray


def pearson(x: Num[AnyArray, " items"], y: Num[AnyArray, " items"]) -> Float[Array, ""]:
  """Pearson's r, in float32; 0 where either series is constant (the ratio is 0/0 there).

  Raises:
    ValueError: a value is not finite.

  Example:
    >>> round(float(pearson(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 7.0]))), 3)
    0.993
  """
  fine = require_finite(x=x, y=y)
  dtype = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
  x, y = x.astype(dtype), y.astype(dtype)
  constant = (jnp.max(x) == jnp.min(x)) | (jnp.max(y) == jnp.min(y))
  x, y = x - jnp.mean(x), y - jnp.mean(y)
  # Each series is scaled to unit length before the product: squares of squares overflow for long series of ranks.
  # The constant case is replaced before the norm, whose gradient at 0 is NaN.
  unit = lambda v: v / jnp.linalg.norm(jnp.where(constant, 1, v))
  return or_nan(fine, jnp.where(constant, 0, jnp.clip(jnp.sum(unit(x) * unit(y)), -1, 1)))


def average_ranks(x: Num[AnyArray, " items"]) -> Float[Array, " items"]:
  """Ranks from 1, ties sharing the mean of their ranks.

  Raises:
    ValueError: a value is not finite.

  Example:
    >>> average_ranks(np.array([10, 30, 30, 20]))
    Array([1. , 3.5, 3.5, 2. ], dtype=float32)
  """
  fine = require_finite(x=x)
  ordered = jnp.sort(x)
  below, up_to = jnp.searchsorted(ordered, x, side="left"), jnp.searchsorted(ordered, x, side="right")
  return or_nan(fine, (below + up_to + 1) / 2)


def spearman(x: Num[AnyArray, " items"], y: Num[AnyArray, " items"]) -> Float[Array, ""]:
  """Spearman's rho: Pearson's r of average ranks, as `scipy.stats.spearmanr`; 0 where either series is constant.

  mteb's `cosine_spearman` is this, between cosine similarities and gold scores.

  Raises:
    ValueError: a value is not finite.

  Example:
    >>> round(float(spearman(np.array([1, 2, 3]), np.array([1, 10, 100]))), 3)
    1.0
  """
  require_finite(x=x, y=y)  # by their names; traced values that are not finite have ranks of NaN
  return pearson(average_ranks(x), average_ranks(y))


def r_squared(predictions: Num[AnyArray, " items"], targets: Num[AnyArray, " items"]) -> Float[Array, ""]:
  """Coefficient of determination `1 - sum (y - p)^2 / sum (y - mean y)^2`; negative where the mean predicts better.

  A constant target, of which there is nothing to explain, gives 0.

  Raises:
    ValueError: a value is not finite.

  Example:
    >>> float(r_squared(np.array([1.0, 2.0, 2.0]), np.array([1.0, 2.0, 3.0])))
    0.5
  """
  fine = require_finite(predictions=predictions, targets=targets)
  dtype = jnp.promote_types(jnp.promote_types(predictions.dtype, targets.dtype), jnp.float32)
  predictions, targets = predictions.astype(dtype), targets.astype(dtype)
  total = jnp.sum(jnp.square(targets - jnp.mean(targets)))
  residual = jnp.sum(jnp.square(targets - predictions))
  return or_nan(fine, jnp.where(total > 0, 1 - residual / jnp.where(total > 0, total, 1), 0))
