"""Nothing is computed of numbers that are not finite: NaN sorts, compares and ranks somewhere, plausible in the end."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

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
  says = lambda x, finite: f"be finite; got {int((~finite).sum())} of {finite.size} values that are not"
  return require(lambda on, x: on.isfinite(x) if jnp.issubdtype(x.dtype, jnp.inexact) else None, says, where, **arrays)


def require(
    holds: Callable[[Any, Any], Any], says: Callable[[Any, Any], str], where: Any | None = None, **arrays: Any
) -> Bool[Array, ""] | bool:
  """Refuses arrays of which not all that counts holds, by the name of the argument.

  Args:
    holds: `(numpy or jax.numpy, array) -> booleans of its shape`, None where the array is to be passed over.
    says: `(array, those booleans) -> "be ...; got ..."`, for the error.
    where, arrays: as of `require_finite`.

  Returns, Raises: as `require_finite`.
  """
  fine: Any = True
  for name, x in arrays.items():
    if x is None:
      continue
    x, counts = _readable(x), None if where is None else _readable(where)
    on = np if isinstance(x, np.ndarray) and not isinstance(counts, jax.Array) else jnp
    good = holds(on, x)
    if good is None:
      continue
    if counts is not None:
      good |= ~on.asarray(counts, bool).reshape(counts.shape + (1,) * (x.ndim - counts.ndim))
    if isinstance(good, Tracer):
      fine = fine & on.all(good)
    elif not on.all(good):
      raise ValueError(f"{name} must {says(x, good)}")
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


def svd(x: Float[AnyArray, "*stack rows columns"]) -> tuple[Array, Array, Array]:
  """The thin singular value decomposition `u, s, vt`, NaN throughout where x has NaN or infinity.

  LAPACK, which JAX calls on the CPU, never comes back from an infinity.
  """
  u, s, vt = jnp.linalg.svd(jnp.where(jnp.isfinite(x), x, jnp.nan), full_matrices=False)
  return u, s, vt
