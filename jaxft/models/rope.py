"""Rotary position embedding, in the half-split layout of Hugging Face checkpoints."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Rotation(NamedTuple):
  """Cosines and sines of every position's angles, float32, ready to broadcast against heads."""

  cos: Float[Array, "#batch time 1 half"]
  sin: Float[Array, "#batch time 1 half"]


def rotation(positions: Int[Array, "#batch time"], *, head_dim: int, theta: float) -> Rotation:
  """The angles `position * theta^(-2 i / head_dim)`, i < head_dim / 2: made once, used by every layer."""
  frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
  return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "batch time heads head_dim"], by: Rotation) -> Float[Array, "batch time heads head_dim"]:
  """Rotates each pair `(x[i], x[i + head_dim/2])` by its position's angle; in float32, returned in x's dtype.

  Source: Su et al. 2021 (arXiv 2104.09864), with the pairs half a head apart instead of adjacent.
  """
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = (first * by.cos - second * by.sin, second * by.cos + first * by.sin)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)
