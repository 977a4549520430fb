"""What an init of `lora` is, and what inits share.

An init gives, for one matrix, what stays frozen of it and where the two factors start. It is a plain function, so that
anyone can write one; `pissa`, `olora`, `mica` and `from_directions` are such, `corda(...)`, `loftq(...)` and
`lora_ga(...)` make one. Those that start the factors off zero take their product out of the weight that stays frozen.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxft.finite import svd
from jaxft.transforms.matrices import kaiming_uniform
from jaxft.tree.paths import is_structured

# (key, weight [m, n], rank, scale, statistic) -> (weight that stays frozen [m, n], a [m, rank], b [rank, n])
FactorInit = Callable[[jax.Array, Any, int, float, Any], tuple[Any, jax.Array, jax.Array]]


def uniform_then_zero(
    key: jax.Array, w: Any, rank: int, scale: float = 1.0, statistic: Any = None
) -> tuple[Any, jax.Array, jax.Array]:
  """LoRA's own init: a uniform in ±1/sqrt(m) (PEFT's Kaiming-uniform with a = sqrt 5), b zero, w unchanged."""
  del scale, statistic
  m, n = w.shape
  return w, kaiming_uniform(key, (m, rank), m), jnp.zeros((rank, n), jnp.float32)


def residual(w: Any, a: Array, b: Array, scale: float) -> tuple[Array, Array, Array]:
  """`(w - scale * a @ b, a, b)`: what an init returns that starts off zero."""
  return (w.astype(jnp.float32) - scale * a @ b).astype(w.dtype), a, b


def plain(w: Any) -> Float[Array, "m n"]:
  """w in float32, for an init that decomposes it.

  Raises:
    TypeError: w is a structured leaf, which an init that changes it would have to form.
  """
  if is_structured(w):
    raise TypeError(f"the init changes the weight, so it takes arrays; got a {type(w).__name__}: quantize after it")
  return w.astype(jnp.float32)


def leading_factors(w: Float[Array, "m n"], rank: int, scale: float) -> tuple[Array, Array]:
  """The factors `a, b` of the best approximation of w / scale of that rank, each with the root of the singular values.

  Raises:
    ValueError: rank exceeds the smaller side of w, or the scale is not above 0.
  """
  check_rank_fits(rank, w)
  if not scale > 0:
    raise ValueError(f"alpha must be above 0 for factors of the weight itself; got a scale of {scale}")
  u, s, v = svd(w)
  root = jnp.sqrt(s[:rank] / scale)
  return u[:, :rank] * root, root[:, None] * v[:rank]


def check_rank_fits(rank: int, w: Any) -> None:
  if rank > min(w.shape):
    raise ValueError(f"rank must be at most the smaller side of each matrix; got {rank} for {tuple(w.shape)}")


def check_statistic(statistic: Any, shape: tuple[int, ...], what: str) -> None:
  if statistic is None or tuple(statistic.shape) != tuple(shape):
    got = "None" if statistic is None else f"shape {tuple(statistic.shape)}"
    raise ValueError(f"statistics must give each matrix {what}, here of shape {tuple(shape)}; got {got}")
