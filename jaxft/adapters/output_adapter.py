"""A residual bottleneck on the vector that an encoder puts out: what CLIP-Adapter and CoPrompt add to each tower."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxft.checks import in_range
from jaxft.models.linear import linear
from jaxft.signatures import AnyArray, explain_errors


@explain_errors
def init_output_adapter(key: Key[Array, ""], dim: int, *, reduction: int = 4) -> dict[str, Any]:
  """Params `{'down': [dim, dim / reduction], 'up': [dim / reduction, dim]}`, uniform as PyTorch's linear layers start.

  >>> jax.tree.map(jnp.shape, init_output_adapter(jax.random.key(0), 8))
  {'down': {'kernel': (8, 2)}, 'up': {'kernel': (2, 8)}}

  Args:
    key: draws both. With zeros in `up` no gradient would ever reach either, because of the rectifier behind it.
    dim: of the vectors.
    reduction: by which the bottleneck is narrower.

  Raises:
    ValueError: reduction outside [1, dim].
  """
  in_range("reduction", reduction, f"[1, {dim}]")
  width = dim // reduction
  uniform = lambda key, m, n: {
      "kernel": jax.random.uniform(key, (m, n), jnp.float32, -1 / math.sqrt(m), 1 / math.sqrt(m))}
  keys = jax.random.split(key)
  return {"down": uniform(keys[0], dim, width), "up": uniform(keys[1], width, dim)}


@explain_errors
def output_adapter(
    params: dict[str, Any], x: Float[AnyArray, "*batch dim"], *, ratio: float
) -> Float[Array, "*batch dim"]:
  """`ratio relu(W2 relu(W1 x)) + (1 - ratio) x`: at the start near x, but not x.

  >>> params = {"down": {"kernel": jnp.eye(2)}, "up": {"kernel": jnp.eye(2)}}
  >>> output_adapter(params, jnp.array([[2.0, -2.0]]), ratio=0.25)
  Array([[ 2. , -1.5]], dtype=float32)

  Args:
    params: of `init_output_adapter`.
    x: vectors.
    ratio: in [0, 1]: CoPrompt's are 0.1 of images and 0.2 of texts.

  Raises:
    ValueError: ratio out of range.

  Sources: Gao et al. 2021, CLIP-Adapter (arXiv 2110.04544); CoPrompt, Roy and Etemad 2023 (arXiv 2306.01195).
  """
  in_range("ratio", ratio, "[0, 1]")
  x = jnp.asarray(x)
  return ratio * jax.nn.relu(linear(jax.nn.relu(linear(x, params["down"])), params["up"])) + (1 - ratio) * x
