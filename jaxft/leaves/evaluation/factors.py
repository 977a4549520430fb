"""Axes as lists of factors of a leaf's axes, which is what reshapes and transposes make of them.

    w [embed, out], seen as w.reshape(embed, heads, dim).transpose(1, 0, 2): axes  out / dim, embed, out % dim

A factor `(axis, size, stride)` is a digit of the index along one axis of the leaf: the index is the sum of each digit
times its stride. Axes are counted from the end, -2 are the rows of a matrix, -1 its columns and those before its stack
axes, so that a layer taken from a stack renames nothing. Arrays that meet a leaf have axes of their own, from 0 on.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple


class Factor(NamedTuple):
  """A digit of the index along axis `axis`: `size` values, each worth `stride`."""

  axis: int
  size: int
  stride: int = 1

  @property
  def is_stack(self) -> bool:
    return self.axis < -2


Axis = tuple[Factor, ...]  # the most significant digit first; () is of length 1


def length(axis: Axis) -> int:
  return prod(f.size for f in axis)


def whole(axis: int, size: int) -> Axis:
  """An axis of a leaf, all of it."""
  return () if size == 1 else (Factor(axis, size),)


def whole_axes(shape: Sequence[int]) -> tuple[Axis, ...]:
  """The axes of an array of this shape, or of a leaf, as they are."""
  return tuple(whole(i - len(shape), n) for i, n in enumerate(shape))


def own(axis: int, size: int) -> Axis:
  """An axis that is no leaf's: it keeps its name at length 1."""
  return (Factor(axis, size),)


def flat(axes: Sequence[Axis]) -> Axis:
  return tuple(f for axis in axes for f in axis)


def in_order(factors: Sequence[Factor]) -> Axis:
  """In the order in which the leaf has them."""
  return tuple(sorted(factors, key=lambda f: (f.axis, -f.stride)))


def joined(axis: Sequence[Factor]) -> Axis:
  """An axis with neighbouring digits of one axis made one."""
  out: list[Factor] = []
  for f in axis:
    if out and out[-1].axis == f.axis and out[-1].stride == f.size * f.stride:
      out[-1] = Factor(f.axis, out[-1].size * f.size, f.stride)
    else:
      out.append(f)
  return tuple(out)


def reshaped(axes: Sequence[Axis], shape: Sequence[int]) -> tuple[Axis, ...] | None:
  """The axes after a reshape; None where a new axis would hold a part of a factor that is no digit of it."""
  rest = list(reversed(joined(flat(axes))))
  out = []
  for n in shape:
    axis = []
    while n > 1:
      if not rest:
        return None
      f = rest.pop()
      if n % f.size == 0:
        axis.append(f)
        n //= f.size
      elif f.size % n == 0:
        axis.append(Factor(f.axis, n, f.stride * (f.size // n)))
        rest.append(Factor(f.axis, f.size // n, f.stride))
        n = 1
      else:
        return None
    out.append(joined(axis))
  return tuple(out) if not rest else None


def rearranged(x: Any, given: Sequence[Axis], wanted: Sequence[Axis]) -> Any:
  """An array whose axes are `given` with the axes `wanted`; both hold the same factors."""
  split, factors = _common(flat(given), flat(wanted))
  x = x.reshape([f.size for f in split]).transpose([split.index(f) for f in factors])
  return x.reshape([length(axis) for axis in wanted])


def _common(given: Axis, wanted: Axis) -> tuple[Axis, Axis]:
  """Both lists with their factors cut where the other has them cut."""
  edges: dict[int, set[int]] = {}
  for f in (*given, *wanted):
    edges.setdefault(f.axis, set()).update((f.stride, f.stride * f.size))

  def cut(f: Factor) -> Axis:
    if f.size == 1:
      return (f,)
    at = sorted(e for e in edges[f.axis] if f.stride <= e <= f.stride * f.size)
    return tuple(Factor(f.axis, high // low, low) for low, high in reversed(list(zip(at, at[1:], strict=False))))

  return flat([cut(f) for f in given]), flat([cut(f) for f in wanted])
