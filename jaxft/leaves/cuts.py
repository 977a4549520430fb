"""Some of the rows or columns of a leaf: cut from its parts where its class knows how, else from its products."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxft.leaves.leaf_class import leaf_class
from jaxft.leaves.materialize import materialize
from jaxft.leaves.products import dot, dot_transposed, lookup
from jaxft.signatures import AnyArray
from jaxft.tree.paths import is_structured


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["size", "stride", "start", "limit", "step"])
@dataclasses.dataclass(frozen=True)
class Span:
  """Along an axis seen as `[outer, size, stride]`, the places `start:limit:step` of the middle."""

  size: int
  stride: int
  start: int
  limit: int
  step: int = 1

  @property
  def count(self) -> int:
    return len(range(self.start, self.limit, self.step))

  def __call__(self, w: Array, axis: int) -> Array:
    axis %= w.ndim
    before, after = w.shape[:axis], w.shape[axis + 1:]
    middle = w.reshape(*before, -1, self.size, self.stride, *after)
    return jax.lax.slice_in_dim(middle, self.start, self.limit, self.step, axis + 1).reshape(*before, -1, *after)

  def put(self, x: Array) -> Array:
    """The transpose, along the last axis: zeros at the places that are left out."""
    x = x.reshape(*x.shape[:-1], -1, self.count, self.stride)
    last = self.start + (self.count - 1) * self.step + 1
    pads = [(0, 0, 0)] * (x.ndim - 2) + [(self.start, self.size - last, self.step - 1), (0, 0, 0)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), pads).reshape(*x.shape[:-3], -1)

  def index(self, ids: AnyArray) -> Array:
    """Where on the whole axis the places `ids` of the cut one lie."""
    outer, rest = jnp.divmod(ids, self.count * self.stride)
    middle, inner = jnp.divmod(rest, self.stride)
    return (outer * self.size + self.start + middle * self.step) * self.stride + inner


@partial(jax.tree_util.register_dataclass, data_fields=["places"], meta_fields=["size", "stride"])
@dataclasses.dataclass(frozen=True)
class Places:
  """Along an axis seen as `[outer, size, stride]`, these places of the middle, `[k]`, which may be traced."""

  places: Any
  size: int
  stride: int

  @property
  def count(self) -> int:
    return self.places.shape[0]

  def __call__(self, w: Array, axis: int) -> Array:
    axis %= w.ndim
    before, after = w.shape[:axis], w.shape[axis + 1:]
    middle = w.reshape(*before, -1, self.size, self.stride, *after)
    return jnp.take(middle, self.places, axis + 1).reshape(*before, -1, *after)

  def put(self, x: Array) -> Array:
    """The transpose, along the last axis."""
    x = x.reshape(*x.shape[:-1], -1, self.count, self.stride)
    zeros = jnp.zeros((*x.shape[:-2], self.size, self.stride), x.dtype)
    return zeros.at[..., self.places, :].add(x).reshape(*x.shape[:-3], -1)

  def index(self, ids: AnyArray) -> Array:
    """Where on the whole axis the places `ids` of the cut one lie."""
    outer, rest = jnp.divmod(ids, self.count * self.stride)
    middle, inner = jnp.divmod(rest, self.stride)
    return (outer * self.size + self.places[middle]) * self.stride + inner


def cut(w: Any, axis: int, take: Span | Places) -> Any:
  """Some rows (axis -2) or columns (axis -1) of an array or a structured leaf, as one of its kind.

  A leaf with a method `cut(axis, take)` cuts its parts, so that a product with the cut costs what it says. Of any other
  a `Cut` is made.

  >>> leaf = cut(Scaled(jnp.ones((2, 4)), jnp.arange(4.0)[None]), -1, Span(4, 1, 1, 3))
  >>> leaf.w.shape, leaf.s
  ((2, 2), Array([[1., 2.]], dtype=float32))
  """
  if not is_structured(w):
    return take(w, axis)
  return w.cut(axis, take) if hasattr(w, "cut") else Cut(w, take, axis)


@leaf_class(meta=("axis",))
class Cut:
  """Rows (axis -2) or columns (axis -1) of a leaf that cannot be cut itself: a product is one with the whole leaf.

  A leaf whose class says `forms = True` forms its matrix in every product: of such a one the part is multiplied.
  """

  w: Any
  take: Any
  axis: int

  @property
  def shape(self) -> tuple[int, ...]:
    shape = list(self.w.shape)
    shape[self.axis] = shape[self.axis] // self.take.size * self.take.count
    return tuple(shape)

  def materialize(self) -> Array:
    if self.axis == -2 and self.w.ndim == 2:
      return lookup(self.w, self.take.index(jnp.arange(self.shape[-2])))
    return self.take(materialize(self.w), self.axis)

  def dot(self, x: Array) -> Array:
    return self._contract(x, dot, contracted=self.axis == -2)

  def dot_transposed(self, x: Array) -> Array:
    return self._contract(x, dot_transposed, contracted=self.axis == -1)

  def lookup(self, ids: AnyArray) -> Array:
    return lookup(self.w, self.take.index(ids)) if self.axis == -2 else self.take(lookup(self.w, ids), -1)

  def _contract(self, x: Array, product: Any, contracted: bool) -> Array:
    if getattr(self.w, "forms", False):  # formed again in the backward pass
      return jax.checkpoint(lambda x, w: product(x, self.take(w.materialize(), self.axis)))(x, self.w)
    return product(self.take.put(x), self.w) if contracted else self.take(product(x, self.w), -1)
