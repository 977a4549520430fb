"""PiSSA: factors that start as the leading singular components of the weight."""

from typing import Any

import jax
from jaxtyping import Array

from jaxft.signatures import explain_errors
from jaxft.transforms.low_rank.inits import leading_factors, plain, residual


@explain_errors
def pissa(key: jax.Array, w: Any, rank: int, scale: float, statistic: Any) -> tuple[Any, Array, Array]:
  """PiSSA: the factors are the leading singular components of w; the rest stays frozen: `lora(init=pissa)`.

  >>> import jax.numpy as jnp
  >>> from jaxft.transforms import lora
  >>> params = {"up": jnp.diag(jnp.array([3.0, 2.0, 1.0]))}
  >>> frozen, _ = lora("up", rank=1, init=pissa).split(jax.random.key(0), params)
  >>> jnp.linalg.norm(frozen["up"], axis=0).round(3)
  Array([0., 2., 1.], dtype=float32)

  Source: Meng et al. 2024 (arXiv 2404.02948); the components are divided by the scale, as in PEFT.
  """
  del key, statistic
  return residual(w, *leading_factors(plain(w), rank, scale), scale)
