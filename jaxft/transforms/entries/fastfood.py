"""Random projections from d to D dimensions, drawn from a key whenever they are needed: Fastfood, dense, sparse.

Each is a linear map of x that keeps lengths in expectation, `E |P x|^2 = |x|^2`, for every D.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxft.checks import in_range
from jaxft.signatures import explain_errors


def walsh_hadamard(x: Float[Array, "... n"]) -> Float[Array, "... n"]:
  """`H x` with the unnormalized Walsh-Hadamard matrix of order n, in n log2(n) additions; `H H x = n x`.

  >>> walsh_hadamard(jnp.array([1.0, 0.0, 0.0, 2.0]))
  Array([ 3., -1., -1.,  3.], dtype=float32)

  Raises:
    ValueError: n is no power of two.
  """
  n = x.shape[-1]
  if n & (n - 1) or not n:
    raise ValueError(f"x must have a power of two as its last axis; got shape {tuple(x.shape)}")
  half = 1
  while half < n:
    pairs = x.reshape(*x.shape[:-1], n // (2 * half), 2, half)
    a, b = pairs[..., 0, :], pairs[..., 1, :]
    x = jnp.stack([a + b, a - b], axis=-2).reshape(x.shape)
    half *= 2
  return x


@partial(jax.jit, static_argnames="size")  # some fifty operations of as many shapes, of which one by one each compiles
def fastfood(key: Array, x: Float[Array, " d"], size: int) -> Float[Array, " size"]:
  """`P x` for a random `[size, d]` matrix that is never formed: O(size log size) operations, O(size) memory.

      P x = [H G Q H B x] / c,   c^2 = n |G|^2 size / n,   n = size rounded up to a power of two

  with B random signs, Q a random permutation, G Gaussian; x is filled with zeros to n entries. Where n < d, x is cut in
  blocks of n entries, each with a projection of its own, and the results are added.

  >>> fastfood(jax.random.key(0), jnp.ones(4), 10).shape
  (10,)

  Args:
    key: of B, Q and G.
    x: in the subspace.
    size: D.

  Source: Le et al. 2013 (arXiv 1408.3060), as used in Aghajanyan et al. 2020 (arXiv 2012.13255). The authors' code
  crops x where n < d, so that small tensors see a part of it and move less; its gradient is off by 1/n.
  """
  n = 1 << (size - 1).bit_length()
  blocks = -(-x.shape[0] // n)
  x = jnp.pad(x, (0, blocks * n - x.shape[0])).reshape(blocks, n)

  def block(key: Array, x: Array) -> Array:
    signs, order, gaussian = jax.random.split(key, 3)
    g = jax.random.normal(gaussian, (n,), x.dtype)
    # Each transform is normalized at once: unnormalized ones grow by sqrt(n).
    y = walsh_hadamard(x * jax.random.rademacher(signs, (n,), x.dtype)) / math.sqrt(n)
    y = g * y[jax.random.permutation(order, n)]
    return walsh_hadamard(y)[:size] / (jnp.linalg.norm(g) * math.sqrt(size / n))

  return jnp.sum(jax.vmap(block)(jax.random.split(key, blocks), x), axis=0)


@explain_errors
def dense_projection(key: Array, x: Float[Array, " d"], size: int) -> Float[Array, " size"]:
  """`P x` with independent entries N(0, 1 / size): forms the `[size, d]` matrix, for tiny models.

  >>> dense_projection(jax.random.key(0), jnp.ones(4), 10).shape
  (10,)

  Source: Li et al. 2018 (arXiv 1804.08838), whose columns have length 1 exactly; here in expectation.
  """
  in_range("size", size, "[1, inf)")
  return jax.random.normal(key, (size, x.shape[0]), x.dtype) @ x / math.sqrt(size)


@explain_errors
def sparse_projection(key: Array, x: Float[Array, " d"], size: int) -> Float[Array, " size"]:
  """`P x` with about sqrt(size) entries +-size^(-1/4) in each column, O(d sqrt(size)) memory.

  >>> sparse_projection(jax.random.key(0), jnp.ones(4), 10).shape
  (10,)

  Source: the sparse projection of Li et al. 2018 (arXiv 1804.08838), density 1/sqrt(D), after Li et al. 2006. There
  each entry is drawn for itself; here each column has its number of entries, at places drawn with repetition.
  """
  in_range("size", size, "[1, inf)")
  filled = max(1, round(math.sqrt(size)))
  places, signs = jax.random.split(key)
  rows = jax.random.randint(places, (x.shape[0], filled), 0, size)
  values = jax.random.rademacher(signs, (x.shape[0], filled), x.dtype) * x[:, None] / math.sqrt(filled)
  return jnp.zeros(size, x.dtype).at[rows].add(values)
