"""`Scaled`: a weight times a factor for each row, each column or the whole."""

from typing import Any

from jaxtyping import Array

from jaxft.leaves.cuts import Places, Span, cut
from jaxft.leaves.leaf_class import leaf_class
from jaxft.leaves.materialize import materialize, unrounded
from jaxft.leaves.products import RowProduct, dot, dot_transposed, lookup, row_product, scaled_row_product
from jaxft.signatures import AnyArray


@leaf_class()
class Scaled:
  """`w * s`, s broadcast against w: `[..., 1, n]` scales outputs, `[..., m, 1]` inputs, `[..., 1, 1]` the whole."""

  w: Any
  s: Any

  def materialize(self) -> Array:
    return (unrounded(self.w) * self.s).astype(self.w.dtype)

  def dot(self, x: Array) -> Array:
    rows, columns = self._sides()
    y = dot(x if rows is None else x * rows.astype(x.dtype), self.w)
    return y if columns is None else y * columns.astype(y.dtype)

  def dot_transposed(self, x: Array) -> Array:
    rows, columns = self._sides()
    y = dot_transposed(x if columns is None else x * columns.astype(x.dtype), self.w)
    return y if rows is None else y * rows.astype(y.dtype)

  def lookup(self, ids: AnyArray) -> Array:
    rows, columns = self._sides()
    y = lookup(self.w, ids)
    y = y if rows is None else y * (rows[ids] if rows.shape[0] > 1 else rows)[..., None].astype(y.dtype)
    return y if columns is None else y * columns.astype(y.dtype)

  def cut(self, axis: int, take: Span | Places) -> "Scaled":
    return Scaled(cut(self.w, axis, take), self.s if self.s.shape[axis] == 1 else take(self.s, axis))

  def row_product(self, x: Array, product: RowProduct, transposed: bool) -> Array:
    if self.s.shape[-2] != 1 and self.s.shape[-1] != 1:
      return row_product(x, materialize(self), product, transposed)
    return scaled_row_product(x, self.w, self.s, product, transposed)

  def _sides(self) -> tuple[Array | None, Array | None]:
    """The scale as a vector over rows or over columns of a rank-2 leaf; both may be of length 1."""
    if self.s.shape[-2] != 1 and self.s.shape[-1] != 1:
      raise ValueError(f"Scaled contracts only with a scale of rows or of columns; got s of shape {self.s.shape}")
    if self.s.shape[-1] == 1:
      return self.s[..., 0], None
    return None, self.s[..., 0, :]
