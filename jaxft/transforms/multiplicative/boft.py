"""BOFT: weights rotated on their input side by butterflies of small blocks, and a factor for each output."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxft.leaves.scaled import Scaled
from jaxft.signatures import explain_errors
from jaxft.transforms.matrices import in_float32
from jaxft.transforms.multiplicative.block_rotations import Butterfly, cayley, check_block, skew_from_triu
from jaxft.transforms.multiplicative.multiplied import Multiplied, adapt_shapes
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice


@explain_errors
def boft(
    select: Choice = "**/kernel", *, block: int = 4, factors: int = 1, dtype: DTypeLike | None = None
) -> ParamTransform:
  """BOFT: `(G_m ... G_1) @ w * s`: block rotations between butterfly permutations, and a factor for each output.

  With `log2(m / b) + 1` factors every input reaches every other; one factor is OFT with a scale.

  >>> _, trainable = boft("up", block=2).split(jax.random.key(0), {"up": jnp.ones((4, 3))})
  >>> jax.tree.map(jnp.shape, trainable)
  {'up': {'scale': (1, 3), 'skew': (1, 2, 1)}}

  Args:
    select: a choice of matrices `[m, n]`.
    block: b, the size of the rotations.
    factors: how many G there are; b * 2^(factors - 1) must divide m, and b be even where factors > 1.
    dtype: of the trained numbers, `skew [factors, m / b, b (b - 1) / 2]` and `scale [1, n]`; None takes float32.

  Raises:
    ValueError: block or factors out of range; from `split`: a matrix of a size that does not divide.

  Source: Liu et al. 2023 (arXiv 2311.06243), with the exact Cayley transform. PEFT's `boft_R` R stands for the skew
  matrix (R - R^T) / 2, of which the upper triangle is kept here; `scale` is its `boft_s`, transposed. PEFT runs more
  than one factor only with its CUDA extension.
  """
  check_block(block)
  if not (isinstance(factors, int) and factors >= 1):
    raise ValueError(f"factors must be an integer >= 1; got {factors!r}")
  if factors > 1 and block % 2:
    raise ValueError(f"block must be even where factors > 1; got block={block}, factors={factors}")
  span, entries = block * 2 ** (factors - 1), block * (block - 1) // 2

  def init(key: jax.Array, m: int, n: int) -> dict[str, Array]:
    return {"skew": jnp.zeros((factors, m // block, entries)), "scale": jnp.ones((1, n))}

  def leaf(w: Any, t: dict[str, Array]) -> Scaled:
    return Scaled(Multiplied(w, Butterfly(cayley(skew_from_triu(in_float32(t["skew"]), block)))), t["scale"])

  def problem(m: int, n: int) -> str:
    return f"{factors} factors of blocks of {block} take a multiple of {span} rows" if m % span else ""

  return adapt_shapes(select, init, leaf, problem=problem, dtype=dtype)
