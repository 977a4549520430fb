"""`LowRank`: a weight and a low-rank update of it."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxft.leaves.leaf_class import leaf_class
from jaxft.leaves.materialize import unrounded
from jaxft.leaves.products import dot, dot_transposed, lookup, thin_dot
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

  def _drop(self, x: Array) -> Array:
    if self.key is None or self.dropout == 0.0:
      return x
    keep = jax.random.bernoulli(self.key, 1.0 - self.dropout, x.shape)
    return jnp.where(keep, x / (1.0 - self.dropout), 0).astype(x.dtype)
