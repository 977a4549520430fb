"""HiRA: the weight times one plus a low-rank matrix, entry by entry."""

from typing import Any

import jax
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxft.leaves.sums import Formed
from jaxft.signatures import explain_errors
from jaxft.transforms.low_rank.inits import uniform_then_zero
from jaxft.transforms.matrices import adapt_matrices, check_rank, in_float32
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice


@explain_errors
def hira(select: Choice = "**/kernel", *, rank: int = 32, dtype: DTypeLike | None = None) -> ParamTransform:
  """HiRA: `w * (1 + a @ b)`, an update of high rank from LoRA's parameters, at the cost of full tuning.

  >>> _, trainable = hira("up", rank=2).split(jax.random.key(0), {"up": jnp.ones((4, 3))})
  >>> jax.tree.map(jnp.shape, trainable)
  {'up': {'a': (4, 2), 'b': (2, 3)}}

  Args:
    select: a choice of matrices.
    rank: r of the factors.
    dtype: of what trains; None takes float32.

  Raises:
    ValueError: rank is out of range; from `split`, as `lora`.

  Source: Huang et al. 2025, HiRA (ICLR 2025, openreview.net/forum?id=TwJrTz9cRS; it has no arXiv id); the form and the
  init are PEFT's.
  """
  rank = check_rank(rank)

  def start(key: jax.Array, w: Any, statistic: Any) -> tuple[Any, Any]:
    del statistic
    _, a, b = uniform_then_zero(key, w, rank)
    return w, {"a": a, "b": b}

  return adapt_matrices(select, start, lambda w, t: Formed(w, in_float32(t), _times_one_plus), dtype=dtype)


def _times_one_plus(w: Array, t: Any) -> Array:
  return w * (1 + t["a"] @ t["b"])
