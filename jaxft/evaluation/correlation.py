"""Agreement of two series: Pearson and Spearman correlation, coefficient of determination.

Numbers that are no JAX arrays are computed with on the host in float64, as SciPy computes; JAX's arrays, traced ones
too, in float32. Series are centred and scaled first, so that neither an offset nor a unit costs precision.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Float, Num

from jaxft.finite import or_nan, require_finite
from jaxft.signatures import AnyArray, explain_errors

Series = Sequence[float] | Num[AnyArray, " items"]


@explain_errors
def pearson(x: Series, y: Series) -> Float[AnyArray, ""]:
  """Pearson's r; 0 where either series is constant (the ratio is 0/0 there).

  Constant means that the values differ by no more than rounding: four units in the last place of the largest.

  Args:
    x: numbers, `[items]`.
    y: as many.

  Returns:
    A scalar: NumPy's, float64, where neither series is a JAX array or traced; else JAX's.

  Raises:
    ValueError: not two vectors of one length >= 1, or a value is not finite.

  Example:
    >>> round(float(pearson(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 7.0]))), 3)
    0.993
  """
  fine, x, y = _series(x=x, y=y)
  x, y = _floats(x), _floats(y)
  on, constant = _on(x, y), _constant(x) | _constant(y)

  def unit(v):
    v = _apart(v, v[0])
    v = v / _size(v)
    v = v - v.mean()
    # The constant case is replaced before the norm, whose gradient at 0 is NaN.
    return v / on.linalg.norm(on.where(constant, 1, v))

  return or_nan(fine, on.asarray(on.where(constant, 0, on.clip(on.sum(unit(x) * unit(y)), -1, 1))))


@explain_errors
def average_ranks(x: Series) -> Float[AnyArray, " items"]:
  """Ranks from 1, ties sharing the mean of their ranks; float64 for what is no JAX array.

  Raises:
    ValueError: not a vector of at least one value, or a value is not finite.

  Example:
    >>> average_ranks(np.array([10, 30, 30, 20]))
    array([1. , 3.5, 3.5, 2. ])
  """
  fine, x = _series(x=x)  # integers stay what they are: float64 holds them up to 2**53 only
  on, ordered = _on(x), _on(x).sort(x)
  below, up_to = on.searchsorted(ordered, x, side="left"), on.searchsorted(ordered, x, side="right")
  return or_nan(fine, (below + up_to + 1) / 2)


@explain_errors
def spearman(x: Series, y: Series) -> Float[AnyArray, ""]:
  """Spearman's rho: Pearson's r of average ranks, as `scipy.stats.spearmanr`; 0 where either series is constant.

  mteb's `cosine_spearman` is this, between cosine similarities and gold scores.

  Args, Returns, Raises: see `pearson`; here constant means equal throughout.

  Example:
    >>> round(float(spearman(np.array([1, 2, 3]), np.array([1, 10, 100]))), 3)
    1.0
  """
  _, x, y = _series(x=x, y=y)  # refuses by their names; traced values that are not finite have ranks of NaN
  return pearson(average_ranks(x), average_ranks(y))


@explain_errors
def r_squared(predictions: Series, targets: Series) -> Float[AnyArray, ""]:
  """Coefficient of determination `1 - sum (y - p)^2 / sum (y - mean y)^2`; negative where the mean predicts better.

  A constant target, of which there is nothing to explain, gives 0; see `pearson` for what counts as constant.

  Args, Returns, Raises: see `pearson`.

  Example:
    >>> float(r_squared(np.array([1.0, 2.0, 2.0]), np.array([1.0, 2.0, 3.0])))
    0.5
  """
  fine, predictions, targets = _series(predictions=predictions, targets=targets)
  predictions, targets = _floats(predictions), _floats(targets)
  on, constant = _on(predictions, targets), _constant(targets)
  spread, residual = _apart(targets, targets[0]), _apart(targets, predictions)
  size = _size(spread)
  spread, residual = spread / size, residual / size
  total = on.sum(on.square(spread - spread.mean()))
  r2 = 1 - on.sum(on.square(residual)) / on.where(constant, 1, total)
  return or_nan(fine, on.asarray(on.where(constant, 0, r2)))


def _series(**series: Any) -> tuple[Any, ...]:
  """Whether all is finite, as `require_finite` says it, and the series as arrays: NumPy's where one is and none is
  traced, as a NumPy array may hold what float32 does not."""
  arrays = {name: x if isinstance(x, jax.Array) else np.asarray(x) for name, x in series.items()}
  shapes = [x.shape for x in arrays.values()]
  if len(set(shapes)) > 1 or len(shapes[0]) != 1 or not shapes[0][0]:
    takes = "two vectors of one length >= 1" if len(shapes) > 1 else "a vector of at least one value"
    raise ValueError(f"{' and '.join(arrays)} must be {takes}; got shapes {' and '.join(map(str, shapes))}")
  for name, x in arrays.items():
    if not jnp.issubdtype(x.dtype, jnp.number) or jnp.issubdtype(x.dtype, jnp.complexfloating):
      raise TypeError(f"{name} must hold real numbers; got {x.dtype}")
  fine, found = require_finite(**arrays), list(arrays.values())
  if any(isinstance(x, np.ndarray) for x in found) and not any(isinstance(x, Tracer) for x in found):
    found = [np.asarray(x) for x in found]
  return fine, *found


def _floats(x: Any) -> Any:
  return x.astype(np.float64 if isinstance(x, np.ndarray) else jnp.promote_types(x.dtype, jnp.float32))


def _on(*arrays: Any) -> Any:
  """The library that computes with them."""
  return np if all(isinstance(x, np.ndarray) for x in arrays) else jnp


def _apart(x: Any, y: Any) -> Any:
  """Half of x - y: the halves are exact, and their difference does not overflow."""
  return x / 2 - y / 2


def _size(x: Any) -> Any:
  """The largest magnitude, 1 where that is 0: a constant by which to scale, so without a gradient.

  No more than a quarter of the largest number: JAX divides by multiplying with the reciprocal, and that of a larger one
  is subnormal, which becomes 0.
  """
  x = x if isinstance(x, np.ndarray) else jax.lax.stop_gradient(x)
  size = abs(x).max()
  return _on(x).where(size > 0, _on(x).minimum(size, jnp.finfo(x.dtype).max / 4), 1)


def _constant(x: Any) -> Bool[AnyArray, ""]:
  return _on(x).asarray(_apart(x.max(), x.min()) <= 2 * jnp.finfo(x.dtype).eps * abs(x).max())
