"""Low-rank adaptation: `w + scale * a @ b` with w frozen and the two thin factors trained."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.transforms.depth import layer_of, leaf_keys
from jaxft.transforms.filters import Filter, mask
from jaxft.transforms.leaves import LowRank
from jaxft.transforms.paths import is_leaf, leaves_with_paths, unzip_with_path
from jaxft.transforms.protocol import ParamTransform

# (key, weight [m, n], rank) -> (weight that stays frozen [m, n], a [m, rank], b [rank, n])
FactorInit = Callable[[jax.Array, Any, int], tuple[Any, jax.Array, jax.Array]]


def uniform_then_zero(key: jax.Array, w: Any, rank: int) -> tuple[Any, jax.Array, jax.Array]:
  """LoRA's own init: a uniform in ±1/sqrt(m) (PEFT's Kaiming-uniform with a = sqrt 5), b zero, w unchanged."""
  m, n = w.shape
  bound = 1.0 / math.sqrt(m)
  return w, jax.random.uniform(key, (m, rank), jnp.float32, -bound, bound), jnp.zeros((rank, n), jnp.float32)


def low_rank(
    select: Filter = "**/kernel",
    *,
    rank: int = 8,
    scale: float = 1.0,
    dropout: float = 0.0,
    init: FactorInit = uniform_then_zero,
    dtype: jnp.dtype | None = None,
) -> ParamTransform:
  """Trains a low-rank update of each matching matrix: the primitive behind LoRA and all methods of its kin.

  Args:
    select: a filter; every leaf it matches must be a matrix `[m, n]`, or a stack of them `[L, m, n]`.
    rank: r of the factors a `[m, r]` and b `[r, n]`.
    scale: the constant factor of the update.
    dropout: rate in [0, 1) on the input of a; active where `seed_dropout` has set a key.
    init: gives, for one matrix, what stays frozen and the two factors.
    dtype: of the factors; None takes float32.

  Raises (from `split`):
    ValueError: the filter matches nothing, or a leaf that is not a matrix (all are named).
  """
  _check_rank(rank)
  if not 0.0 <= dropout < 1.0:
    raise ValueError(f"dropout must lie in [0, 1); got {dropout}")
  dtype = dtype or jnp.float32

  def split(key: jax.Array, params):
    flags = mask(select, params)
    _check_matrices(params, flags)

    def factors(path: str, leaf: Any, chosen: bool) -> tuple[Any, Any]:
      if not chosen:
        return leaf, None
      keys = leaf_keys(key, path, leaf)
      make = lambda k, w: init(k, w, rank)
      w, a, b = jax.vmap(make)(keys, leaf) if keys.ndim else make(keys, leaf)
      return w, {"a": a.astype(dtype), "b": b.astype(dtype)}

    return unzip_with_path(factors, params, flags)

  def join(frozen, trainable):
    adapt = lambda w, t: w if t is None else LowRank(w, t["a"], t["b"], scale=scale, dropout=dropout)
    return jax.tree.map(adapt, frozen, trainable, is_leaf=is_leaf)

  return ParamTransform(split, join)


def _check_rank(rank: int) -> None:
  if not (isinstance(rank, int) and rank >= 1):
    raise ValueError(f"rank must be an integer >= 1; got {rank!r}")


def _check_matrices(params, flags) -> None:
  wrong = []
  for (path, leaf), chosen in zip(leaves_with_paths(params), jax.tree.leaves(flags), strict=True):
    if chosen and leaf.ndim - np.ndim(layer_of(path, leaf)) != 2:
      wrong.append(f"{path} {tuple(leaf.shape)}")
  if wrong:
    raise ValueError(
        f"select must match matrices [m, n] or stacks of them [L, m, n]; it also matches {len(wrong)} other leaves: "
        + ", ".join(wrong[:8]) + (", ..." if len(wrong) > 8 else "")
    )


def lora(
    select: Filter = "**/kernel", *, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0,
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
  _check_rank(rank)
  scale = alpha / (math.sqrt(rank) if rank_stabilized else rank)
  return low_rank(select, rank=rank, scale=scale, dropout=dropout, dtype=dtype)
