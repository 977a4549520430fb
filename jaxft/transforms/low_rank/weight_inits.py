"""Inits of `low_rank` that look at the weight: PiSSA, OLoRA, MiCA, LoftQ.

    low_rank("**/kernel", rank=16, scale=2.0, init=pissa)

Those that start the factors off zero take their product out of the weight that stays frozen.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxft.leaves.structured import materialize
from jaxft.transforms.low_rank.lora import FactorInit, low_rank
from jaxft.transforms.matrices import check_count, check_rank
from jaxft.transforms.protocol import ParamTransform
from jaxft.transforms.quantize import quantize_array
from jaxft.tree.choice import Choice
from jaxft.tree.paths import is_structured


def residual(w: Any, a: Array, b: Array, scale: float) -> tuple[Array, Array, Array]:
  """`(w - scale * a @ b, a, b)`: what an init returns that starts off zero."""
  return (w.astype(jnp.float32) - scale * a @ b).astype(w.dtype), a, b


def plain(w: Any) -> Float[Array, "m n"]:
  """w in float32, for an init that decomposes it.

  Raises:
    TypeError: w is a structured leaf, which an init that changes it would have to form.
  """
  if is_structured(w):
    raise TypeError(f"the init changes the weight, so it takes arrays; got a {type(w).__name__}: quantize after it")
  return w.astype(jnp.float32)


def leading_factors(w: Float[Array, "m n"], rank: int, scale: float) -> tuple[Array, Array]:
  """The factors `a, b` of the best approximation of w / scale of that rank, each with the root of the singular values.

  Raises:
    ValueError: rank exceeds the smaller side of w.
  """
  check_rank_fits(rank, w)
  u, s, v = jnp.linalg.svd(w, full_matrices=False)
  root = jnp.sqrt(s[:rank] / scale)
  return u[:, :rank] * root, root[:, None] * v[:rank]


def check_rank_fits(rank: int, w: Any) -> None:
  if rank > min(w.shape):
    raise ValueError(f"rank must be at most the smaller side of each matrix; got {rank} for {tuple(w.shape)}")


def pissa(key: jax.Array, w: Any, rank: int, scale: float, statistic: Any) -> tuple[Any, Array, Array]:
  """PiSSA: the factors are the leading singular components of w; the rest stays frozen.

  Source: Meng et al. 2024 (arXiv 2404.02948); the components are divided by the scale, as in PEFT.
  """
  del key, statistic
  return residual(w, *leading_factors(plain(w), rank, scale), scale)


def olora(key: jax.Array, w: Any, rank: int, scale: float, statistic: Any) -> tuple[Any, Array, Array]:
  """OLoRA: from the QR decomposition `w^T = q r`, b is the first columns of q, a the first rows of r, transposed.

  Source: Büyükakyüz 2024 (arXiv 2406.01775). As in PEFT, the factors are not divided by the scale.
  """
  del key, statistic
  check_rank_fits(rank, w)
  q, r = jnp.linalg.qr(plain(w).T)
  return residual(w, r[:rank].T, q[:, :rank].T, scale)


def minor_outputs(key: jax.Array, w: Any, rank: int, scale: float, statistic: Any) -> tuple[Any, Array, Array]:
  """a zero, and b the singular vectors on the output side of the smallest singular values: the init of MiCA."""
  del key, scale, statistic
  check_rank_fits(rank, w)
  _, _, v = jnp.linalg.svd(materialize(w).astype(jnp.float32), full_matrices=False)
  return w, jnp.zeros((w.shape[0], rank)), v[-rank:]


def mica(select: Choice = "**/kernel", *, rank: int = 8, alpha: float = 16.0) -> ParamTransform:
  """MiCA: `w + alpha / r * a @ b`, b the minor singular vectors of the outputs, frozen; only a trains, from zero.

  Args:
    select: a filter over matrices.
    rank: r of the factors, at most the smaller side.
    alpha: numerator of the scale.

  Raises:
    ValueError: rank is out of range; from `split`, as `low_rank`, or where rank exceeds a matrix's smaller side.

  Source: arXiv 2604.01694, as in PEFT: b is its `lora_B` transposed, the last left singular vectors in its layout.
  """
  rank = check_rank(rank)
  return low_rank(select, rank=rank, scale=alpha / rank, init=minor_outputs, train="a")


def loftq(*, format: Literal["int8", "nf4"] = "nf4", block: int = 64, rounds: int = 1) -> FactorInit:
  """LoftQ: alternates `q = quantize(w - s a b)` and `a, b = ` the leading components of `(w - q) / s`; q stays frozen.

  Args:
    format, block: see `quantize_array`.
    rounds: of the alternation, at least 1.

  Returns:
    An init of `low_rank`.

  Raises:
    ValueError: rounds is no positive integer.

  Source: Li et al. 2023 (arXiv 2310.08659), its algorithm 1.
  """
  rounds = check_count("rounds", rounds)

  def init(key: jax.Array, w: Any, rank: int, scale: float, statistic: Any) -> tuple[Any, Array, Array]:
    del key, statistic
    exact = plain(w)
    rest = exact
    for _ in range(rounds):
      q = quantize_array(rest, format=format, block=block)
      a, b = leading_factors(exact - q.materialize(), rank, scale)
      rest = exact - scale * a @ b
    return q.astype(w.dtype), a, b

  return init
