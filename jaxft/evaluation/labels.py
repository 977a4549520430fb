"""No metric of a label that is no class: one-hot rows of zeros and gathers at an edge would give a plausible value."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool

from jaxft.models.bounds import values_of
from jaxft.signatures import check_integers


def require_labels(classes: int, where: Any | None = None, **labels: Any) -> Bool[Array, ""] | bool:
  """Refuses labels that count and are no class, such as PyTorch's -100, by the name of the argument.

  Args:
    classes: labels are 0, 1, ..., classes - 1.
    where: labels that count; None counts all.
    labels: integers, by their names.

  Returns:
    True; under `jax.jit` and its kin, where values are not known yet, whether all are classes, for `or_nan`.

  Raises:
    ValueError: a label that counts, and is not traced, is no class.
  """
  fine: Any = True
  for name, x in labels.items():
    check_integers(name, x)
    known, counts = values_of(x), None if where is None else values_of(where)
    traced = known is None or where is not None and counts is None
    on, x, counts = (jnp, x, where) if traced else (np, known, counts)
    inside = (x >= 0) & (x < classes)
    if counts is not None:
      inside |= ~on.asarray(counts, bool)
    if isinstance(inside, Tracer):
      fine = fine & jnp.all(inside)
    elif not on.all(inside):
      at = int(on.argmin(inside))
      raise ValueError(f"{name} must lie in 0..{classes - 1}; got {int(x[at])} at {at}")
  return fine
