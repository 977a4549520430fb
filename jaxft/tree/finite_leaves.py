"""Checkpoints without NaN and infinity: what compares, ranks or masks numbers makes them pass for any other."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool

from jaxft.all_finite import all_finite
from jaxft.tree.paths import Tree, array_paths

SHOWN = 5


def check_finite(trees: Mapping[str, Tree], hint: str = "") -> None:
  """Raises ValueError where a floating-point leaf holds NaN or infinity.

  Reads each leaf where it lies, without a copy. Traced leaves, which have no values yet, are passed over.

  >>> check_finite({"model": {"a": np.ones(2), "b": np.float32([1, np.nan])}})
  Traceback (most recent call last):
    ...
  ValueError: model must be finite; got 1 of 2 values that are not in b

  Args:
    trees: checkpoints by the name of the argument.
    hint: the end of the message.
  """
  arrays = [(name, path, x) for name, tree in trees.items() for path, x in array_paths(tree) if _has_values(x)]
  # All are on their way before the first is waited for.
  with jax.ensure_compile_time_eval():
    fine = jax.device_get([all_finite(np.asarray(x)) if _on_host(x) else _all_finite(x) for _, _, x in arrays])
  bad = [found for found, ok in zip(arrays, fine, strict=True) if not ok]
  if not bad:
    return
  first = bad[0][0]
  listed = [
      f"{int(jnp.sum(~jnp.isfinite(x)))} of {x.size} values that are not{f' in {path}' if path else ''}"
      for name, path, x in bad if name == first]
  more = f", and in {len(listed) - SHOWN} more leaves" if len(listed) > SHOWN else ""
  raise ValueError(f"{first} must be finite; got {', '.join(listed[:SHOWN])}{more}{hint}")


def _has_values(x: Any) -> bool:
  array = isinstance(x, (np.ndarray, np.generic, jax.Array)) and not isinstance(x, Tracer)
  return array and jnp.issubdtype(x.dtype, jnp.inexact)


def _on_host(x: Any) -> bool:
  return not isinstance(x, jax.Array) or len(x.devices()) == 1 and next(iter(x.devices())).platform == "cpu"


@jax.jit
def _all_finite(x: Array) -> Bool[Array, ""]:
  return jnp.all(jnp.isfinite(x))
