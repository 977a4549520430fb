"""DeLoRA: a low-rank update whose size is a number of its own, apart from the directions of its factors."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxft.leaves.annotated import Annotated
from jaxft.leaves.structured import LowRank, materialize
from jaxft.transforms.low_rank.lora import uniform_then_zero
from jaxft.transforms.matrices import adapt_matrices, check_rank
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice

SMALLEST_NORM = 1e-4  # below it the norm of a component counts as this, so that one that starts at zero can move


def delora(select: Choice = "**/kernel", *, rank: int = 8, strength: float = 15.0) -> ParamTransform:
  """DeLoRA: `w + diag(|w|) @ a @ diag(strength / (r |a_k| |b_k|)) @ b`, |w| the norms of the rows of w at the start.

  Args:
    select: a filter over matrices.
    rank: r of the factors.
    strength: lambda, where the trained number that bounds the update starts.

  Raises:
    ValueError: rank is out of range; from `split`, as `low_rank`.

  Source: Bini et al. 2025 (arXiv 2503.18225); norms are clamped as in PEFT, b starts at zero.
  """
  rank = check_rank(rank)

  def start(key: jax.Array, w: Any, statistic: Any) -> tuple[Any, Any]:
    del statistic
    _, a, b = uniform_then_zero(key, w, rank)
    rows = jnp.linalg.norm(materialize(w).astype(jnp.float32), axis=-1)
    return Annotated(w, {"rows": rows}), {"a": a, "b": b, "strength": jnp.float32(strength)}

  def adapt(frozen: Annotated, t: Any) -> LowRank:
    sizes = _norms(t["a"], -2) * _norms(t["b"], -1)
    factors = t["strength"][..., None] / (rank * sizes)
    a = frozen.note["rows"][..., :, None] * t["a"] * factors[..., None, :]
    return LowRank(frozen.w, a, t["b"])

  return adapt_matrices(select, start, adapt)


def _norms(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
  # Clamped before the root, whose derivative at zero is infinite.
  return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=axis), SMALLEST_NORM**2))
