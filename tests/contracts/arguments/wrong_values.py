"""Values that an argument should not have, each of a kind that fits the one in the function's own example."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class Wrong(NamedTuple):
  """A wrong value.

  Attributes:
    label: what is wrong with it.
    value: itself.
    finite: whether numbers that are not finite in the result would be new: the value has none and leads to none by the
      library's rules. A label out of range gives NaN by these, and what is huge overflows.
  """

  label: str
  value: Any
  finite: bool = True


def wrong_values(value: Any) -> Iterator[Wrong]:
  """All wrong values in place of one; none for None, which does not say of what kind it should be.

  No integer is huge: XLA ends the process at a size that no machine has.
  """
  if value is None:
    return
  if isinstance(value, (jax.Array, np.ndarray)):
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
      yield Wrong("a number", 0)
    else:
      yield from _arrays(value)
  elif isinstance(value, (bool, np.bool_)):
    yield Wrong("a number", 2)
  elif isinstance(value, (int, np.integer)):
    yield from (Wrong("negative", -1), Wrong("zero", 0), Wrong("a fraction", 1.5), Wrong("a flag", True),
                Wrong("NaN", float("nan"), finite=False))
  elif isinstance(value, (float, np.floating)):
    yield from (Wrong("negative", -1.0), Wrong("zero", 0.0), Wrong("a flag", True),
                Wrong("NaN", float("nan"), finite=False), Wrong("infinite", float("inf"), finite=False),
                Wrong("huge", 1e30, finite=False))
  elif isinstance(value, str):
    yield from (Wrong("unknown", "no such thing"), Wrong("empty", ""), Wrong("a number", 3))
  elif isinstance(value, os.PathLike):
    yield from (Wrong("unknown", Path("no such thing")), Wrong("a number", 3))
  elif isinstance(value, Mapping):
    yield from _trees(value)
  elif type(value) in (list, tuple):
    yield from _sequences(value)
  else:
    yield Wrong("a number", 3)
  if not isinstance(value, str):
    yield Wrong("a str", "oops")
  yield Wrong("None", None)


def _arrays(value: Any) -> Iterator[Wrong]:
  """Of other ranks, lengths, numbers and kinds; NumPy's for NumPy's and JAX's for JAX's."""
  x = np.asarray(value)
  give: Callable[[Any], Any] = (lambda y: y) if isinstance(value, np.ndarray) else jax.device_put
  yield Wrong("one more axis", give(x[None]))
  if x.ndim:
    yield Wrong("a scalar", give(np.ones((), x.dtype)))
  if x.ndim > 1 and len(x):
    yield Wrong("one axis fewer", give(np.ascontiguousarray(x[0])))
  for axis in range(x.ndim):
    if x.size:
      yield Wrong(f"axis {axis} longer", give(np.concatenate([x, np.take(x, [0], axis)], axis)))
    yield Wrong(f"axis {axis} empty", give(np.take(x, np.zeros(0, int), axis)))
  if x.dtype == bool:
    yield Wrong("all false", give(np.zeros_like(x)))
    yield Wrong("numbers", give(np.full(x.shape, 0.5, np.float32)))
  elif np.issubdtype(x.dtype, np.integer):
    yield Wrong("fractions", give(x.astype(np.float32) + np.float32(0.5)))
    if x.size:
      if x.dtype.kind == "i":
        yield Wrong("a negative number", give(_with(x, -1)), finite=False)
      yield Wrong("a number out of range", give(_with(x, np.iinfo(x.dtype).max)), finite=False)
  elif jnp.issubdtype(x.dtype, jnp.floating):
    yield Wrong("zeros", give(np.zeros_like(x)), finite=False)
    yield Wrong("integers", give(x.astype(np.float32).astype(np.int32)), finite=False)
    if x.size:
      yield Wrong("NaN", give(_with(x, np.nan)), finite=False)
      yield Wrong("infinite", give(_with(x, np.inf)), finite=False)
  yield Wrong("a list of strs", ["a", "b"])


def _with(x: np.ndarray, number: Any) -> np.ndarray:
  changed = x.copy()
  changed.reshape(-1)[0] = number
  return changed


def _trees(value: Mapping[Any, Any]) -> Iterator[Wrong]:
  yield Wrong("empty", {})
  yield Wrong("another structure", {"other": np.ones(2, np.float32)})
  if len(value) > 1:
    yield Wrong("one entry fewer", dict(list(value.items())[1:]))
  leaves, structure = jax.tree.flatten(dict(value))
  if leaves:
    yield Wrong("a str in it", structure.unflatten(["oops", *leaves[1:]]))
  first = next((i for i, x in enumerate(leaves) if isinstance(x, (jax.Array, np.ndarray)) and x.ndim), None)
  if first is not None:
    leaves[first] = np.ones((leaves[first].shape[0] + 1, *leaves[first].shape[1:]), leaves[first].dtype)
    yield Wrong("an array longer", structure.unflatten(leaves))
  yield Wrong("a list", [1, 2])


def _sequences(value: list[Any] | tuple[Any, ...]) -> Iterator[Wrong]:
  kind = type(value)
  yield Wrong("empty", kind())
  yield Wrong("holes", kind([None] * max(len(value), 1)))
  yield Wrong("a number", 3)
  if value:
    yield Wrong("one entry more", kind([*value, value[0]]))
    yield Wrong("one entry fewer", kind(value[:-1]))
    yield Wrong("strange entries", kind([object()] * len(value)))
    for wrong in wrong_values(value[0]):
      if isinstance(value[0], (int, float, str)) and wrong.label != "None":
        yield wrong._replace(label=f"first {wrong.label}", value=kind([wrong.value, *value[1:]]))


def not_finite(result: Any) -> bool:
  """Whether any number of a result is NaN or infinite."""
  return any(map(_has_not_finite, jax.tree.leaves(result)))


def _has_not_finite(x: Any) -> bool:
  if isinstance(x, Tracer) or not isinstance(x, (float, jax.Array, np.ndarray, np.generic)):
    return False
  if not isinstance(x, float) and not jnp.issubdtype(x.dtype, jnp.inexact):
    return False
  array = np.asarray(x)
  return not np.isfinite(array.astype(np.complex64 if array.dtype.kind == "c" else np.float64)).all()


def copied(x: Any) -> Any:
  """A leaf as it is now: a copy where a function could write into it."""
  return x.copy() if isinstance(x, np.ndarray) else x


def alive(arguments: dict[str, Any], copies: list[Any]) -> dict[str, Any]:
  """The arguments with copies in place of the arrays that a call was given to keep, and has deleted."""
  leaves, structure = jax.tree.flatten(arguments)
  if not any(map(_is_deleted, leaves)):
    return arguments
  return structure.unflatten([
      copy.copy() if _is_deleted(x) else x for x, copy in zip(leaves, copies, strict=True)])


def _is_deleted(x: Any) -> bool:
  return isinstance(x, jax.Array) and not isinstance(x, Tracer) and x.is_deleted()


def same(x: Any, y: Any) -> bool:
  """Whether a leaf is as it was."""
  if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
    return x.shape == y.shape and x.dtype == y.dtype and x.tobytes() == y.tobytes()
  return x is y or isinstance(x, (bool, int, float, str)) and (x == y or x != x)
