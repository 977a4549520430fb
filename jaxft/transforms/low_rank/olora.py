"""OLoRA: factors that start from the QR decomposition of the weight."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxft.signatures import explain_errors
from jaxft.transforms.low_rank.inits import check_rank_fits, plain, residual


@explain_errors
def olora(key: jax.Array, w: Any, rank: int, scale: float, statistic: Any) -> tuple[Any, Array, Array]:
  """OLoRA: from the QR decomposition `w^T = q r`, b is the first columns of q, a the first rows of r, transposed.

  An init, `lora(init=olora)`.

  >>> from jaxft.transforms import lora
  >>> params = {"up": jnp.diag(jnp.array([3.0, 2.0, 1.0]))}
  >>> _, trainable = lora("up", rank=2, init=olora).split(jax.random.key(0), params)
  >>> jnp.linalg.norm(trainable["up"]["b"], axis=1).round(3)
  Array([1., 1.], dtype=float32)

  Source: Büyükakyüz 2024 (arXiv 2406.01775). As in PEFT, the factors are not divided by the scale.
  """
  del key, statistic
  check_rank_fits(rank, w)
  q, r = jnp.linalg.qr(plain(w).T)
  return residual(w, r[:rank].T, q[:, :rank].T, scale)
