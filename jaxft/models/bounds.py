"""What lies beyond a model's tables and its context: refused where the numbers are at hand, NaN where they are traced.

An array library answers an index that is out of range with some row: JAX counts a negative one from the end. Such a
model would compute on, with another token's vector. Here the state is NaN instead, which no loss or metric overlooks.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxft.leaves import lookup
from jaxft.signatures import AnyArray


def rows(
    table: Any, ids: Int[AnyArray, "batch time"], real: Bool[AnyArray, "batch time"] | None = None
) -> Float[Array, "batch time dim"]:
  """Rows of a table `[n, dim]`, an array or a structured leaf; NaN for an index outside [0, n).

  Args:
    table: the table.
    ids: the indices.
    real: False at padding, where any index is allowed, as its state means nothing; None where nothing is padding.
  """
  inside = (ids >= 0) & (ids < table.shape[-2])
  known = inside if real is None else inside | ~real
  return jnp.where(known[..., None], lookup(table, jnp.where(inside, ids, 0)), jnp.nan)


def values_of(x: Any) -> np.ndarray | None:
  """An array's numbers where this process has them; None for a tracer or an array that spans several processes."""
  if isinstance(x, Tracer) or not getattr(x, "is_fully_addressable", True):
    return None
  return np.asarray(x)


def check_range(name: str, x: Any, real: Any, stop: int, what: str) -> None:
  """Raises ValueError where a real entry of x lies outside [0, stop); what is traced goes unchecked."""
  x, real = values_of(x), True if real is None else values_of(real)
  if x is None or real is None:
    return
  wrong = (real != 0) & ((x < 0) | (x >= stop))
  if wrong.any():
    at = np.argwhere(wrong)[0].tolist()
    got = np.broadcast_to(x, wrong.shape)[tuple(at)]
    raise ValueError(f"{name} must lie in [0, {stop}), {what}; got {got} at {at}")
