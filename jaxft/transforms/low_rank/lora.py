"""Low-rank adaptation: `w + scale * a @ b` with w frozen and the two thin factors trained."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxft.checks import nearest
from jaxft.leaves.annotated import Annotated
from jaxft.leaves.structured import LowRank
from jaxft.transforms.matrices import adapt_matrices, check_dropout, check_rank, kaiming_uniform
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice
from jaxft.tree.paths import Tree, is_structured

# (key, weight [m, n], rank, scale, statistic) -> (weight that stays frozen [m, n], a [m, rank], b [rank, n])
FactorInit = Callable[[jax.Array, Any, int, float, Any], tuple[Any, jax.Array, jax.Array]]

# The inits of `jaxft.transforms`, for errors: those after the first two are made by a call, with options of their own.
INITS = ("pissa", "olora", "from_directions", "corda", "loftq", "lora_ga")


def uniform_then_zero(
    key: jax.Array, w: Any, rank: int, scale: float = 1.0, statistic: Any = None
) -> tuple[Any, jax.Array, jax.Array]:
  """LoRA's own init: a uniform in ±1/sqrt(m) (PEFT's Kaiming-uniform with a = sqrt 5), b zero, w unchanged."""
  del scale, statistic
  m, n = w.shape
  return w, kaiming_uniform(key, (m, rank), m), jnp.zeros((rank, n), jnp.float32)


def low_rank(
    select: Choice = "**/kernel",
    *,
    rank: int = 8,
    scale: float = 1.0,
    dropout: float = 0.0,
    init: FactorInit = uniform_then_zero,
    statistics: Tree | None = None,
    train: Literal["ab", "a", "b"] = "ab",
    dtype: jnp.dtype | None = None,
) -> ParamTransform:
  """Trains a low-rank update of each matching matrix: the primitive behind LoRA and all methods of its kin.

  Args:
    select: a filter; every leaf it matches must be a matrix `[m, n]`, or a stack of them `[L, m, n]`.
    rank: r of the factors a `[m, r]` and b `[r, n]`.
    scale: the constant factor of the update.
    dropout: rate in [0, 1) on the input of a; active where `seed_dropout` has set a key.
    init: gives, for one matrix, what stays frozen and the two factors; it is told `scale`, and the matrix's statistic.
    statistics: for an init that looks at data: by path, one entry a matrix, or one for all below a path; see
      `jaxft.transforms.matrices.adapt_matrices`.
    train: which factors train; the other stays as drawn.
    dtype: of the factors; None takes float32.

  Raises (the last from `split`):
    TypeError: init is no function, such as the name of one.
    ValueError: rank, dropout or train is out of range; the filter matches nothing, or a leaf that is not a matrix (all
      are named), or one without statistics.
  """
  rank = check_rank(rank)
  check_dropout(dropout)
  if train not in ("ab", "a", "b"):
    raise ValueError(f"train must be 'ab', 'a' or 'b'; got {train!r}")
  if not callable(init):
    raise TypeError(
        f"init must be a function (key, w, rank, scale, statistic) -> (w, a, b), such as those of jaxft.transforms; "
        f"got {init!r}; {nearest(str(init), INITS)}")
  dtype = jnp.dtype(dtype or jnp.float32)

  def start(key: jax.Array, w: Any, statistic: Any) -> tuple[Any, Any]:
    w, a, b = init(key, w, rank, scale, statistic)
    factors = {"a": a.astype(dtype), "b": b.astype(dtype)}
    if dtype != jnp.float32 and not is_structured(w):  # what rounding takes off the factors stays in the weight
      lost = a @ b - jnp.matmul(factors["a"], factors["b"], preferred_element_type=jnp.float32)
      w = (w.astype(jnp.float32) + scale * lost).astype(w.dtype)
    fixed = {name: x for name, x in factors.items() if name not in train}
    return Annotated(w, fixed) if fixed else w, {name: x for name, x in factors.items() if name in train}

  def adapt(w: Any, t: Any) -> LowRank:
    if train != "ab":
      w, t = w.w, {**t, **w.note}
    return LowRank(w, t["a"], t["b"], scale=scale, dropout=dropout)

  return adapt_matrices(select, start, adapt, statistics=statistics)


def lora(
    select: Choice = "**/kernel", *, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0,
    rank_stabilized: bool = False, dtype: jnp.dtype | None = None,
) -> ParamTransform:
  """LoRA: `w + alpha / r * a @ b`; rsLoRA divides by sqrt(r), so that the update keeps its size as r grows.

  Args:
    select: a filter over matrices.
    rank: r of the factors.
    alpha: numerator of the scale.
    dropout: rate on the input of a.
    rank_stabilized: divide alpha by sqrt(r) in place of r.
    dtype: of the factors; None takes float32.

  Sources: Hu et al. 2021 (arXiv 2106.09685); Kalajdzievski 2023 (arXiv 2312.03732) for rsLoRA. The factors are in JAX
  layout: a is the transpose of PEFT's `lora_A`, b of `lora_B`.
  """
  rank = check_rank(rank)
  scale = alpha / (math.sqrt(rank) if rank_stabilized else rank)
  return low_rank(select, rank=rank, scale=scale, dropout=dropout, dtype=dtype)
