"""Products with an array or a structured leaf, which is what the models multiply with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxft.signatures import AnyArray, explain_errors
from jaxft.tree.paths import is_structured


@explain_errors
def dot(x: Float[Array, "... n_in"], w: Any) -> Float[Array, "... n_out"]:
  """`x @ w`: the last axis of x with the second to last of w, an array or a structured leaf of rank 2.

  The leading axes of x are flattened first: XLA's CPU backend contracts two batch axes in the backward pass about
  three times slower than one, and other backends flatten them anyway. The weight takes x's dtype.

  >>> leaf = LowRank(jnp.ones((2, 2)), a=jnp.array([[1.0], [0.0]]), b=jnp.array([[1.0, 2.0]]), scale=10.0)
  >>> x = jnp.array([[3.0, 4.0]])
  >>> dot(x, leaf.w), dot(x, leaf)  # 7 each, and 10 * 3 * b on top
  (Array([[7., 7.]], dtype=float32), Array([[37., 67.]], dtype=float32))

  Args:
    x: what is multiplied.
    w: an array `[n_in, n_out]`, or a leaf that stands for one.
  """
  if is_structured(w):
    return w.dot(x)
  y = x.reshape(-1, x.shape[-1]) @ w.astype(x.dtype)
  return y.reshape(*x.shape[:-1], w.shape[-1])


def dot_transposed(x: Float[Array, "... n_out"], w: Any) -> Float[Array, "... n_in"]:
  """`x @ w.T`: the last axis of x with the last of w; a tied embedding read as the output head."""
  if is_structured(w):
    return w.dot_transposed(x)
  y = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), w.astype(x.dtype), (((1,), (1,)), ((), ())))
  return y.reshape(*x.shape[:-1], w.shape[-2])


class RowProduct(NamedTuple):
  """A product other than `dot` that reads a weight by its rows.

  Such are a convolution, whose window and inputs are the rows, and a `ragged_dot`, which has a matrix for each group.

  Attributes:
    of: `(x, array [..., m, k]) -> [..., k]`, for any number of columns.
    then: `(y [..., k], array or leaf [..., k, n]) -> [..., n]`, how the columns of such a product are multiplied.
    times: `(y [..., n], s [..., n]) -> [..., n]`, and how they are scaled.
  """

  of: Callable[[Array, Array], Array]
  then: Callable[[Array, Any], Array] = dot
  times: Callable[[Array, Array], Array] = lambda y, s: y * s


def row_product(x: Array, w: Any, product: RowProduct, transposed: bool = False) -> Array:
  """`product.of(x, w)` of an array or a structured leaf.

  A leaf whose class has a method `row_product` takes it apart: for a `LowRank` it is
  `of(x, w) + scale * then(of(x, a), b)`. Of any other leaf the array is formed.

  >>> leaf = LowRank(jnp.ones((2, 2)), a=jnp.array([[1.0], [0.0]]), b=jnp.array([[1.0, 2.0]]), scale=10.0)
  >>> row_product(jnp.array([3.0, 4.0]), leaf, RowProduct(lambda x, w: x @ w))
  Array([37., 67.], dtype=float32)

  Args:
    x: what is multiplied.
    w: `[m, n]`, or with axes in front that the product knows of.
    product: what is computed.
    transposed: whether it is of the transpose of w.
  """
  if not is_structured(w):
    return product.of(x, jnp.swapaxes(w, -1, -2) if transposed else w)
  if hasattr(w, "row_product"):
    return w.row_product(x, product, transposed)
  return jax.checkpoint(lambda x, w: row_product(x, w.materialize(), product, transposed))(x, w)


def scaled_row_product(x: Array, w: Any, s: Array, product: RowProduct, transposed: bool = False) -> Array:
  """`row_product` of `w * s`, s `[..., 1, n]`, `[..., m, 1]` or `[..., 1, 1]`."""
  s = jnp.swapaxes(s, -1, -2) if transposed else s
  if s.shape[-1] == 1:  # in place of x's: what the rows of x are only the product knows
    wide = jnp.promote_types(x.dtype, jnp.float32)
    of = lambda x, w: product.of(x, (w.astype(wide) * s).astype(x.dtype))
    return row_product(x, w, product._replace(of=of), transposed)
  y = row_product(x, w, product, transposed)
  return product.times(y, s[..., 0, :].astype(y.dtype))


def thin_dot(x: Float[Array, "... n_in"], a: Any) -> Float[Array, "... rank"]:
  """`dot(x, a)` for a matrix of few columns, written so that its gradient is formed as `[rank, n_in]`.

  Left alone, XLA folds the transpose into the product of the backward pass, `x.T @ g` with a handful of columns, which
  its CPU backend computes seven times slower than `g.T @ x`. The barrier keeps the two apart; it costs nothing.
  """
  if is_structured(a):
    return a.dot(x)
  return dot_transposed(x, jax.lax.optimization_barrier(a.T))


@explain_errors
def lookup(w: Any, ids: Int[AnyArray, "..."]) -> Float[Array, "... dim"]:
  """Rows of w, an array or a structured leaf `[vocab, dim]`.

  >>> lookup(jnp.array([[0.0, 1.0], [10.0, 11.0], [20.0, 21.0]]), jnp.array([2, 0]))
  Array([[20., 21.],
         [ 0.,  1.]], dtype=float32)

  Args:
    w: the table.
    ids: the rows to read.
  """
  if is_structured(w):
    return w.lookup(ids)
  if jnp.ndim(w) != 2:
    raise ValueError(f"w must be a table [vocab, dim]; got one of shape {list(jnp.shape(w))}")
  return jnp.take(w, ids, axis=0)
