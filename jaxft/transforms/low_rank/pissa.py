"""PiSSA: factors that start as the leading singular components of the weight."""

from typing import Any

import jax
from jaxtyping import Array

from jaxft.transforms.low_rank.inits import leading_factors, plain, residual


def pissa(key: jax.Array, w: Any, rank: int, scale: float, statistic: Any) -> tuple[Any, Array, Array]:
  """PiSSA: the factors are the leading singular components of w; the rest stays frozen: `lora(init=pissa)`.

  Source: Meng et al. 2024 (arXiv 2404.02948); the components are divided by the scale, as in PEFT.
  """
  del key, statistic
  return residual(w, *leading_factors(plain(w), rank, scale), scale)
