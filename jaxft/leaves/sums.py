"""Structured leaves that add to a weight: `Sum`, for a delta with a cheap product, and `Formed`, for one without."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxft.leaves.cuts import Places, Span, cut
from jaxft.leaves.leaf_class import leaf_class
from jaxft.leaves.materialize import unrounded
from jaxft.leaves.products import RowProduct, dot, dot_transposed, lookup, row_product
from jaxft.signatures import AnyArray


@leaf_class(meta=("scale",))
class Sum:
  """`w + scale * delta`, with delta an array or a structured leaf of the same shape."""

  w: Any
  delta: Any
  scale: float = 1.0

  def materialize(self) -> Array:
    return (unrounded(self.w) + self.scale * unrounded(self.delta)).astype(self.w.dtype)

  def dot(self, x: Array) -> Array:
    return dot(x, self.w) + self.scale * dot(x, self.delta)

  def dot_transposed(self, x: Array) -> Array:
    return dot_transposed(x, self.w) + self.scale * dot_transposed(x, self.delta)

  def lookup(self, ids: AnyArray) -> Array:
    return lookup(self.w, ids) + self.scale * lookup(self.delta, ids).astype(self.w.dtype)

  def cut(self, axis: int, take: Span | Places) -> "Sum":
    return Sum(cut(self.w, axis, take), cut(self.delta, axis, take), self.scale)

  def row_product(self, x: Array, product: RowProduct, transposed: bool) -> Array:
    delta = row_product(x, self.delta, product, transposed)
    return row_product(x, self.w, product, transposed) + self.scale * delta


@leaf_class(meta=("form",))
class Formed:
  """`form(w, parts)` of the shape of w, formed for each product: for an update that has no cheaper one.

  A training step then costs what full tuning does; what is saved is the optimizer's state. The matrix is formed again
  in the backward pass: kept from the forward pass, those of all layers together would take the memory of the model.

  Attributes:
    w: the frozen weight `[..., m, n]`.
    parts: a tree of arrays, with the leading axes of w.
    form: `(w float32, parts) -> array`, a function of a module, which keeps its identity from one trace to the next.
  """

  w: Any
  parts: Any
  form: Callable[[Array, Any], Array]

  forms = True  # see `Cut`

  def materialize(self) -> Array:
    return self.form(unrounded(self.w), self.parts).astype(self.w.dtype)

  def dot(self, x: Array) -> Array:
    return jax.checkpoint(lambda x, leaf: dot(x, leaf.materialize()))(x, self)

  def dot_transposed(self, x: Array) -> Array:
    return jax.checkpoint(lambda x, leaf: dot_transposed(x, leaf.materialize()))(x, self)

  def lookup(self, ids: AnyArray) -> Array:
    return jnp.take(self.materialize(), ids, axis=0)
