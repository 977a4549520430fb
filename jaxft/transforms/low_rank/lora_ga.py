"""LoRA-GA: factors along the gradient of the weight.

    lora("**/kernel", rank=16, init=lora_ga(), statistics=grads)
    lora("**/kernel", rank=16, init=lora_ga(form="peft"), statistics=grads)
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxft.checks import nearest
from jaxft.finite import svd
from jaxft.signatures import explain_errors
from jaxft.transforms.low_rank.inits import FactorInit, check_rank_fits, check_statistic, plain, residual

Direction = Literal["ArBr", "A2rBr", "ArB2r", "random"]
Scale = Literal["stable", "weight_svd", "gd_scale", "unit"]


@explain_errors
def lora_ga(
    *, direction: Direction = "ArB2r", scale: Scale = "stable", gamma: float = 16.0,
    form: Literal["paper", "peft"] = "paper",
) -> FactorInit:
  """LoRA-GA: the factors span the gradient's 2 r leading singular vectors, a some of the inputs, b some of the outputs.

  With `g = u diag(s) v` the gradient of w, `a = f u[:, I]` and `b = f v[J]`, and `w - scale * a @ b` stays frozen.

  >>> from jaxft.transforms import lora
  >>> gradients = {"up": jax.random.normal(jax.random.key(1), (4, 3))}
  >>> transform = lora("up", rank=1, init=lora_ga(), statistics=gradients)
  >>> _, trainable = transform.split(jax.random.key(0), {"up": jnp.ones((4, 3))})
  >>> jax.tree.map(jnp.shape, trainable)
  {'up': {'a': (4, 1), 'b': (1, 3)}}

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
    u, s, v = svd(statistic.astype(jnp.float32))
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
