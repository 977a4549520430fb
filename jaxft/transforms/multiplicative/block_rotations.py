"""What OFT and BOFT share: rotations of small blocks from skew-symmetric matrices, and butterflies of them.

A rotation turns the activations, `(x R) w`, and never the weight: `b` products per input in place of one per output.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxft.signatures import explain_errors


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


@explain_errors
def cayley(skew: Float[Array, "... b b"], *, terms: int | None = None) -> Float[Array, "... b b"]:
  """The rotation of a skew-symmetric Q: `(I - Q)(I + Q)^-1`, or PEFT's truncated series for the inverse of that.

      terms None     (I - Q)(I + Q)^-1                                  orthogonal to rounding
      terms k        I + 2 Q + 2 Q^2 + ... + 2 Q^(k-2) + Q^(k-1)        near (I + Q)(I - Q)^-1: the inverse rotation

  The two turn in opposite directions: numbers trained with one are not to be read with the other.

  >>> cayley(skew_from_triu(jnp.array([1.0]), 2)).round(3) + 0.0
  Array([[ 0., -1.],
         [ 1.,  0.]], dtype=float32)

  Args:
    skew: Q, or a batch of them.
    terms: None, or how many terms of the Cayley-Neumann series, at least 4; PEFT's default is 5.

  Raises:
    ValueError: terms below 4.
  """
  check_terms(terms)
  eye = jnp.broadcast_to(jnp.eye(skew.shape[-1], dtype=skew.dtype), skew.shape)
  if terms is None:
    return jnp.linalg.solve(eye + skew, eye - skew)  # the two factors commute
  out = 2 * eye + skew
  for _ in range(terms - 3):
    out = 2 * eye + skew @ out
  return eye + skew @ out


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


def check_terms(terms: int | None) -> None:
  if terms is not None and not (isinstance(terms, int) and terms >= 4):
    raise ValueError(f"terms must be None (exact) or an integer >= 4; got {terms!r}")


def check_block(block: int) -> None:
  if not (isinstance(block, int) and block >= 2):
    raise ValueError(f"block must be an integer >= 2; got {block!r}")
