"""Householder reflections: weights rotated by a product of a few reflections, at the price of a low-rank update."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxft.signatures import explain_errors
from jaxft.transforms.multiplicative.multiplied import Multiplied, adapt_shapes
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice


@partial(jax.tree_util.register_dataclass, data_fields=["u", "t"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Reflections:
  """The linear map `H_r ... H_1 = I - u t^T u^T`, `H_j = I - 2 u_j u_j^T`, columns u_j of unit length in u `[n, r]`.

  Two products with r columns and one with a small triangle, in place of r products one after the other: the compact
  form `H_1 ... H_r = I - u t u^T` has `t^-1 = I / 2 + triu(u^T u, 1)` (Joffrain et al. 2006).
  """

  u: Any
  t: Any

  @staticmethod
  def along(directions: Float[Array, "... n r"]) -> "Reflections":
    """The reflections along columns of any length but zero."""
    u = directions.astype(jnp.float32)
    u = u * jax.lax.rsqrt(jnp.sum(u * u, axis=-2, keepdims=True))
    eye = jnp.broadcast_to(jnp.eye(u.shape[-1]), (*u.shape[:-2], u.shape[-1], u.shape[-1]))
    inverse = 0.5 * eye + jnp.triu(jnp.swapaxes(u, -1, -2) @ u, 1)
    return Reflections(u, jax.lax.linalg.triangular_solve(inverse, eye, left_side=True, lower=False))

  def __call__(self, x: Array) -> Array:
    return self._map(x, self.t.T)

  def transposed(self, x: Array) -> Array:
    return self._map(x, self.t)

  def _map(self, x: Array, t: Array) -> Array:
    u = self.u.astype(x.dtype)
    return x - ((x @ u) @ t.astype(x.dtype)) @ u.T


@explain_errors
def hra(select: Choice = "**/kernel", *, rank: int = 8, dtype: DTypeLike | None = None) -> ParamTransform:
  """HRA: `H_r ... H_1 @ w`, each H_j = I - 2 u_j u_j^T / |u_j|^2 a reflection of the input space.

  >>> _, trainable = hra("up", rank=2).split(jax.random.key(0), {"up": jnp.ones((4, 3))})
  >>> jax.tree.map(jnp.shape, trainable)
  {'up': {'u': (4, 2)}}

  Args:
    select: a choice of matrices `[m, n]`.
    rank: r, the number of reflections; even, since they start in pairs that undo one another.
    dtype: of the directions, `u [m, r]`; None takes float32.

  Raises:
    ValueError: rank is odd or below 2.

  Source: Yuan et al. 2024 (arXiv 2405.17484). The directions are PEFT's `hra_u`, with its init (random, each repeated
  once); without Gram-Schmidt, and without the paper's orthogonality penalty, which is the caller's to add.
  """
  if not (isinstance(rank, int) and rank >= 2 and rank % 2 == 0):
    raise ValueError(f"rank must be an even integer >= 2, so that the product starts at the identity; got {rank!r}")
  bound = 1 / math.sqrt(rank // 2)

  def init(key: jax.Array, m: int, n: int) -> dict[str, Array]:
    half = jax.random.uniform(key, (m, rank // 2), jnp.float32, -bound, bound)
    return {"u": jnp.repeat(half, 2, axis=1)}

  return adapt_shapes(select, init, lambda w, t: Multiplied(w, Reflections.along(t["u"])), dtype=dtype)
