"""`leaf_class`: makes a dataclass a structured leaf, with what every leaf has the same way."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, dataclass_transform

import jax

from jaxft.checks import nearest
from jaxft.signatures import explain_errors

T = TypeVar("T")


@explain_errors
@dataclass_transform(frozen_default=True)
def leaf_class(*, meta: Sequence[str] = (), like: str = "w") -> Callable[[type[T]], type[T]]:
  """Makes a class a frozen dataclass and a pytree, with those of `shape`, `dtype` and `ndim` that it does not define.

      @leaf_class(meta=("factor",))
      class Halved:
        w: Any
        factor: float = 0.5

        def materialize(self):
          return self.factor * materialize(self.w)

        def dot(self, x):
          return self.factor * dot(x, self.w)

      ...                                        # and dot_transposed, lookup: see `jaxft.leaves`

  It is a convenience and no base class: any class with those methods and properties is a structured leaf.
  Type checkers do not see what it gives: inside the class, read the dtype and shape of the field.

  >>> @leaf_class(meta=("factor",))
  ... class Halved:
  ...   w: Any
  ...   factor: float = 0.5
  >>> leaf = Halved(jnp.ones((2, 3)))
  >>> leaf.shape, leaf.ndim, len(jax.tree.leaves(leaf))  # w alone is data
  ((2, 3), 2, 1)

  Args:
    meta: fields that are no arrays, and part of what a program is compiled for; all others are data.
    like: the field of which the leaf has the shape and the dtype.

  Raises (the decorator):
    TypeError: meta names no field; or like names none, where the class lacks `shape` or `dtype` of its own.
  """

  def make(cls: type[T]) -> type[T]:
    if "__repr__" not in vars(cls):
      cls.__repr__ = _repr
    leaf: Any = dataclasses.dataclass(frozen=True, repr=False)(cls)
    names = [field.name for field in dataclasses.fields(leaf)]
    if unknown := [name for name in meta if name not in names]:
      raise TypeError(f"meta must name fields of {cls.__name__}; got {unknown[0]!r}; {nearest(unknown[0], names)}")
    for name in ("shape", "dtype", "ndim"):
      if name in names or hasattr(cls, name):
        continue
      if name != "ndim" and like not in names:
        raise TypeError(f"like must name a field of {cls.__name__}, which has no {name} of its own; got {like!r}")
      setattr(cls, name, _ndim if name == "ndim" else _of_field(like, name))
    return jax.tree_util.register_dataclass(leaf, [name for name in names if name not in meta], list(meta))

  return make


def _repr(self: Any) -> str:
  """The fields, of arrays dtype and shape alone: a notebook shows a tree of leaves as what it is made of."""
  fields = ", ".join(f"{field.name}={_shown(getattr(self, field.name))}" for field in dataclasses.fields(self))
  return f"{type(self).__name__}({fields})"


def _shown(value: Any) -> str:
  if isinstance(value, dict):
    return "{" + ", ".join(f"{key!r}: {_shown(x)}" for key, x in value.items()) + "}"
  shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
  if dataclasses.is_dataclass(value) or not isinstance(shape, tuple) or dtype is None:
    return repr(value)
  return f"{dtype}[{','.join(map(str, shape))}]"


def _of_field(field: str, name: str) -> property:
  return property(lambda self: getattr(getattr(self, field), name))


_ndim = property(lambda self: len(self.shape))
