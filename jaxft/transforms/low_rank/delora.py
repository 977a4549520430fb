"""DeLoRA: a low-rank update whose size is a number of its own, apart from the directions of its factors."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxft.leaves.annotated import Annotated
from jaxft.leaves.low_rank import LowRank
from jaxft.leaves.materialize import materialize
from jaxft.signatures import explain_errors
from jaxft.transforms.low_rank.inits import uniform_then_zero
from jaxft.transforms.matrices import adapt_matrices, check_dtype, check_rank, in_float32
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice

SMALLEST_NORM = 1e-4  # below it the norm of a component counts as this, so that one that starts at zero can move


@explain_errors
def delora(
    select: Choice = "**/kernel", *, rank: int = 8, strength: float = 15.0, dtype: DTypeLike | None = None
) -> ParamTransform:
  """DeLoRA: `w + diag(|w|) @ a @ diag(strength / (r |a_k| |b_k|)) @ b`, |w| the norms of the rows of w at the start.

  >>> _, trainable = delora("up", rank=2).split(jax.random.key(0), {"up": jnp.ones((4, 3))})
  >>> jax.tree.map(jnp.shape, trainable)
  {'up': {'a': (4, 2), 'b': (2, 3), 'strength': ()}}

  Args:
    select: a choice of matrices.
    rank: r of the factors.
    strength: lambda, where the trained number that bounds the update starts.
    dtype: of the factors; None takes float32. The strength is float32.

  Raises:
    ValueError: rank is out of range; from `split`, as `lora`.

  Source: Bini et al. 2025 (arXiv 2503.18225); norms are clamped as in PEFT, b starts at zero.
  """
  rank = check_rank(rank)
  dtype = check_dtype(dtype)

  def start(key: jax.Array, w: Any, statistic: Any) -> tuple[Any, Any]:
    del statistic
    _, a, b = uniform_then_zero(key, w, rank)
    rows = jnp.linalg.norm(materialize(w).astype(jnp.float32), axis=-1)
    return Annotated(w, {"rows": rows}), {"a": a.astype(dtype), "b": b.astype(dtype), "strength": jnp.float32(strength)}

  def adapt(frozen: Annotated, t: Any) -> LowRank:
    t = in_float32(t)
    sizes = _norms(t["a"], -2) * _norms(t["b"], -1)
    factors = t["strength"][..., None] / (rank * sizes)
    a = frozen.note["rows"][..., :, None] * t["a"] * factors[..., None, :]
    return LowRank(frozen.w, a, t["b"])

  return adapt_matrices(select, start, adapt, oriented=True)


def _norms(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
  # Clamped before the root, whose derivative at zero is infinite.
  return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=axis), SMALLEST_NORM**2))
