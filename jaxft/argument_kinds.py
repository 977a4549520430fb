"""What a parameter takes that is no array, read off its annotation; `jaxft.signatures` checks calls by it."""

import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractArray, Key

from jaxft.checks import nearest, shown

# A tree of arrays, whatever containers it has. No leaf of one is a str.
Tree = Annotated[Any, "a tree of arrays"]


class Kind(NamedTuple):
  """One or several kinds of value that a parameter takes.

  Attributes:
    tests: whether a value is of one of them.
    words: what they are called.
    names: of a `Literal`, the strings that it takes.
  """

  tests: tuple[Callable[[Any], bool], ...]
  words: tuple[str, ...]
  names: tuple[str, ...] = ()

  def check(self, name: str, value: Any) -> None:
    """Raises TypeError where an argument is of none of the kinds, ValueError where it is none of the names."""
    if any(test(value) for test in self.tests):
      return
    if self.names and isinstance(value, str):
      raise ValueError(f"{name} must be {' or '.join(self.words)}; got {value!r}{_near(value, self.names)}")
    raise TypeError(f"{name} must be {' or '.join(self.words)}; got {shown(value)}")


def plain_kind(parameter: inspect.Parameter) -> Kind | None:
  """What a parameter takes; None where its annotation does not say, or allows what is not known here."""
  annotation = parameter.annotation
  union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
  kinds = [_kind(part) for part in (typing.get_args(annotation) if union else (annotation,))]
  known = [kind for kind in kinds if kind is not None]
  if len(known) < len(kinds):
    return None
  return Kind(
      tuple(test for kind in known for test in kind.tests), tuple(word for kind in known for word in kind.words),
      tuple(name for kind in known for name in kind.names))


def _kind(part: Any) -> Kind | None:
  origin = typing.get_origin(part)
  if origin is Annotated and part == Tree:
    return Kind((_no_str,), ("a tree of arrays",))
  if origin is Literal:
    names = typing.get_args(part)
    # `in` would compare an array with each of them.
    return Kind((lambda x: isinstance(x, (str, int, float, type(None))) and x in names,),
                (f"one of {', '.join(map(str, names))}",), tuple(name for name in names if isinstance(name, str)))
  if origin is Callable:
    return Kind((callable,), ("a function",))
  if origin in (Sequence, Iterable, list, tuple):
    return _several(part)
  if origin in (Mapping, dict):
    return Kind((lambda x: isinstance(x, Mapping),), ("a mapping",))
  if origin is os.PathLike:
    return Kind((lambda x: isinstance(x, os.PathLike),), ("a path",))
  if part is None or part is types.NoneType:
    return Kind((lambda x: x is None,), ("None",))
  if not isinstance(part, type):
    return None
  if part in _SCALARS:
    return _SCALARS[part]
  if issubclass(part, AbstractArray) and part.dtype is Key and not part.dim_str:
    return Kind((_is_key,), ("a key of jax.random.key",))
  if part.__module__.partition(".")[0] == "jaxft" and not getattr(part, "_is_protocol", False):
    return Kind((lambda x: isinstance(x, part),), (f"a {part.__name__}",))
  return None


def _several(part: Any) -> Kind:
  """A sequence and no mapping; of anything but str it is no str either, whose characters would pass for its entries."""
  of = [x for x in typing.get_args(part) if x is not ...]
  strings = any(x is str or x is Any or str in typing.get_args(x) or not isinstance(x, type) for x in of)
  no = Mapping if strings else (Mapping, str)
  return Kind((lambda x: hasattr(x, "__iter__") and getattr(x, "ndim", 1) != 0 and not isinstance(x, no),),
              ("a sequence",))


def _one_number(x: Any, *kinds: Any) -> bool:
  """An array, or a number of NumPy, of no axes, whose dtype is of one of the kinds."""
  return isinstance(x, (jax.Array, np.ndarray, np.generic)) and not x.shape and any(
      jnp.issubdtype(x.dtype, kind) for kind in kinds)


def _no_str(x: Any) -> bool:
  return not any(isinstance(leaf, (str, bytes)) for leaf in jax.tree.leaves(x))


def is_integer(x: Any) -> bool:
  """Whether a value is an integer, Python's, NumPy's or JAX's."""
  return isinstance(x, int) or _one_number(x, jnp.integer)


def _is_key(x: Any) -> bool:
  """A typed key, or an array of the two numbers that older programs have for one."""
  if not isinstance(x, (jax.Array, np.ndarray)):
    return False
  typed = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  return not x.shape if typed else x.dtype == jnp.uint32 and x.ndim == 1


def _near(value: str, names: tuple[str, ...]) -> str:
  close = nearest(value, names)
  return f"; {close}" if close.startswith("nearest") else ""  # the message holds all of them already


_SCALARS = {
    int: Kind((is_integer,), ("an integer",)),
    float: Kind((lambda x: isinstance(x, (int, float)) or _one_number(x, jnp.number, jnp.bool_),), ("a number",)),
    bool: Kind((lambda x: isinstance(x, bool) or _one_number(x, jnp.bool_),), ("True or False",)),
    str: Kind((lambda x: isinstance(x, str),), ("a str",)),
    bytes: Kind((lambda x: isinstance(x, (bytes, bytearray, memoryview)),), ("bytes",)),
}
