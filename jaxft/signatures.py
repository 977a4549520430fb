"""Arguments are checked before anything is traced: the error names the argument, what it takes and what it got."""

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractArray, Bool, Float, Int, Key, Num

from jaxft.argument_kinds import Kind, Tree, plain_kind
from jaxft.checks import is_meant, is_the_callers, names_one, raised_in, tell

F = TypeVar("F", bound=Callable[..., Any])
__all__ = ["AnyArray", "Tree", "check_arrays", "check_integers", "explain_errors", "token_ids"]
AnyArray = jax.Array | np.ndarray  # in a signature: `Float[AnyArray, "batch dim"]`

_KINDS = {
    Float: (jnp.floating, "floating-point numbers"), Int: (jnp.integer, "integers"), Bool: (jnp.bool_, "booleans"),
    Num: (jnp.number, "numbers"),
}


def check_arrays(function: F) -> F:
  """Checks the arguments of each call against the signature, its arrays above all.

  jaxtyping annotations give the axes and dtypes of arrays. Axes of one name have one size throughout a call, and none
  is empty. Only shapes and dtypes are read, and of NumPy's 64-bit integers their range, as JAX would wrap what int32
  does not hold: under `jax.jit` the check costs nothing after tracing.

  A parameter that is annotated as a number, a flag, a str, one of some `Literal`s, a path, a key, a function, a
  sequence, a mapping, a tree or a class of this library takes that, and an array of one number where it takes a number.
  A parameter that takes anything else is left to the function, whose errors are told as by `explain_errors`.

  Raises (the function that it gives):
    TypeError: an argument is not of the kind that it is annotated with, or an array of another kind of numbers.
    ValueError: an array has another number of axes, an empty one, or one of another size than an earlier argument's; an
      integer does not fit JAX's; an argument is none of the names that it takes.
  """
  wanted = _parameters(function)
  signature = inspect.signature(function)

  @functools.wraps(function)
  def checked(*args, **kwargs):
    try:
      arguments = signature.bind(*args, **kwargs).arguments
    except TypeError:
      return function(*args, **kwargs)  # Python's own error names the function
    _check_all(arguments, wanted)
    try:
      return function(*args, **kwargs)
    except _FROM_INSIDE as error:
      told, cause = _explanation(function, arguments, {}, error)
      if told is None:
        raise
      raise told from cause

  return typing.cast(F, checked)


def explain_errors(function: F) -> F:
  """An error from deep inside becomes one that names the argument that does not fit the signature, where one does not.

  For a function that takes more than its annotations say, such as lists in place of arrays, or arrays without entries:
  what works is not looked at, but for a str and None, which are refused where the signature has neither. See
  `check_arrays` for what is read off it. Where all arguments fit, the error says what the function was called with.
  What the function's own module raised, a function of the caller's, or another library by a class of its own, stays as
  it is, and so does what the library raised of one of the arguments.

  Raises (the function that it gives):
    TypeError, ValueError: in place of an error of Python, NumPy or JAX, which is its cause.
  """
  places = tuple(inspect.signature(function).parameters)

  @functools.wraps(function)
  def explained(*args, **kwargs):
    try:
      result = function(*args, **kwargs)
    except _FROM_INSIDE as error:
      try:
        arguments = inspect.signature(function).bind(*args, **kwargs).arguments
      except TypeError:
        raise error from None  # Python's own error names the function
      told, cause = _explanation(function, arguments, _parameters(function), error)
      if told is None:
        raise
      raise told from cause
    for name, value in (*zip(places, args, strict=False), *kwargs.items()):
      if value is None or isinstance(value, str):  # which the function has not missed, and would later
        _check_all({name: value}, _parameters(function))
    return result

  return typing.cast(F, explained)


_FROM_INSIDE = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RecursionError, TypeError,
                ValueError)


def _explanation(
    function: Callable[..., Any], arguments: Mapping[str, Any], wanted: "dict[str, _Wanted | Kind]", error: Exception
) -> tuple[Exception | None, Exception]:
  """An error that says more than the one from inside, and its cause; None where that says enough."""
  names = inspect.signature(function).parameters
  meant = is_meant(error, function.__module__)
  if meant and re.match(rf"({'|'.join(map(re.escape, names)) or '$'})\b", str(error)):
    return None, error
  cause = getattr(error, "jaxft_inside", error)  # of a function inside that was told already, by its own arguments
  try:
    _check_all(arguments, wanted, like=_as_array)
  except (TypeError, ValueError) as told:
    told.jaxft_inside = cause  # type: ignore[attr-defined]
    return told, cause
  # What its own module says is meant for its caller; what others say inside of it may be of arguments of theirs.
  clear = meant and cause is error and (raised_in(error) == function.__module__ or names_one(str(error), names))
  if not names or clear or type(cause).__module__.startswith("jaxft") or is_the_callers(cause, function.__module__):
    return None, error
  told = tell(function.__name__, arguments, cause)
  told.jaxft_inside = cause  # type: ignore[attr-defined]
  return told, cause


@functools.cache
def _parameters(function: Callable[..., Any]) -> "dict[str, _Wanted | Kind]":
  """What the parameters take, where the annotations say it."""
  several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
  kinds = {name: _wanted(of) or plain_kind(of) for name, of in inspect.signature(function).parameters.items()
           if of.kind not in several}
  return {name: kind for name, kind in kinds.items() if kind is not None}


def _check_all(arguments, wanted: "dict[str, _Wanted | Kind]", like: Callable[[Any], Any] | None = None) -> None:
  """Checks all arguments; with `like` what it makes of those that should be arrays, and empty axes pass."""
  sizes: dict[str, tuple[Any, str]] = {}
  for name, value in arguments.items():
    kind = wanted.get(name)
    if isinstance(kind, Kind):
      kind.check(name, value)
    elif kind is not None:
      _check(name, value, kind, sizes, like)


def _as_array(x: Any) -> Any:
  """Lists and numbers as the array that NumPy makes of them; anything else as it is."""
  if not isinstance(x, (list, tuple, bool, int, float)):
    return x
  try:
    array = np.asarray(x)
  except ValueError:  # rows of several lengths
    return x
  return array if array.dtype.kind in "biuf" else x


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
  if not arrays or any(part.dtype is Key for part in arrays):
    return None
  kinds = tuple(dict.fromkeys(_KINDS[part.dtype] for part in arrays if part.dtype in _KINDS))
  plain = [typing.get_origin(part) or part for part in parts if part not in arrays]
  others = tuple(part for part in plain if isinstance(part, type))
  axes = tuple(_Axis.of(text) for text in arrays[0].dim_str.split())
  return _Wanted(axes, kinds, others + ((int,) if float in others else ()))


def _check(
    name: str, value: Any, wanted: _Wanted, sizes: dict[str, tuple[Any, str]], like: Callable[[Any], Any] | None
) -> None:
  if isinstance(value, wanted.others):
    return
  value = value if like is None else like(value)
  if not isinstance(value, (jax.Array, np.ndarray, np.generic)):
    raise TypeError(f"{name} must be {wanted}; got {type(value).__name__}")
  shape, got = value.shape, f"{value.dtype} {list(value.shape)}"
  if wanted.kinds and not any(jnp.issubdtype(value.dtype, kind) for kind, _ in wanted.kinds):
    raise TypeError(f"{name} must be {wanted}; got {got}")
  several = next((i for i, axis in enumerate(wanted.axes) if axis.several), None)
  fixed = len(wanted.axes) - (several is not None)
  if len(shape) < fixed or several is None and len(shape) > fixed:
    raise ValueError(f"{name} must be {wanted}; got {got}")
  if 0 in shape and like is None:
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
