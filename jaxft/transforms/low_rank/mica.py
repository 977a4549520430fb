"""MiCA: the inputs of the minor outputs train, the singular vectors on the output side that the weight uses least."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxft.finite import svd
from jaxft.leaves.materialize import materialize
from jaxft.signatures import explain_errors
from jaxft.transforms.low_rank.inits import check_rank_fits


@explain_errors
def mica(key: jax.Array, w: Any, rank: int, scale: float, statistic: Any) -> tuple[Any, Array, Array]:
  """MiCA: a is zero, b the singular vectors on the output side of the smallest singular values of w.

  The method trains a alone and keeps b where it is, `lora(init=mica, train="a")`: what trains is said in one place, and
  `lora(init=mica)` is LoRA from this start.

  >>> from jaxft.transforms import lora
  >>> params = {"up": jnp.diag(jnp.array([3.0, 2.0, 1.0]))}
  >>> transform = lora("up", rank=1, init=mica, train="a")
  >>> joined = transform.join(*transform.split(jax.random.key(0), params))
  >>> jnp.abs(joined["up"].b).round(3)
  Array([[0., 0., 1.]], dtype=float32)

  Source: arXiv 2604.01694, as in PEFT: b is its `lora_B` transposed, the last left singular vectors in its layout.
  """
  del key, scale, statistic
  check_rank_fits(rank, w)
  _, _, v = svd(materialize(w).astype(jnp.float32))
  return w, jnp.zeros((w.shape[0], rank)), v[-rank:]
