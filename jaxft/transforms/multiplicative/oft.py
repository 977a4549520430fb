"""OFT: weights rotated on their input side by small blocks."""

from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxft.signatures import explain_errors
from jaxft.transforms.matrices import in_float32
from jaxft.transforms.multiplicative.block_rotations import (
  Butterfly,
  cayley,
  check_block,
  check_terms,
  skew_from_triu,
)
from jaxft.transforms.multiplicative.multiplied import Multiplied, adapt_shapes
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice


@explain_errors
def oft(
    select: Choice = "**/kernel", *, block: int = 32, terms: int | None = None, dtype: DTypeLike | None = None
) -> ParamTransform:
  """OFT: `blkdiag(R_1, ..., R_{m/b}) @ w`, each R a rotation that starts at the identity; row by row, `(x R) w`.

  >>> import jax
  >>> _, trainable = oft("up", block=2).split(jax.random.key(0), {"up": jnp.ones((4, 3))})
  >>> jax.tree.map(jnp.shape, trainable)
  {'up': {'skew': (2, 1)}}

  Args:
    select: a choice of matrices `[m, n]`.
    block: b, the size of the rotations; must divide m.
    terms: None for the exact Cayley transform, or the number of terms of PEFT's series; see `cayley`.
    dtype: of the trained numbers, `skew [m / b, b (b - 1) / 2]`; None takes float32.

  Raises:
    ValueError: block below 2, terms below 4; from `split`: block does not divide m.

  Sources: Qiu et al. 2023 (arXiv 2306.07280); the series, Qiu et al. 2025 (arXiv 2506.19847). The numbers are those of
  PEFT's `oft_R.weight`. PEFT's default is `terms=5`; here it is exact. Without its constrained variant and block
  sharing.
  """
  check_block(block)
  check_terms(terms)
  entries = block * (block - 1) // 2

  def leaf(w: Any, t: dict[str, Array]) -> Multiplied:
    blocks = cayley(skew_from_triu(in_float32(t["skew"]), block), terms=terms)
    return Multiplied(w, Butterfly(blocks[..., None, :, :, :]))

  return adapt_shapes(
      select, lambda key, m, n: {"skew": jnp.zeros((m // block, entries))}, leaf,
      problem=lambda m, n: f"block {block} does not divide its {m} rows" if m % block else "", dtype=dtype,
  )
