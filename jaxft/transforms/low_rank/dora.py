"""DoRA: a low-rank update of the direction of each column of a weight, and its magnitude trained apart."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxft.checks import in_range
from jaxft.leaves.cuts import Cut, Places, Span
from jaxft.leaves.leaf_class import leaf_class
from jaxft.leaves.low_rank import LowRank
from jaxft.leaves.materialize import materialize, unrounded
from jaxft.leaves.products import RowProduct, dot, lookup, scaled_row_product
from jaxft.signatures import AnyArray, explain_errors
from jaxft.transforms.low_rank.inits import uniform_then_zero
from jaxft.transforms.matrices import adapt_matrices, check_dropout, check_dtype, check_rank
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice
from jaxft.tree.paths import is_structured


@leaf_class(like="v")
class ColumnNormalized:
  """`v * magnitude / |v|`, with v low-rank and |v| the norm of its columns, through which no gradient flows.

  Attributes:
    v: a `LowRank` leaf `[..., m, n]`.
    magnitude: `[..., n]`.
  """

  v: LowRank
  magnitude: Any

  def materialize(self) -> Array:
    return (unrounded(self.v) * self._factors()[..., None, :]).astype(self.v.w.dtype)

  def dot(self, x: Array) -> Array:
    y = self.v.dot(x)
    return y * self._factors().astype(y.dtype)

  def dot_transposed(self, x: Array) -> Array:
    return self.v.dot_transposed(x * self._factors().astype(x.dtype))

  def lookup(self, ids: AnyArray) -> Array:
    y = lookup(self.v, ids)
    return y * self._factors().astype(y.dtype)

  def cut(self, axis: int, take: Span | Places) -> Any:
    if axis == -2:  # a norm is of the whole column
      return Cut(self, take, axis)
    return ColumnNormalized(self.v.cut(axis, take), take(self.magnitude, -1))

  def row_product(self, x: Array, product: RowProduct, transposed: bool) -> Array:
    return scaled_row_product(x, self.v, self._factors()[..., None, :], product, transposed)

  def _factors(self) -> Float[Array, "... n"]:
    return self.magnitude / jnp.sqrt(jax.lax.stop_gradient(column_squares(self.v)))


def column_squares(v: LowRank) -> Float[Array, "... n"]:
  """Squared norms of the columns of `w + s a b`: `|w_j|^2 + 2 s (w^T a)_j . b_j + s^2 b_j^T a^T a b_j`.

  The product is not formed. `|w_j|^2` is of the w that stands here, which a later transform may have quantized or
  trained: once a step it is read, where a number kept from `split` would be of another matrix.

  Args:
    v: the low-rank leaf `[..., m, n]`.
  """
  w = v.w
  if isinstance(w, LowRank):
    w = dataclasses.replace(w, key=None)  # dropout is of what is multiplied, not of the weight
  if isinstance(w, LowRank) and not (is_structured(w.a) or is_structured(w.b)):
    squares = column_squares(w)
  else:
    squares = jnp.sum(jnp.square(materialize(w).astype(jnp.float32)), axis=-2)
  a, b = v.a.astype(jnp.float32), v.b.astype(jnp.float32)
  transposed = jnp.swapaxes(a, -1, -2)
  product = dot
  for _ in range(a.ndim - 2):
    product = jax.vmap(product)
  cross = jnp.sum(product(transposed, w) * b, axis=-2)
  own = jnp.sum(((transposed @ a) @ b) * b, axis=-2)
  return squares + 2 * v.scale * cross + v.scale**2 * own


@explain_errors
def dora(
    select: Choice = "**/kernel", *, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0,
    dtype: DTypeLike | None = None,
) -> ParamTransform:
  """DoRA: `magnitude * v / |v|` by column, with `v = w + alpha / r * a @ b` and |v| constant to the gradient.

  >>> _, trainable = dora("up", rank=2).split(jax.random.key(0), {"up": jnp.ones((4, 3))})
  >>> jax.tree.map(jnp.shape, trainable)
  {'up': {'a': (4, 2), 'b': (2, 3), 'magnitude': (3,)}}

  Args:
    select: a choice of matrices.
    rank: r of the factors.
    alpha: numerator of the scale.
    dropout: rate on the input of a, not of w; active where `seed_dropout` has set a key.
    dtype: of the factors; None takes float32. Magnitudes are float32.

  Raises:
    ValueError: rank or dropout is out of range; from `split`, as `lora`.

  Source: Liu et al. 2024 (arXiv 2402.09353), with the detached norm of its section 4.3. Columns are outputs, as in
  PEFT; the norm comes from Gram matrices of the factors, not from the product.
  """
  rank = check_rank(rank)
  in_range("alpha", alpha)
  check_dropout(dropout)
  dtype = check_dtype(dtype)

  def start(key: jax.Array, w: Any, statistic: Any) -> tuple[Any, Any]:
    del statistic
    _, a, b = uniform_then_zero(key, w, rank)
    norms = jnp.linalg.norm(materialize(w).astype(jnp.float32), axis=-2)
    return w, {"a": a.astype(dtype), "b": b.astype(dtype), "magnitude": norms}

  def adapt(w: Any, t: Any) -> ColumnNormalized:
    v = LowRank(w, t["a"], t["b"], scale=alpha / rank, dropout=dropout)
    return ColumnNormalized(v, t["magnitude"])

  return adapt_matrices(select, start, adapt, oriented=True)
