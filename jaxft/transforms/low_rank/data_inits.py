"""Inits of `lora` that look at data: CorDA at the covariance of the inputs, LoRA-GA at the gradient.

    lora("**/kernel", rank=16, init=corda("preview"), statistics=covariances)
    lora("**/kernel", rank=16, init=lora_ga(), statistics=grads)
    lora("**/kernel", rank=16, init=lora_ga(form="peft"), statistics=grads)
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxft.checks import nearest
from jaxft.transforms.low_rank.lora import FactorInit
from jaxft.transforms.low_rank.weight_inits import check_rank_fits, plain, residual

MAX_DOUBLINGS = 20

Direction = Literal["ArBr", "A2rBr", "ArB2r", "random"]
Scale = Literal["stable", "weight_svd", "gd_scale", "unit"]


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
    An init of `lora`, which takes covariances `[m, m]` as statistics, up to a constant factor.

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


def lora_ga(
    *, direction: Direction = "ArB2r", scale: Scale = "stable", gamma: float = 16.0,
    form: Literal["paper", "peft"] = "paper",
) -> FactorInit:
  """LoRA-GA: the factors span the gradient's 2 r leading singular vectors, a some of the inputs, b some of the outputs.

  With `g = u diag(s) v` the gradient of w, `a = f u[:, I]` and `b = f v[J]`, and `w - scale * a @ b` stays frozen.

  Args:
    direction: which vectors, of 2 r. "ArB2r": I the first r and J the others; "A2rBr": the other way round; "ArBr": I
      the second, fourth and so on, J the first, third and so on; "random": I drawn, and J the rest (form "paper") or
      the same (form "peft").
    scale: f. "stable": `n^(1/4) / gamma^(1/2)`; "weight_svd": the mean root of the r leading singular values of
      w / scale; "gd_scale": 1 / scale; "unit": 1.
    gamma: the larger, the smaller the factors; for the scale "stable".
    form: "peft" multiplies each row of b by the singular value s that it belongs to, leaves a as it is in "stable" and
      "weight_svd", and takes for the latter's f the largest singular value of w over that of the first row of b.

  Returns:
    An init of `lora`, which takes the gradient of the matrices `[m, n]` as statistics.

  Raises:
    ValueError: an argument is none of those above, or gamma is not positive; from `split`, where 2 r exceeds the
      smaller side.

  Source: Wang et al. 2024 (arXiv 2407.05000) and its code: any halves of the 2 r vectors are as good as any others by
  its theorem 3.1. Form "peft" is that of PEFT 0.21.
  """
  for name, value, known in (
      ("direction", direction, get_args(Direction)), ("scale", scale, get_args(Scale)),
      ("form", form, ("paper", "peft"))):
    if value not in known:
      raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}; {nearest(str(value), known)}")
  if gamma <= 0:
    raise ValueError(f"gamma must be positive; got {gamma}")
  paper = form == "paper"

  def init(key: jax.Array, w: Any, rank: int, of_update: float, statistic: Any) -> tuple[Any, Array, Array]:
    check_rank_fits(2 * rank, w)
    check_statistic(statistic, w.shape, "a gradient [m, n]")
    u, s, v = jnp.linalg.svd(statistic.astype(jnp.float32), full_matrices=False)
    inputs, outputs = _halves(direction, key, rank, disjoint=paper)
    a, b, s = u[:, inputs], v[outputs], s[outputs]
    b = b if paper else s[:, None] * b
    exact = plain(w)
    if scale == "stable":
      factor = w.shape[1] ** 0.25 / gamma**0.5
    elif scale == "weight_svd":
      of_w = jnp.linalg.svd(exact, compute_uv=False)
      factor = jnp.mean(jnp.sqrt(of_w[:rank] / of_update)) if paper else jnp.where(s[0] > 0, of_w[0] / s[0], 1)
    else:
      factor = 1 / of_update if scale == "gd_scale" else 1.0
    a = a * factor if paper or scale == "gd_scale" else a
    return residual(w, a, b * factor, of_update)

  return init


def _halves(direction: Direction, key: jax.Array, rank: int, *, disjoint: bool) -> tuple[Any, Any]:
  """The indices, of 2 * rank singular vectors, of those for a and of those for b."""
  if direction == "random":
    order = jax.random.permutation(key, 2 * rank)
    return order[:rank], order[rank:] if disjoint else order[:rank]
  first, last = slice(0, rank), slice(rank, 2 * rank)
  even, odd = slice(0, 2 * rank, 2), slice(1, 2 * rank, 2)
  return {"ArBr": (odd, even), "A2rBr": (last, first), "ArB2r": (first, last)}[direction]


def check_statistic(statistic: Any, shape: tuple[int, ...], what: str) -> None:
  if statistic is None or tuple(statistic.shape) != tuple(shape):
    got = "None" if statistic is None else f"shape {tuple(statistic.shape)}"
    raise ValueError(f"statistics must give each matrix {what}, here of shape {tuple(shape)}; got {got}")
