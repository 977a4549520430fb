"""`Cast`: a weight in another dtype, which what is computed from it is rounded to."""

from typing import Any

from jaxtyping import Array

from jaxft.leaves.cuts import Places, Span, cut
from jaxft.leaves.leaf_class import leaf_class
from jaxft.leaves.materialize import materialize
from jaxft.leaves.products import RowProduct, dot, dot_transposed, lookup, row_product
from jaxft.signatures import AnyArray


@leaf_class(meta=("dtype",))
class Cast:
  """`w.astype(dtype)`. A leaf around it has this dtype, and not that of w: a scale is not rounded to 8 bits."""

  w: Any
  dtype: Any

  def materialize(self) -> Array:
    return materialize(self.w).astype(self.dtype)

  def dot(self, x: Array) -> Array:
    return dot(x, self.w)

  def dot_transposed(self, x: Array) -> Array:
    return dot_transposed(x, self.w)

  def lookup(self, ids: AnyArray) -> Array:
    return lookup(self.w, ids).astype(self.dtype)

  def cut(self, axis: int, take: Span | Places) -> "Cast":
    return Cast(cut(self.w, axis, take), self.dtype)

  def row_product(self, x: Array, product: RowProduct, transposed: bool) -> Array:
    return row_product(x, self.w, product, transposed)
