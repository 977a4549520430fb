"""The affine maps of the adapters: their starts, and their product."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Dense = dict[str, Array]  # kernel [..., m, n] and, where there is one, bias [..., n]


def torch_dense(key: jax.Array, m: int, n: int) -> Dense:
  """The start of PyTorch's linear layers, which PEFT's encoders keep: kernel and bias uniform in ±1/sqrt(m)."""
  bound, (for_kernel, for_bias) = 1 / math.sqrt(m), jax.random.split(key)
  draw = lambda k, *shape: jax.random.uniform(k, shape, jnp.float32, -bound, bound)
  return {"kernel": draw(for_kernel, m, n), "bias": draw(for_bias, n)}


def affine(x: Float[Array, "... m"], dense: Dense) -> Float[Array, "... n"]:
  """`x @ kernel + bias`, in x's dtype."""
  y = x @ dense["kernel"].astype(x.dtype)
  return y + dense["bias"].astype(x.dtype) if "bias" in dense else y
