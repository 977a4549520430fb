"""LoHa: an update that is the element-wise product of two low-rank matrices."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxft.checks import in_range
from jaxft.leaves.low_rank import LowRank
from jaxft.leaves.sums import Formed
from jaxft.signatures import explain_errors
from jaxft.transforms.matrices import adapt_matrices, check_rank, in_float32, kaiming_uniform
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice


def khatri_rao(x: Float[Array, "... m r"], y: Float[Array, "... m q"]) -> Float[Array, "... m rq"]:
  """Row-wise Kronecker product: `(x1 y1) * (x2 y2) = khatri_rao(x1, x2) @ khatri_rao(y1^T, y2^T)^T`."""
  return (x[..., :, None] * y[..., None, :]).reshape(*x.shape[:-1], -1)


@explain_errors
def loha(
    select: Choice = "**/kernel", *, rank: int = 8, alpha: float = 8.0, dtype: DTypeLike | None = None
) -> ParamTransform:
  """LoHa: `w + alpha / r * (a1 @ b1) * (a2 @ b2)`, an update of rank up to r^2 from twice LoRA's parameters.

  While r^2 (m + n) < m n it is multiplied as the low-rank matrix of rank r^2 that it is; beyond, it is formed.

  >>> _, trainable = loha("up", rank=2).split(jax.random.key(0), {"up": jnp.ones((4, 3))})
  >>> jax.tree.map(jnp.shape, trainable)
  {'up': {'a1': (4, 2), 'a2': (4, 2), 'b1': (2, 3), 'b2': (2, 3)}}

  Args:
    select: a choice of matrices.
    rank: r of the four factors.
    alpha: numerator of the scale.
    dtype: of what trains; None takes float32.

  Raises:
    ValueError: rank is out of range; from `split`, as `lora`.

  Source: Hyeon-Woo et al. 2021, FedPara (arXiv 2108.06098); LyCORIS, Yeh et al. 2023 (arXiv 2309.14859). As in PEFT,
  a2 starts at zero and the others Kaiming-uniform.
  """
  rank = check_rank(rank)
  in_range("alpha", alpha)
  scale = alpha / rank

  def start(key: jax.Array, w: Any, statistic: Any) -> tuple[Any, Any]:
    del statistic
    m, n = w.shape
    k1, k2, k3 = jax.random.split(key, 3)
    return w, {"a1": kaiming_uniform(k1, (m, rank), m), "b1": kaiming_uniform(k2, (rank, n), rank),
               "a2": jnp.zeros((m, rank)), "b2": kaiming_uniform(k3, (rank, n), rank)}

  def adapt(w: Any, t: Any) -> Any:
    (m, n), t = w.shape[-2:], in_float32(t)
    if rank**2 * (m + n) >= m * n:
      return Formed(w, {**t, "a1": scale * t["a1"]}, _add_product)
    transposed = lambda x: jnp.swapaxes(x, -1, -2)
    b = transposed(khatri_rao(transposed(t["b1"]), transposed(t["b2"])))
    return LowRank(w, khatri_rao(t["a1"], t["a2"]), b, scale=scale)

  return adapt_matrices(select, start, adapt, dtype=dtype)


def _add_product(w: Array, t: Any) -> Array:
  return w + (t["a1"] @ t["b1"]) * (t["a2"] @ t["b2"])
