"""Views of structured leaves: what `lazy` holds in place of an array while it evaluates a jaxpr."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxft.leaves.cast import Cast
from jaxft.leaves.cuts import Places, Span, cut
from jaxft.leaves.evaluation.factors import (
  Axis,
  Factor,
  flat,
  in_order,
  joined,
  length,
  own,
  rearranged,
  reshaped,
  whole,
  whole_axes,
)
from jaxft.leaves.materialize import materialize
from jaxft.leaves.scaled import Scaled


@partial(jax.tree_util.register_dataclass, data_fields=["leaf"], meta_fields=["path", "axes", "dtype", "is_read"])
@dataclasses.dataclass(frozen=True)
class View:
  """A structured leaf reshaped and transposed, and in another float dtype.

  Attributes:
    leaf: the structured leaf, `[m, n]` or with stack axes in front, which all of its parts carry.
    path: its path in the params, for messages.
    axes: each axis of the view, as factors of the leaf's axes. All factors of the leaf occur, but those of length 1.
    dtype: of the view.
    is_read: whether it holds rows, or single columns, that were read from a table: forming these is a lookup.
  """

  leaf: Any
  path: str
  axes: tuple[Axis, ...]
  dtype: Any
  is_read: bool = False

  @staticmethod
  def of(leaf: Any, path: str) -> "View":
    return View(leaf, path, whole_axes(leaf.shape), np.dtype(leaf.dtype))

  @property
  def shape(self) -> tuple[int, ...]:
    return tuple(length(axis) for axis in self.axes)

  @property
  def stack(self) -> Axis:
    """The factors of the stack axes, in the order of the leaf."""
    return in_order([f for f in flat(self.axes) if f.is_stack])

  def abstract(self) -> jax.ShapeDtypeStruct:
    """What tracing sees: shape, dtype, and where they apply the sharding and the manual axes of the formed array."""
    return jax.eval_shape(materialize, self.leaf)

  def materialize(self) -> Array:
    return rearranged(materialize(self.leaf), whole_axes(self.leaf.shape), self.axes).astype(self.dtype)

  def cast(self, dtype: Any) -> "View | None":
    """The view in another float dtype; None for one of 8 bits or fewer, of which the rounding is meant."""
    if not jnp.issubdtype(dtype, jnp.floating) or jnp.dtype(dtype).itemsize < 2:
      return None
    return dataclasses.replace(self, dtype=np.dtype(dtype))

  def map(self, f: Callable[[Array], Array]) -> "View":
    return dataclasses.replace(self, leaf=jax.tree.map(f, self.leaf))

  def pick(self, order: Sequence[int]) -> "View":
    """The view with axes `order` of its own; an axis of length 1 may be left out."""
    return dataclasses.replace(self, axes=tuple(self.axes[i] for i in order))

  def drop(self, places: Sequence[int]) -> "View":
    """The view without the axes, of length 1, at `places`."""
    return self.pick([i for i in range(len(self.axes)) if i not in places])

  def reshape(self, shape: Sequence[int]) -> "View | None":
    """The view in another shape; None unless that splits and joins axes alone."""
    axes = self.axes if tuple(shape) == self.shape else reshaped(self.axes, shape)
    return None if axes is None else dataclasses.replace(self, axes=axes)

  def broadcast(self, shape: Sequence[int], places: Sequence[int]) -> "View | None":
    """`lax.broadcast_in_dim`; None unless it only adds axes of length 1."""
    if tuple(shape[i] for i in places) != self.shape or any(n != 1 for i, n in enumerate(shape) if i not in places):
      return None
    axes = dict(zip(places, self.axes, strict=True))
    return dataclasses.replace(self, axes=tuple(axes.get(i, ()) for i in range(len(shape))))

  def restack(self, groups: Sequence[Axis]) -> "View":
    """The same view of a leaf with these stack axes, which hold all stack factors of the view: parts are rearranged."""
    old = len(self.leaf.shape) - 2
    stack, given = self.leaf.shape[:old], whole_axes(self.leaf.shape)[:old]
    if all(part.shape[:old] == stack for part in jax.tree.leaves(self.leaf)) and (
        [joined(group) for group in groups] == list(given)):
      return self

    def arrange(part: Any) -> Any:
      if jnp.issubdtype(part.dtype, jax.dtypes.prng_key):
        part = _key_for_each(part, stack)
      if part.shape[:old] != stack:
        raise ValueError(
            f"lazy: the parts of the {type(self.leaf).__name__} at {self.path!r} must all carry its stack axes "
            f"{stack}; one has shape {part.shape}")
      rest = [own(i, n) for i, n in enumerate(part.shape[old:])]
      return rearranged(part, [*given, *rest], [*groups, *rest])

    new = {}
    for i, group in enumerate(groups):
      stride = length(group)
      for f in group:
        stride //= f.size
        new[f] = Factor(i - len(groups) - 2, f.size, stride)
    axes = tuple(joined([new.get(f, f) for f in axis]) for axis in self.axes)
    return dataclasses.replace(self, leaf=jax.tree.map(arrange, self.leaf), axes=axes)

  def front(self, place: int = 0) -> "View | None":
    """The view of a leaf whose first axis is the view's axis at `place`; None unless that is one of its stack axes."""
    if not all(f.is_stack for f in self.axes[place]):
      return None
    first = self.axes[place]
    return self.restack([first, *((f,) for f in self.stack if f not in first)])

  def along(self, place: int, f: Callable[[Array], Array]) -> "View | None":
    """The view with `f`, which acts on the first axis alone, applied to the axis at `place`; None unless a stack's."""
    front = self.front(place)
    if front is None:
      return None
    axes = list(front.axes)
    out = front.map(f)
    axes[place] = whole(-len(out.leaf.shape), out.leaf.shape[0])
    return dataclasses.replace(out, axes=tuple(axes))

  def cut(self, place: int, take: slice | Array) -> "View | None":
    """The view of some of its rows or columns, at these places of one axis; None unless that axis is all of one kind.

    Args:
      place: the axis.
      take: a slice with all its numbers, or places `[k]`, which may be traced.
    """
    axis = self.axes[place]
    if not axis or axis[0].is_stack:
      return None
    f, inner = axis[0], length(axis[1:])
    if isinstance(take, slice):
      if inner > 1 and (take.step != 1 or take.start % inner or take.stop % inner):
        return None
      chosen = Span(f.size, f.stride, take.start // inner, take.stop // inner, take.step)
    elif inner == 1 and len(self.leaf.shape) == 2:  # places would have to be carried by a stack
      chosen = Places(take, f.size, f.stride)
    else:
      return None

    def kept(g: Factor) -> Axis:
      if g == f:
        return (Factor(f.axis, chosen.count, f.stride),) if chosen.count > 1 else ()
      above = g.axis == f.axis and g.stride > f.stride
      return (Factor(g.axis, g.size, g.stride // f.size * chosen.count),) if above else (g,)

    axes = tuple(joined(flat([kept(g) for g in axis])) for axis in self.axes)
    is_read = self.is_read or f.axis == -2 or chosen.count == 1 or not isinstance(take, slice)
    return dataclasses.replace(self, leaf=cut(self.leaf, f.axis, chosen), axes=axes, is_read=is_read)

  def scale(self, s: Array) -> "View | None":
    """The view times an array that broadcasts against it; None unless its axes are stacks' and rows' or columns'."""
    shape = (1,) * (len(self.axes) - s.ndim) + s.shape
    if any(n not in (1, m) for n, m in zip(shape, self.shape, strict=True)):
      return None  # it is the view that broadcasts
    ranks = lambda places: {f.axis for i in places for f in self.axes[i]}
    full: list[int] = [i for i, n in enumerate(shape) if n != 1]
    while more := [i for i, axis in enumerate(self.axes) if i not in full and ranks([i]) & ranks(full) and axis]:
      full += more
    if {-1, -2} <= ranks(full):
      return None
    s = jnp.broadcast_to(s.reshape(shape), [self.shape[i] if i in full else 1 for i in range(len(shape))])
    leaf_axes = whole_axes(self.leaf.shape)
    wanted = [axis if axis and axis[0].axis in ranks(full) else () for axis in leaf_axes]
    s = rearranged(s, [axis if i in full else () for i, axis in enumerate(self.axes)], wanted)
    s = jnp.broadcast_to(s, (*self.leaf.shape[:-2], *s.shape[-2:]))
    return dataclasses.replace(self, leaf=Scaled(self.in_own_dtype(), s))

  def in_own_dtype(self) -> Any:
    """The leaf, of the dtype of the view."""
    return self.leaf if self.leaf.dtype == self.dtype else Cast(self.leaf, self.dtype)

  def layer(self, leaf: Any) -> "View":
    """The view of one layer, given that layer of the leaf; of a view that has its first axis in front."""
    return dataclasses.replace(self, leaf=leaf, axes=self.axes[1:])

  def stacked(self) -> "View":
    """The view of a leaf whose parts were stacked, given the view of one layer: the inverse of `layer`."""
    return dataclasses.replace(self, axes=(whole(-len(self.leaf.shape), self.leaf.shape[0]), *self.axes))


def _key_for_each(keys: Array, stack: Sequence[int]) -> Array:
  """Keys for all matrices of a stack, given one for each index along its first axes."""
  if keys.ndim == len(stack):
    return keys
  each = jnp.broadcast_to(keys.reshape(*keys.shape, *[1] * (len(stack) - keys.ndim)), stack).reshape(-1)
  return jax.vmap(jax.random.fold_in)(each, jnp.arange(each.size)).reshape(stack)
