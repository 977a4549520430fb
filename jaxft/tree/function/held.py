"""What a variable of a jaxpr shows of a leaf: the leaf's factors along each axis, through whatever moves them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxft.tree.function.traced import shape_of

# What an axis is a stack over: matrices side by side, entries that the function picks one by one, an entry that an
# input picks, or one that it picks for each example.
BATCH, INDEX, ROW, GATHER = "batch", "index", "row", "gather"


class Factor(NamedTuple):
  """Every `stride`-th of consecutive entries along a leaf's axis, `size` of them: what a reshape makes of an axis.

  Axes below 0 are none of the leaf's: along -1 all entries are alike, along -2 they are another's.
  """

  axis: int
  stride: int
  size: int


@dataclasses.dataclass(frozen=True)
class Held:
  """A leaf as a variable of the jaxpr shows it: the leaf's factors along each axis of the variable."""

  path: str
  axes: tuple[tuple[Factor, ...], ...]
  stack: tuple[tuple[int, str], ...] = ()

  def pick(self, order: Sequence[int]) -> "Held":
    return dataclasses.replace(self, axes=tuple(self.axes[i] for i in order))

  @property
  def is_gathered(self) -> bool:
    """Whether it shows another entry for each example: rows of a table, or an expert's matrix."""
    return any(over == GATHER for _, over in self.stack)

  def within(self, axis: int, over: str) -> "Held":
    """One entry of an axis, which stays with length 1."""
    stack = self.stack + tuple((a, over) for a in leaf_axes([self.axes[axis]]) if a not in dict(self.stack))
    axes = tuple(() if i == axis else factors for i, factors in enumerate(self.axes))
    return dataclasses.replace(self, axes=axes, stack=stack)


def leaf_axes(axes: Sequence[Sequence[Factor]]) -> tuple[int, ...]:
  return tuple(dict.fromkeys(factor.axis for factors in axes for factor in factors if factor.axis >= 0))


def broadcast(held: Held, eqn: Any) -> Held:
  shape, given = eqn.params["shape"], shape_of(eqn.invars[0])
  axes: list[tuple[Factor, ...]] = [(Factor(-1, 0, n),) if n > 1 else () for n in shape]
  for i, place in enumerate(eqn.params["broadcast_dimensions"]):
    axes[place] = held.axes[i] if given[i] == shape[place] else axes[place]
  return dataclasses.replace(held, axes=tuple(axes))


def squeezed(held: Held, eqn: Any) -> Held:
  return held.pick([i for i in range(len(held.axes)) if i not in eqn.params["dimensions"]])


def expanded(held: Held, eqn: Any) -> Held:
  axes = iter(held.axes)
  new = eqn.params["dimensions"]
  return dataclasses.replace(held, axes=tuple(
      () if i in new else next(axes) for i in range(len(shape_of(eqn.outvars[0])))))


def sliced(held: Held, eqn: Any, over: str = INDEX) -> Held:
  before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
  for i, (n, m) in enumerate(zip(before, after, strict=True)):
    held = held.within(i, over) if m == 1 < n else held
  return held


def reshaped(held: Held, eqn: Any) -> Held:
  before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
  axes: list[tuple[Factor, ...]] = []
  i = j = 0
  while i < len(before) or j < len(after):
    i0, j0, n, m = i, j, 1, 1
    while True:  # the shortest runs of axes before and after with as many entries
      if n <= m and i < len(before) and (n < m or i == i0):
        n, i = n * before[i], i + 1
      elif j < len(after) and (m < n or j == j0):
        m, j = m * after[j], j + 1
      else:
        break
    run = [f for k in range(i0, i) for f in held.axes[k] or ((Factor(-2, 0, before[k]),) if before[k] > 1 else ())]
    axes += regrouped(run, after[j0:j])
  known = [any(f.axis != -2 for f in factors) for factors in axes]
  return dataclasses.replace(held, axes=tuple(factors if k else () for k, factors in zip(known, axes, strict=True)))


def regrouped(factors: Sequence[Factor], sizes: Sequence[int]) -> list[tuple[Factor, ...]]:
  """Factors dealt out to axes of the given sizes; all to each axis where they do not fit."""
  if math.prod(f.size for f in factors) != math.prod(sizes):
    return [tuple(factors) if n > 1 else () for n in sizes]
  left, dealt = list(factors), []
  for n in sizes:
    own: list[Factor] = []
    while left and (had := math.prod(f.size for f in own)) * left[0].size <= n and (had < n or left[0].size == 1):
      own.append(left.pop(0))
    missing = n // math.prod(f.size for f in own)
    if missing > 1:
      if not left or left[0].size % missing:
        return [tuple(factors) if n > 1 else () for n in sizes]
      axis, stride, size = left[0]
      own.append(Factor(axis, stride * (size // missing), missing))
      left[0] = Factor(axis, stride, size // missing)
    dealt.append(tuple(own))
  return dealt
