"""Orthogonal fine-tuning: weights rotated on their input side by small blocks (OFT), or by butterflies of them (BOFT).

A rotation turns the activations, `(x R) w`, and never the weight: `b` products per input in place of one per output.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxft.leaves.structured import Scaled
from jaxft.transforms.multiplicative.multiplied import Multiplied, adapt_shapes
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice


def skew_from_triu(values: Float[Array, "... entries"], size: int) -> Float[Array, "... size size"]:
  """The skew-symmetric matrix whose upper triangle, row by row, is `values`; entries = size (size - 1) / 2.

  Raises:
    ValueError: another number of entries.
  """
  entries = size * (size - 1) // 2
  if values.shape[-1] != entries:
    raise ValueError(f"values must have {entries} entries for a matrix of size {size}; got {values.shape[-1]}")
  upper = jnp.zeros((*values.shape[:-1], size, size), values.dtype).at[(..., *np.triu_indices(size, 1))].set(values)
  return upper - jnp.swapaxes(upper, -1, -2)


def cayley(skew: Float[Array, "... b b"], *, terms: int | None = None) -> Float[Array, "... b b"]:
  """The rotation of a skew-symmetric Q: `(I - Q)(I + Q)^-1`, or PEFT's truncated series for the inverse of that.

      terms None     (I - Q)(I + Q)^-1                                  orthogonal to rounding
      terms k        I + 2 Q + 2 Q^2 + ... + 2 Q^(k-2) + Q^(k-1)        near (I + Q)(I - Q)^-1: the inverse rotation

  The two turn in opposite directions: numbers trained with one are not to be read with the other.

  Args:
    skew: Q, or a batch of them.
    terms: None, or how many terms of the Cayley-Neumann series, at least 4; PEFT's default is 5.

  Raises:
    ValueError: terms below 4.
  """
  _check_terms(terms)
  eye = jnp.broadcast_to(jnp.eye(skew.shape[-1], dtype=skew.dtype), skew.shape)
  if terms is None:
    return jnp.linalg.solve(eye + skew, eye - skew)  # the two factors commute
  out = 2 * eye + skew
  for _ in range(terms - 3):
    out = 2 * eye + skew @ out
  return eye + skew @ out


def _check_terms(terms: int | None) -> None:
  if terms is not None and not (isinstance(terms, int) and terms >= 4):
    raise ValueError(f"terms must be None (exact) or an integer >= 4; got {terms!r}")


@partial(jax.tree_util.register_dataclass, data_fields=["factors"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Butterfly:
  """The linear map `G_m ... G_1`, `G_j = P_j blkdiag(factors[j - 1]) P_j^T`, factors `[..., m, n / b, b, b]`.

  P_j brings together the halves of blocks that lie 2^(j-1) half blocks apart; P_1 is the identity, so that one factor
  is a block-diagonal matrix.
  """

  factors: Any

  def __call__(self, x: Array) -> Array:
    for j in reversed(range(self.factors.shape[0])):
      x = self._factor(x, j, self.factors[j])
    return x

  def transposed(self, x: Array) -> Array:
    for j in range(self.factors.shape[0]):
      x = self._factor(x, j, jnp.swapaxes(self.factors[j], -1, -2))
    return x

  def _factor(self, x: Array, j: int, blocks: Array) -> Array:
    # As reshapes the permutations cost no gather: n = groups * 2 * 2^j * b/2, whose middle axes change places.
    *lead, n = x.shape
    b, stride = blocks.shape[-1], 2**j
    apart = (*lead, n // (b * stride), 2, stride, b // 2)
    together = (*lead, n // (b * stride), stride, 2, b // 2)
    if stride > 1:
      x = x.reshape(apart).swapaxes(-3, -2)
    y = jnp.einsum("...kb,kbc->...kc", x.reshape(*lead, n // b, b), blocks.astype(x.dtype))
    if stride > 1:
      y = y.reshape(together).swapaxes(-3, -2)
    return y.reshape(*lead, n)


def oft(
    select: Choice = "**/kernel", *, block: int = 32, terms: int | None = None, dtype: jnp.dtype | None = None
) -> ParamTransform:
  """OFT: `blkdiag(R_1, ..., R_{m/b}) @ w`, each R a rotation that starts at the identity; row by row, `(x R) w`.

  Args:
    select: a filter over matrices `[m, n]`.
    block: b, the size of the rotations; must divide m.
    terms: None for the exact Cayley transform, or the number of terms of PEFT's series; see `cayley`.
    dtype: of the trained numbers, `skew [m / b, b (b - 1) / 2]`; None takes float32.

  Raises:
    ValueError: block below 2, terms below 4; from `split`: block does not divide m.

  Sources: Qiu et al. 2023 (arXiv 2306.07280); the series, Qiu et al. 2025 (arXiv 2506.19847). The numbers are those of
  PEFT's `oft_R.weight`. PEFT's default is `terms=5`; here it is exact. Without its constrained variant and block
  sharing.
  """
  _check_block(block)
  _check_terms(terms)
  entries = block * (block - 1) // 2

  def leaf(w: Any, t: dict[str, Array]) -> Multiplied:
    blocks = cayley(skew_from_triu(t["skew"], block), terms=terms)
    return Multiplied(w, Butterfly(blocks[..., None, :, :, :]))

  return adapt_shapes(
      select, lambda key, m, n: {"skew": jnp.zeros((m // block, entries), dtype or jnp.float32)}, leaf,
      problem=lambda m, n: f"block {block} does not divide its {m} rows" if m % block else "",
  )


def boft(
    select: Choice = "**/kernel", *, block: int = 4, factors: int = 1, dtype: jnp.dtype | None = None
) -> ParamTransform:
  """BOFT: `(G_m ... G_1) @ w * s`: block rotations between butterfly permutations, and a factor for each output.

  With `log2(m / b) + 1` factors every input reaches every other; one factor is OFT with a scale.

  Args:
    select: a filter over matrices `[m, n]`.
    block: b, the size of the rotations.
    factors: how many G there are; b * 2^(factors - 1) must divide m, and b be even where factors > 1.
    dtype: of the trained numbers, `skew [factors, m / b, b (b - 1) / 2]` and `scale [1, n]`; None takes float32.

  Raises:
    ValueError: block or factors out of range; from `split`: a matrix of a size that does not divide.

  Source: Liu et al. 2023 (arXiv 2311.06243), with the exact Cayley transform. PEFT's `boft_R` R stands for the skew
  matrix (R - R^T) / 2, of which the upper triangle is kept here; `scale` is its `boft_s`, transposed. PEFT runs more
  than one factor only with its CUDA extension.
  """
  _check_block(block)
  if not (isinstance(factors, int) and factors >= 1):
    raise ValueError(f"factors must be an integer >= 1; got {factors!r}")
  if factors > 1 and block % 2:
    raise ValueError(f"block must be even where factors > 1; got block={block}, factors={factors}")
  span, entries, dtype = block * 2 ** (factors - 1), block * (block - 1) // 2, dtype or jnp.float32

  def init(key: jax.Array, m: int, n: int) -> dict[str, Array]:
    return {"skew": jnp.zeros((factors, m // block, entries), dtype), "scale": jnp.ones((1, n), dtype)}

  def leaf(w: Any, t: dict[str, Array]) -> Scaled:
    return Scaled(Multiplied(w, Butterfly(cayley(skew_from_triu(t["skew"], block)))), t["scale"])

  def problem(m: int, n: int) -> str:
    return f"{factors} factors of blocks of {block} take a multiple of {span} rows" if m % span else ""

  return adapt_shapes(select, init, leaf, problem=problem)


def _check_block(block: int) -> None:
  if not (isinstance(block, int) and block >= 2):
    raise ValueError(f"block must be an integer >= 2; got {block!r}")
