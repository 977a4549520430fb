"""A frozen leaf that carries what its transform has to remember: indices, a seed, an order."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxft.transforms.leaves import dot, dot_transposed, lookup
from jaxft.transforms.paths import is_structured


@partial(jax.tree_util.register_dataclass, data_fields=["w", "note"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Beside:
  """Stands for `w`, an array or a structured leaf; `note` is read by the `join` of the transform that wrote it.

  The frozen side keeps the structure of the params, so what belongs to a leaf and does not train travels in its place.
  """

  w: Any
  note: Any

  @property
  def shape(self) -> tuple[int, ...]:
    return self.w.shape

  @property
  def dtype(self) -> jnp.dtype:
    return self.w.dtype

  @property
  def ndim(self) -> int:
    return len(self.shape)

  def materialize(self) -> Array:
    return self.w.materialize() if is_structured(self.w) else self.w

  def dot(self, x: Array) -> Array:
    return dot(x, self.w)

  def dot_transposed(self, x: Array) -> Array:
    return dot_transposed(x, self.w)

  def lookup(self, ids: Array) -> Array:
    return lookup(self.w, ids)
