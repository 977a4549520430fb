"""Layer norm, root-mean-square norm and unit length, computed in float32 whatever the dtype of the activations."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxft.leaves import materialize


def layer_norm(x: Float[Array, "... dim"], params: dict[str, Any], *, eps: float) -> Float[Array, "... dim"]:
  """`(x - mean) / sqrt(var + eps) * scale + bias` over the last axis.

  Source: Ba, Kiros and Hinton 2016 (arXiv 1607.06450).
  """
  params = materialize(params)
  y = x.astype(jnp.float32)
  y = y - jnp.mean(y, axis=-1, keepdims=True)
  y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
  return (y * params["scale"].astype(jnp.float32) + params["bias"].astype(jnp.float32)).astype(x.dtype)


def rms_norm(
    x: Float[Array, "... dim"], params: dict[str, Any], *, eps: float, zero_centered: bool = False
) -> Float[Array, "... dim"]:
  """`x / sqrt(mean(x^2) + eps) * scale` over the last axis; `* (1 + scale)` where it is zero-centered, as in Gemma.

  Source: Zhang and Sennrich 2019 (arXiv 1910.07467).
  """
  params = materialize(params)
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
  scale = params["scale"].astype(jnp.float32)
  return (y * (1 + scale if zero_centered else scale)).astype(x.dtype)


def unit_length(x: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
  """`x / |x|` over the last axis, float32; 0 where x is 0.

  >>> unit_length(jnp.array([3.0, 4.0]))
  Array([0.6, 0.8], dtype=float32)
  """
  x = x.astype(jnp.float32)
  # The square root of a sum of squares has no gradient at zero; under the maximum it has one, and it is finite.
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
