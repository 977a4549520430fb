"""Nothing is computed of numbers that are not finite: NaN sorts, compares and ranks somewhere, plausible in the end."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool

from jaxft.signatures import AnyArray


def require_finite(where: Any | None = None, **arrays: Any) -> Bool[Array, ""] | bool:
  """Refuses NaN and infinity by the name of the argument.

  Args:
    where: entries that count, broadcast from the left against each array, `[items]` against `[items, classes]`; what
      stands elsewhere may be anything. None counts all.
    arrays: by their names; None and arrays without a floating type are passed over.

  Returns:
    True; under `jax.jit` and its kin, where values are not known yet, whether all are finite, for `or_nan`.

  Raises:
    ValueError: an array that is not traced holds a value that is not finite.
  """
  fine: Any = True
  for name, x in arrays.items():
    if x is None:
      continue
    x, counts = _readable(x), None if where is None else _readable(where)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
      continue
    on = np if isinstance(x, np.ndarray) and not isinstance(counts, jax.Array) else jnp
    finite = on.isfinite(x)
    if counts is not None:
      finite |= ~on.asarray(counts, bool).reshape(counts.shape + (1,) * (x.ndim - counts.ndim))
    if isinstance(finite, Tracer):
      fine = fine & on.all(finite)
    elif not on.all(finite):
      raise ValueError(f"{name} must be finite; got {int(on.sum(~finite))} of {finite.size} values that are not")
  return fine


def _readable(x: Any) -> Any:
  """An array where it is cheapest to look at: on the host what lies there (memory-mapped, too), else on its devices."""
  if not isinstance(x, jax.Array):
    return np.asarray(x)
  traced = isinstance(x, Tracer)
  return x if traced or any(d.platform != "cpu" for d in x.devices()) or not x.is_fully_addressable else np.asarray(x)


def or_nan(fine: Bool[AnyArray, ""] | bool, value: Any) -> Any:
  """A tree of arrays as it is where `require_finite` said True, and NaN throughout where it did not."""
  return value if fine is True else jax.tree.map(lambda x: jnp.where(fine, x, jnp.nan), value)
