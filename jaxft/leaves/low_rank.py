"""`LowRank`: a weight and a low-rank update of it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxft.leaves.cuts import Places, Span, cut
from jaxft.leaves.leaf_class import leaf_class
from jaxft.leaves.materialize import materialize, unrounded
from jaxft.leaves.products import RowProduct, dot, dot_transposed, lookup, row_product, thin_dot
from jaxft.signatures import AnyArray


@leaf_class(meta=("scale", "dropout"))
class LowRank:
  """`w + scale * a @ b`, with w `[..., m, n]`, a `[..., m, r]`, b `[..., r, n]`.

  Dropout acts on the input of `a`, and only where `key` is set (`seed_dropout`): without a key it is the mean model.
  """

  w: Any
  a: Any
  b: Any
  scale: float = 1.0
  dropout: float = 0.0
  key: Any = None

  def materialize(self) -> Array:
    return (unrounded(self.w) + self.scale * (unrounded(self.a) @ unrounded(self.b))).astype(self.w.dtype)

  def dot(self, x: Array) -> Array:
    return dot(x, self.w) + self.scale * dot(thin_dot(self._drop(x), self.a), self.b)

  def dot_transposed(self, x: Array) -> Array:
    return dot_transposed(x, self.w) + self.scale * dot_transposed(dot_transposed(self._drop(x), self.b), self.a)

  def lookup(self, ids: AnyArray) -> Array:
    return lookup(self.w, ids) + self.scale * dot(lookup(self.a, ids), self.b).astype(self.w.dtype)

  def cut(self, axis: int, take: Span | Places) -> "LowRank":
    a, b = (self.a, cut(self.b, axis, take)) if axis == -1 else (cut(self.a, axis, take), self.b)
    return dataclasses.replace(self, w=cut(self.w, axis, take), a=a, b=b)

  def row_product(self, x: Array, product: RowProduct, transposed: bool) -> Array:
    first, second = (self.b, self.a) if transposed else (self.a, self.b)
    second = jnp.swapaxes(materialize(second), -1, -2) if transposed else second
    # Of a stack, one mask: an input meets one matrix of it.
    one = self if self.key is None else dataclasses.replace(self, key=self.key.reshape(-1)[0])
    update = product.then(row_product(one._drop(x), first, product, transposed), second)
    return row_product(x, self.w, product, transposed) + self.scale * update

  def _drop(self, x: Array) -> Array:
    if self.key is None or self.dropout == 0.0:
      return x
    keep = jax.random.bernoulli(self.key, 1.0 - self.dropout, x.shape)
    return jnp.where(keep, x / (1.0 - self.dropout), 0).astype(x.dtype)
