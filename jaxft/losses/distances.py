"""Distances between embeddings, of pairs and of all with all, with a gradient of 0 where two are the same."""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxft.checks import one_of
from jaxft.losses.contrastive import cosine_similarity, normalize, products
from jaxft.signatures import AnyArray, check_arrays

Metric = Literal["cosine", "euclidean", "manhattan"]

# Of squared distances formed as |a|^2 - 2 ab + |b|^2: below this share of the squares all is rounding.
_ROUNDING = 1e-6


@check_arrays
def pair_distances(
    a: Float[AnyArray, "batch dim"], b: Float[AnyArray, "batch dim"], *, metric: Metric = "cosine"
) -> Float[Array, " batch"]:
  """The distance of each row of `a` from its row of `b`, in float32.

  `1 - cos(a, b)`, `|a - b|_2` or `|a - b|_1`. The gradient at equal rows is 0.

  Args:
    a, b: embeddings.
    metric: "cosine", "euclidean" or "manhattan".

  Raises:
    ValueError: an unknown metric.

  Example:
    >>> pair_distances(jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 4.0]]), metric="euclidean")
    Array([5.], dtype=float32)
  """
  one_of("metric", metric, get_args(Metric))
  if metric == "cosine":
    return 1 - jnp.sum(normalize(a) * normalize(b), axis=-1)
  return _length(_float32(a) - _float32(b), metric)


@check_arrays
def all_distances(
    a: Float[AnyArray, "rows dim"], b: Float[AnyArray, "columns dim"], *, metric: Metric = "cosine"
) -> Float[Array, "rows columns"]:
  """The distance of each row of `a` from each of `b`, in float32; see `pair_distances`.

  Euclidean distances come from one product of matrices: those of less than a thousandth of the vectors' lengths are
  rounding, and 0. The Manhattan ones take memory for rows x columns x dim numbers.

  Args:
    a, b: embeddings.
    metric: "cosine", "euclidean" or "manhattan".

  Raises:
    ValueError: an unknown metric.

  Example:
    >>> all_distances(jnp.eye(2), jnp.eye(2), metric="manhattan")
    Array([[0., 2.],
           [2., 0.]], dtype=float32)
  """
  one_of("metric", metric, get_args(Metric))
  if metric == "cosine":
    return 1 - cosine_similarity(a, b)
  a, b = _float32(a), _float32(b)
  if metric == "manhattan":
    return _length(a[:, None] - b, metric)
  squares = jnp.sum(a * a, axis=-1)[:, None] + jnp.sum(b * b, axis=-1)
  square = squares - 2 * products(a, b)
  return _root(jnp.where(square > _ROUNDING * squares, square, 0.0))


def _length(difference: Float[Array, "*batch dim"], metric: Metric) -> Float[Array, "*batch"]:
  if metric == "manhattan":
    # |x| as x sign(x): the derivative of jnp.abs at 0 is 1 in some versions of JAX.
    return jnp.sum(difference * jnp.sign(difference), axis=-1)
  return _root(jnp.sum(jnp.square(difference), axis=-1))


def _root(square: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
  some = square > 0
  return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1.0)), 0.0)


def _float32(x: Float[AnyArray, "rows dim"]) -> Float[Array, "rows dim"]:
  return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
