"""`Concatenated`: a matrix of which some rows or columns train and the others do not."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxft.leaves.cuts import Cut, Places, Span, cut
from jaxft.leaves.leaf_class import leaf_class
from jaxft.leaves.materialize import materialize
from jaxft.leaves.products import dot, dot_transposed, lookup
from jaxft.signatures import AnyArray


@leaf_class(meta=("axis",), like="frozen")
class Concatenated:
  """`take(concatenate([frozen, trained], axis), order, axis)`: rows or columns of which only some train.

  Kept apart so that the backward pass forms the gradient of the trained part alone. `axis` is -2 (rows, the input
  side of `x @ w`) or -1 (columns); `order` `[..., n]` gives, for each row of the array, its index in the
  concatenation, None where the concatenation is already in order.
  """

  frozen: Any
  trained: Any
  order: Any = None
  axis: int = -2

  @property
  def shape(self) -> tuple[int, ...]:
    shape = list(self.frozen.shape)
    shape[self.axis] += self.trained.shape[self.axis]
    return tuple(shape)

  def materialize(self) -> Array:
    parts = (materialize(self.frozen), materialize(self.trained).astype(self.frozen.dtype))
    w = jnp.concatenate(parts, axis=self.axis)
    return w if self.order is None else _take_along(w, self.order, self.axis)

  def dot(self, x: Array) -> Array:
    return self._contract(x, self.axis == -2, dot)

  def dot_transposed(self, x: Array) -> Array:
    return self._contract(x, self.axis == -1, dot_transposed)

  def lookup(self, ids: AnyArray) -> Array:
    if self.axis == -1:
      rows = jnp.concatenate([lookup(self.frozen, ids), lookup(self.trained, ids).astype(self.frozen.dtype)], axis=-1)
      return rows if self.order is None else jnp.take(rows, self.order, axis=-1)
    ids = ids if self.order is None else jnp.take(self.order, ids)
    n = self.frozen.shape[-2]
    old = lookup(self.frozen, jnp.minimum(ids, n - 1))
    new = lookup(self.trained, jnp.maximum(ids - n, 0)).astype(old.dtype)
    return jnp.where((ids < n)[..., None], old, new)

  def cut(self, axis: int, take: Span | Places) -> Any:
    if axis == self.axis:
      return Cut(self, take, axis)
    return Concatenated(cut(self.frozen, axis, take), cut(self.trained, axis, take), self.order, self.axis)

  def _contract(self, x: Array, contracted: bool, product: Any) -> Array:
    if contracted:  # the cut axis is summed over: the product is a sum of two
      n = self.frozen.shape[self.axis]
      x = x if self.order is None else jnp.take(x, jnp.argsort(self.order), axis=-1)
      return product(x[..., :n], self.frozen) + product(x[..., n:], self.trained)
    y = jnp.concatenate([product(x, self.frozen), product(x, self.trained)], axis=-1)
    return y if self.order is None else jnp.take(y, self.order, axis=-1)


def _take_along(w: Array, order: Array, axis: int) -> Array:
  order = jnp.expand_dims(order, -1 if axis == -2 else -2)
  return jnp.take_along_axis(w, order, axis=axis)
