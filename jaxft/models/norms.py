"""Layer norm and root-mean-square norm, computed in float32 whatever the dtype of the activations."""

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


def rms_norm(x: Float[Array, "... dim"], params: dict[str, Any], *, eps: float) -> Float[Array, "... dim"]:
  """`x / sqrt(mean(x^2) + eps) * scale` over the last axis.

  Source: Zhang and Sennrich 2019 (arXiv 1910.07467).
  """
  params = materialize(params)
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
  return (y * params["scale"].astype(jnp.float32)).astype(x.dtype)
