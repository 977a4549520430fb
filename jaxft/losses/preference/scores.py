"""What a response scores, made of its log-probability: the axis of preference losses beside their ranking."""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from jaxft.checks import in_range, one_of
from jaxft.losses.reduction import masked
from jaxft.signatures import AnyArray, check_arrays

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]
CERTAIN = -1e-7  # float32's nearest log-probability to 0 whose log odds and gradient are still finite
LARGEST = 80.0  # of an exponent: e^88 overflows float32


@check_arrays
def divergence_score(
    log_ratios: Float[AnyArray, " *shape"], *, divergence: Divergence = "reverse_kl", alpha: float = 0.5
) -> Float[Array, " *shape"]:
  """`f'(t)` of the ratio `t = policy / reference`: the implicit reward where the divergence from it is f's.

  "reverse_kl" gives `log t` (DPO), "forward_kl" `1 - 1/t`, "js" `log(2t / (1 + t))`, "alpha"
  `(t^(alpha - 1) - 1) / (alpha - 1)`, which at alpha 1 is `log t`.

  Args:
    log_ratios: log t, summed over a response.
    divergence: f's.
    alpha: of "alpha".

  Returns:
    The scores, float32. Exponents are cut off at 80, where the gradient is then 0.

  Raises:
    ValueError: an unknown divergence, or alpha not finite.

  Example:
    >>> divergence_score(jnp.array([0.0, 0.5]), divergence="forward_kl").round(3)
    Array([0.   , 0.393], dtype=float32)

  Source: Wang et al. 2023 (arXiv 2309.16240).

  TRL: `DPOTrainer`, `f_divergence_type`
  """
  one_of("divergence", divergence, get_args(Divergence))
  in_range("alpha", alpha)
  (h,) = masked(None, log_ratios)
  if divergence == "forward_kl":
    return -jnp.expm1(jnp.minimum(-h, LARGEST))
  if divergence == "js":
    return math.log(2) + jax.nn.log_sigmoid(h)
  if divergence == "alpha" and alpha != 1:
    return jnp.expm1(jnp.minimum((alpha - 1) * h, LARGEST)) / (alpha - 1)
  return h


@check_arrays
def log1mexp(x: Float[AnyArray, " *shape"]) -> Float[Array, " *shape"]:
  """`log(1 - e^x)` of x < 0, exact at both ends; x above -1e-7 is taken for -1e-7, which has no gradient.

  Example:
    >>> np.array(log1mexp(jnp.array([-1e-3, -50.0]))).round(3)
    array([-6.908, -0.   ], dtype=float32)

  Source: Mächler 2012, Accurately Computing log(1 - exp(-|a|)).
  """
  (x,) = masked(None, x)
  x = jnp.minimum(x, CERTAIN)
  near = x > -math.log(2)
  # Each branch reads a number that suits it: a gradient that is not taken must be finite too.
  small = jnp.log(-jnp.expm1(jnp.where(near, x, -0.5)))
  return jnp.where(near, small, jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))))


@check_arrays
def log_odds(log_probs: Float[AnyArray, " *shape"]) -> Float[Array, " *shape"]:
  """`log(p / (1 - p))` of p = exp(log_probs), the score of ORPO and ASFT.

  Args:
    log_probs: averages over the tokens of a response, < 0: of sums p would vanish, and its odds with it. Above -1e-7
      they are taken for -1e-7.

  Example:
    >>> log_odds(jnp.log(jnp.array([0.5, 0.8]))).round(3)
    Array([0.   , 1.386], dtype=float32)

  Source: Hong et al. 2024 (arXiv 2403.07691).
  """
  (x,) = masked(None, log_probs)
  x = jnp.minimum(x, CERTAIN)
  return x - log1mexp(x)


@check_arrays
def alpha_reward(log_probs: Float[AnyArray, " *shape"], *, alpha: float = 0.25) -> Float[Array, " *shape"]:
  """`(1 - p^-alpha) / alpha` of p = exp(log_probs), AlphaPO's reward in place of SimPO's log p, which is alpha 0.

  Args:
    log_probs: averages over the tokens of a response.
    alpha: the shape: > 0 pulls unlikely responses up harder, < 0 softer. The source's best lie in 0.1 to 0.25.

  Returns:
    The scores, float32. Exponents are cut off at 80, where the gradient is then 0.

  Raises:
    ValueError: alpha not finite.

  Example:
    >>> alpha_reward(jnp.array([-1.0]), alpha=0.5).round(3), alpha_reward(jnp.array([-1.0]), alpha=0.0)
    (Array([-1.297], dtype=float32), Array([-1.], dtype=float32))

  Source: Gupta et al. 2025 (arXiv 2501.03884).

  TRL: `CPOTrainer`, `alpha`
  """
  in_range("alpha", alpha)
  (x,) = masked(None, log_probs)
  return -jnp.expm1(jnp.minimum(-alpha * x, LARGEST)) / alpha if alpha else x


@check_arrays
def length_desensitized(
    log_probs: Float[AnyArray, "batch time"],
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"],
    shared: Int[AnyArray, " batch"],
    *,
    alpha: float = 0.5,
) -> Float[Array, " batch"]:
  """Log-probability of a response in which what goes beyond the length of the other one counts alpha times.

  `sum over its first n tokens + alpha times the sum over the rest`, for the policy and for the reference alike.

  Args:
    log_probs: of tokens.
    where: the tokens of the response.
    shared: n, the length of the shorter of the two responses of each pair, in tokens.
    alpha: in [0, 1]; 1 is the plain sum.

  Raises:
    ValueError: alpha out of range.

  Example:
    >>> log_probs, where = jnp.array([[0.0, -1.0, -1.0, -1.0]]), jnp.array([[0, 1, 1, 1]])
    >>> length_desensitized(log_probs, where, jnp.array([2]), alpha=0.5)
    Array([-2.5], dtype=float32)

  Source: Liu et al. 2024, LD-DPO (arXiv 2409.06411).

  TRL: `DPOTrainer`, `ld_alpha`
  """
  in_range("alpha", alpha, "[0, 1]")
  (x,) = masked(where, log_probs)
  counts = jnp.asarray(where) != 0
  first = jnp.cumsum(counts, axis=-1) <= shared[:, None]
  return jnp.sum(jnp.where(first, x, alpha * x), axis=-1)


@check_arrays
def wpo_weights(
    log_probs: Float[AnyArray, "batch time"],
    log_collisions: Float[AnyArray, "batch time"],
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"],
) -> Float[Array, " batch"]:
  """How near a response is to one of the policy's own: `exp(mean_t(log p_t - log sum_v p_tv^2))`, a constant.

  The loss of a pair is multiplied by the weights of both of its responses; the mean over pairs stays one by their
  number.

  Args:
    log_probs: of the tokens, by the policy.
    log_collisions: `log sum_v p_v^2` of the distributions that they are drawn from (`token_statistics`).
    where: the tokens of the response; one without any weighs 1.

  Example:
    >>> log_probs, collisions = jnp.log(jnp.array([[0.5, 0.25]])), jnp.log(jnp.array([[0.5, 0.5]]))
    >>> wpo_weights(log_probs, collisions, jnp.ones((1, 2))).round(3)  # of 1 and 1/2 the geometric mean
    Array([0.707], dtype=float32)

  Source: Zhou et al. 2024 (arXiv 2406.11827).

  TRL: `DPOTrainer`, `use_weighting`
  """
  log_probs, log_collisions = jax.lax.stop_gradient(masked(where, log_probs, log_collisions))
  count = jnp.maximum(jnp.sum(jnp.asarray(where) != 0, axis=-1), 1)
  return jnp.exp(jnp.sum(log_probs - log_collisions, axis=-1) / count)
