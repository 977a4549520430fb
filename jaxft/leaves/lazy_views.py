"""Views of structured leaves: what `lazy` holds in place of an array while it evaluates a jaxpr."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxft.leaves.products import dot, dot_transposed


@partial(jax.tree_util.register_dataclass, data_fields=["leaf"], meta_fields=["path", "axes", "dtype"])
@dataclasses.dataclass(frozen=True)
class View:
  """A structured leaf with its axes in another order, unit axes added or left out, and another float dtype.

  Attributes:
    leaf: the structured leaf, `[m, n]` or with stack axes in front.
    path: its path in the params, for messages.
    axes: for each axis of the view, the leaf's axis, or None for a unit axis that the leaf lacks. A leaf's axis that
      does not occur is of length 1.
    dtype: of the view.
  """

  leaf: Any
  path: str
  axes: tuple[int | None, ...]
  dtype: Any

  @staticmethod
  def of(leaf: Any, path: str) -> "View":
    return View(leaf, path, tuple(range(leaf.ndim)), np.dtype(leaf.dtype))

  @property
  def shape(self) -> tuple[int, ...]:
    return tuple(1 if a is None else self.leaf.shape[a] for a in self.axes)

  @property
  def is_matrix(self) -> bool:
    return self.leaf.ndim == 2

  @property
  def is_plain_matrix(self) -> bool:
    return self.axes == (0, 1) and self.is_matrix

  @property
  def is_stack(self) -> bool:
    """Whether the first axis is one that all parts of the leaf carry in front."""
    return self.leaf.ndim > 2 and self.axes[0] == 0

  def abstract(self) -> jax.ShapeDtypeStruct:
    """What tracing sees: shape, dtype, and where they apply the sharding and the manual axes of the formed array."""
    return jax.eval_shape(lambda leaf: leaf.materialize(), self.leaf)

  def materialize(self) -> Array:
    shown = [a for a in self.axes if a is not None]
    w = self.leaf.materialize()
    hidden = tuple(a for a in range(w.ndim) if a not in shown)
    return w.transpose(*shown, *hidden).reshape(self.shape).astype(self.dtype)

  def contract(self, x: Array, axis: int) -> Array | None:
    """`x` contracted along its last axis with axis `axis` of the view; None where that is a unit axis of no leaf's."""
    if self.axes[axis] is None:
      return None
    return dot(x, self.leaf) if self.axes[axis] == 0 else dot_transposed(x, self.leaf)

  def cast(self, dtype: Any) -> "View | None":
    return dataclasses.replace(self, dtype=np.dtype(dtype)) if jnp.issubdtype(dtype, jnp.floating) else None

  def map(self, f: Callable[[Array], Array]) -> "View":
    return dataclasses.replace(self, leaf=jax.tree.map(f, self.leaf))

  def map_stack(self, f: Callable[[Array], Array]) -> "View | None":
    """The view with `f`, which acts on the first axis alone, applied to every part; None unless that is a stack's."""
    return self.map(f) if self.is_stack else None

  def layer(self, leaf: Any) -> "View":
    """The view of one layer of the stack, given that layer of the leaf."""
    return dataclasses.replace(self, leaf=leaf, axes=tuple(a if a is None else a - 1 for a in self.axes[1:]))

  def stacked(self) -> "View":
    """The view of a leaf whose parts were stacked, given the view of one layer: the inverse of `layer`."""
    return dataclasses.replace(self, axes=(0, *(a if a is None else a + 1 for a in self.axes)))

  def pick(self, order: Sequence[int]) -> "View":
    """The view with axes `order` of its own; an axis of length 1 may be left out."""
    out = dataclasses.replace(self, axes=tuple(self.axes[i] for i in order))
    if out.leaf.ndim > 2 and 0 not in out.axes:  # one layer of a stack: hold that layer
      axes = (0, *out.axes)
      out = dataclasses.replace(out, axes=axes).layer(jax.tree.map(lambda part: part[0], out.leaf))
      return out.pick(range(len(out.axes)))
    return out

  def drop(self, places: Sequence[int]) -> "View":
    """The view without the axes, of length 1, at `places`."""
    return self.pick([i for i in range(len(self.axes)) if i not in places])

  def reshape(self, shape: Sequence[int]) -> "View | None":
    """The view in another shape; None unless only axes of length 1 come or go."""
    if tuple(shape) == self.shape:
      return self
    own = [a for a in self.axes if a is not None and self.leaf.shape[a] != 1]
    if [n for n in shape if n != 1] != [self.leaf.shape[a] for a in own]:
      return None
    order = iter([i for i, a in enumerate(self.axes) if a in own])
    return self._with_units(order, shape)

  def broadcast(self, shape: Sequence[int], places: Sequence[int]) -> "View | None":
    """`lax.broadcast_in_dim`; None unless it only adds axes of length 1."""
    if tuple(shape[i] for i in places) != self.shape or any(n != 1 for i, n in enumerate(shape) if i not in places):
      return None
    axes = {place: axis for place, axis in zip(places, self.axes, strict=True)}
    return dataclasses.replace(self, axes=tuple(axes.get(i) for i in range(len(shape))))

  def _with_units(self, order: Any, shape: Sequence[int]) -> "View":
    picked = [None if n == 1 else next(order) for n in shape]
    kept = self.pick([i for i in picked if i is not None])
    axes = iter(kept.axes)
    return dataclasses.replace(kept, axes=tuple(None if i is None else next(axes) for i in picked))
