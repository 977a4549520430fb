"""Inits of `low_rank` that look at data: CorDA at the covariance of the inputs, LoRA-GA at the gradient.

    low_rank("**/kernel", rank=16, init=corda("preview"), statistics=covariances)
    low_rank("**/kernel", rank=16, init=lora_ga(), statistics=grads)
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxft.transforms.lora import FactorInit
from jaxft.transforms.low_rank_inits import check_rank_fits, plain, residual

MAX_DOUBLINGS = 20


def damped(
    covariance: Float[Array, "m m"], *, damping: float = 0.01, max_error: float = 0.05
) -> Float[Array, "m m"]:
  """`C + damping * mean(diag C) * I`, the damping doubled until `|C C^-1 - I| < max_error`, at most 20 times."""
  eye = jnp.eye(len(covariance))
  at = lambda d: covariance + d * jnp.mean(jnp.diag(covariance)) * eye

  def too_far(state: tuple[Array, Array]) -> Array:
    d, doublings = state
    error = jnp.linalg.norm(at(d) @ jnp.linalg.inv(at(d)) - eye)
    return ~(error < max_error) & (doublings < MAX_DOUBLINGS)

  d, _ = jax.lax.while_loop(too_far, lambda state: (2 * state[0], state[1] + 1), (jnp.float32(damping), jnp.int32(0)))
  return at(d)


def oriented_svd(
    w: Float[Array, "m n"], covariance: Float[Array, "m m"], *, damping: float = 0.01, max_error: float = 0.05
) -> tuple[Float[Array, "m k"], Float[Array, " k"], Float[Array, "k n"]]:
  """CorDA's decomposition `w = inputs @ diag(s) @ outputs`, in order of what w does to inputs of that covariance.

  With C the damped covariance, `C w = v diag(s) outputs` is a singular value decomposition, and `inputs = C^-1 v`.
  """
  c = damped(covariance.astype(jnp.float32), damping=damping, max_error=max_error)
  v, s, outputs = jnp.linalg.svd(c @ w.astype(jnp.float32), full_matrices=False)
  return jax.scipy.linalg.solve(c, v, assume_a="pos"), s, outputs


def corda(
    mode: Literal["preserve", "preview"] = "preview", *, damping: float = 0.01, max_error: float = 0.05
) -> FactorInit:
  """CorDA: the factors are r components of the decomposition of w oriented by the covariance of its inputs.

  Args:
    mode: "preserve" (knowledge-preserved) trains the r smallest, with inputs of what is to be kept; "preview"
      (instruction-previewed) the r largest, with inputs of what is to be learned.
    damping, max_error: see `damped`.

  Returns:
    An init of `low_rank`, which takes covariances `[m, m]` as statistics, up to a constant factor.

  Raises:
    ValueError: mode is neither.

  Source: Yang et al. 2024 (arXiv 2406.05223); components are divided by the scale, as in PEFT.
  """
  if mode not in ("preserve", "preview"):
    raise ValueError(f"mode must be 'preserve' or 'preview'; got {mode!r}")

  def init(key: jax.Array, w: Any, rank: int, scale: float, statistic: Any) -> tuple[Any, Array, Array]:
    del key
    check_rank_fits(rank, w)
    check_statistic(statistic, (w.shape[0],) * 2, "a covariance [m, m]")
    inputs, s, outputs = oriented_svd(plain(w), statistic, damping=damping, max_error=max_error)
    chosen = slice(0, rank) if mode == "preview" else slice(len(s) - rank, None)
    root = jnp.sqrt(s[chosen] / scale)
    return residual(w, inputs[:, chosen] * root, root[:, None] * outputs[chosen], scale)

  return init


def lora_ga(*, gamma: float = 16.0) -> FactorInit:
  """LoRA-GA: the factors span the gradient's leading singular vectors, a the first r inputs, b the next r outputs.

  With `g = u diag(s) v` the gradient of w, and `f = n^(1/4) / gamma^(1/2)`: `a = f u[:, :r]`, `b = f v[r:2r]`, and
  `w - scale * a @ b` stays frozen.

  Args:
    gamma: the larger, the smaller the factors.

  Returns:
    An init of `low_rank`, which takes the gradient of the matrices `[m, n]` as statistics.

  Raises:
    ValueError: gamma is not positive; from `split`, where 2 r exceeds the smaller side.

  Source: Wang et al. 2024 (arXiv 2407.05000), directions "ArB2r", "stable" scale, of both factors as in
  the paper; PEFT scales b alone, after multiplying it by the singular values.
  """
  if gamma <= 0:
    raise ValueError(f"gamma must be positive; got {gamma}")

  def init(key: jax.Array, w: Any, rank: int, scale: float, statistic: Any) -> tuple[Any, Array, Array]:
    del key
    check_rank_fits(2 * rank, w)
    check_statistic(statistic, w.shape, "a gradient [m, n]")
    u, _, v = jnp.linalg.svd(statistic.astype(jnp.float32), full_matrices=False)
    factor = w.shape[1] ** 0.25 / gamma**0.5
    plain(w)
    return residual(w, factor * u[:, :rank], factor * v[rank : 2 * rank], scale)

  return init


def check_statistic(statistic: Any, shape: tuple[int, ...], what: str) -> None:
  if statistic is None or tuple(statistic.shape) != tuple(shape):
    got = "None" if statistic is None else f"shape {tuple(statistic.shape)}"
    raise ValueError(f"statistics must give each matrix {what}, here of shape {tuple(shape)}; got {got}")
