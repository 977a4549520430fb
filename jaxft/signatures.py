"""Arguments are checked before anything is traced: the error names the argument, what it takes and what it got."""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractArray, Bool, Float, Int, Num

F = TypeVar("F", bound=Callable[..., Any])
AnyArray = jax.Array | np.ndarray  # in a signature: `Float[AnyArray, "batch dim"]`

_KINDS = {
    Float: (jnp.floating, "floating-point numbers"), Int: (jnp.integer, "integers"), Bool: (jnp.bool_, "booleans"),
    Num: (jnp.number, "numbers"),
}


def check_arrays(function: F) -> F:
  """Checks the arrays of each call against the signature: its jaxtyping annotations give their axes and dtypes.

  Axes of one name have one size throughout a call, and none is empty. A parameter that is not annotated as an array is
  left to the function, and so is an argument of another type that the annotation allows (`float | Float[Array, ""]`).
  Only shapes and dtypes are read, and of NumPy's 64-bit integers their range, as JAX would wrap what int32 does not
  hold: under `jax.jit` the check costs nothing after tracing.

  Raises (the function that it gives):
    TypeError: an argument is no array, or not one of the kind of numbers that it is annotated with.
    ValueError: it has another number of axes, an empty one, or one of another size than an earlier argument's; or an
      integer does not fit JAX's.
  """
  signature = inspect.signature(function)
  wanted = {name: _wanted(parameter) for name, parameter in signature.parameters.items()}
  wanted = {name: spec for name, spec in wanted.items() if spec is not None}

  @functools.wraps(function)
  def checked(*args, **kwargs):
    try:
      arguments = signature.bind(*args, **kwargs).arguments
    except TypeError:
      return function(*args, **kwargs)  # Python's own error names the function
    sizes: dict[str, tuple[Any, str]] = {}
    for name, spec in wanted.items():
      if name in arguments:
        _check(name, arguments[name], spec, sizes)
    return function(*args, **kwargs)

  return typing.cast(F, checked)


def check_integers(name: str, x: Any) -> None:
  """Raises ValueError where NumPy's integers do not fit the type that JAX gives them, int32 unless 64 bits are enabled.

  JAX wraps them without a word: 2**32 + 1 becomes 1, another token, label or grade. Other arrays pass.
  """
  if not isinstance(x, (np.ndarray, np.generic)) or x.dtype.kind not in "iu" or not x.size:
    return
  taken = jax.dtypes.canonicalize_dtype(x.dtype)
  if taken != x.dtype and not (np.iinfo(taken).min <= x.min() and x.max() <= np.iinfo(taken).max):
    raise ValueError(f"{name} must hold integers that fit {taken}; got {x.min()} to {x.max()}")


def token_ids(name: str, row: Any) -> Int[np.ndarray, " tokens"]:
  """A sequence of token ids as int32; ValueError where an entry is no integer from 0 to int32's end.

  NumPy would cut 1.7 to 1 and wrap 2**32 + 1 to 1 where the row is written into an array of int32.
  """
  ids = np.asarray(row)
  if ids.ndim != 1 or ids.size and (
      ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() > np.iinfo(np.int32).max):
    shown = np.array2string(ids, threshold=8)
    raise ValueError(f"{name} must hold token ids, integers >= 0 that fit int32; got {shown}")
  return ids.astype(np.int32)


class _Axis(NamedTuple):
  """An axis of an annotation: `batch`, `*batch` (any number of axes), `#batch` (or of size 1), `...` (any, unnamed)."""

  name: str
  several: bool
  broadcast: bool

  @classmethod
  def of(cls, text: str) -> "_Axis":
    name = text.lstrip("*#")
    flags = text[: len(text) - len(name)]
    return cls(name, name == "..." or "*" in flags, "#" in flags)

  @property
  def bound(self) -> bool:
    """Whether arguments must agree in it; expressions as `time-1` are left to the function."""
    return self.name.isidentifier() and self.name != "_" and not (self.several and self.broadcast)


class _Wanted(NamedTuple):
  """What a parameter takes: its axes, the kinds of its numbers (none: any), and types that are no arrays."""

  axes: tuple[_Axis, ...]
  kinds: tuple[tuple[Any, str], ...]
  others: tuple[type, ...]

  def __str__(self) -> str:
    numbers = "a number or " if float in self.others else ""
    shown = ", ".join(f"*{axis.name}" if axis.several and axis.name != "..." else axis.name for axis in self.axes)
    kinds = " or ".join(words for _, words in self.kinds)
    return numbers + (f"an array [{shown}]" if shown else "a scalar array") + (f" of {kinds}" if kinds else "")


def _wanted(parameter: inspect.Parameter) -> _Wanted | None:
  annotation = parameter.annotation
  union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
  parts = typing.get_args(annotation) if union else (annotation,)
  arrays = [part for part in parts if isinstance(part, type) and issubclass(part, AbstractArray)]
  if not arrays:
    return None
  kinds = tuple(dict.fromkeys(_KINDS[part.dtype] for part in arrays if part.dtype in _KINDS))
  others = tuple(part for part in parts if isinstance(part, type) and part not in arrays)
  axes = tuple(_Axis.of(text) for text in arrays[0].dim_str.split())
  return _Wanted(axes, kinds, others + ((int,) if float in others else ()))


def _check(name: str, value: Any, wanted: _Wanted, sizes: dict[str, tuple[Any, str]]) -> None:
  if isinstance(value, wanted.others):
    return
  if not isinstance(value, (jax.Array, np.ndarray, np.generic)):
    raise TypeError(f"{name} must be {wanted}; got {type(value).__name__}")
  shape, got = value.shape, f"{value.dtype} {list(value.shape)}"
  if wanted.kinds and not any(jnp.issubdtype(value.dtype, kind) for kind, _ in wanted.kinds):
    raise TypeError(f"{name} must be {wanted}; got {got}")
  several = next((i for i, axis in enumerate(wanted.axes) if axis.several), None)
  fixed = len(wanted.axes) - (several is not None)
  if len(shape) < fixed or several is None and len(shape) > fixed:
    raise ValueError(f"{name} must be {wanted}; got {got}")
  if 0 in shape:
    raise ValueError(f"{name} must be {wanted}, no axis of it empty; got {got}")
  check_integers(name, value)
  if several is not None:
    stop = several + len(shape) - fixed
    shape = (*shape[:several], shape[several:stop], *shape[stop:])
  for axis, size in zip(wanted.axes, shape, strict=True):
    if not axis.bound or axis.broadcast and size == 1:
      continue
    known, owner = sizes.setdefault(axis.name, (size, name))
    if known != size:
      known = list(known) if axis.several else known
      raise ValueError(f"{name} must be {wanted}, with {axis.name} = {known} as in {owner}; got {got}")
