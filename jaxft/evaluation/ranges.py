"""No metric of what lies outside its range: a label that is no class is an all-zero row, and a plausible value."""

import math
from typing import Any

import numpy as np
from jaxtyping import Array, Bool

from jaxft.finite import require
from jaxft.signatures import check_integers


def require_range(
    low: float, high: float, where: Any | None = None, *, slack: float = 0, **arrays: Any
) -> Bool[Array, ""] | bool:
  """Refuses values outside [low, high] by the name of the argument.

  Args:
    low, high: the range; `math.inf` is no bound.
    where: entries that count, broadcast from the left against each array as in `require_finite`; None counts all.
    slack: how far outside rounding may lead.
    arrays: by their names; None is passed over.

  Returns:
    True; under `jax.jit` and its kin, where values are not known yet, whether all lie inside, for `or_nan`.

  Raises:
    ValueError: a value that counts, and is not traced, lies outside.
  """
  for name, array in arrays.items():
    check_integers(name, array)

  def says(x: Any, inside: Any) -> str:
    at = np.argwhere(~np.asarray(inside))[0].tolist()
    return f"{_range(low, high)}; got {x[tuple(at)]} at {at}"

  return require(lambda on, x: (x >= low - slack) & (x <= high + slack), says, where, **arrays)


def require_labels(classes: int, where: Any | None = None, **labels: Any) -> Bool[Array, ""] | bool:
  """Refuses labels that count and are no class, 0 to classes - 1, such as PyTorch's -100; else as `require_range`."""
  return require_range(0, classes - 1, where, **labels)


def _range(low: float, high: float) -> str:
  if math.isinf(high):
    return f"be >= {low}"
  return f"lie in {low}..{high}" if isinstance(high, int) and isinstance(low, int) else f"lie in [{low}, {high}]"
