"""Policy losses that keep the gradient of every token and weigh it down where the policy has moved far."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from jaxft.checks import in_range
from jaxft.losses.policy.clipped import token_advantages
from jaxft.losses.policy.ratios import FARTHEST, Level, importance_ratio
from jaxft.losses.reduction import masked, weighed
from jaxft.signatures import AnyArray, check_arrays

LEAST = math.log(1e-8)


@check_arrays
def cispo(
    log_probs: Float[AnyArray, "batch time"],
    old_log_probs: Float[AnyArray, "batch time"] | None,
    advantages: Float[AnyArray, "batch ..."],
    *,
    high: float = 5.0,
    level: Level = "token",
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
  """CISPO: `-min(rho, high) A log p`, the capped ratio being a constant: no token loses its gradient.

  Args:
    log_probs, old_log_probs, advantages, level, where: see `clipped_policy_loss`.
    high: > 0, the cap itself, not how far above 1.

  Returns:
    `(values, weights)` of the tokens, float32; the value itself means little.

  Raises:
    ValueError: advantages of another shape, an unknown level, or high <= 0.

  Example:
    >>> values, _ = cispo(jnp.array([[-1.0]]), jnp.array([[-4.0]]), jnp.array([2.0]))
    >>> np.array(values).round(3)  # of the ratio e^3 it takes 5
    array([[10.]], dtype=float32)

  Sources: MiniMax 2025 (arXiv 2506.13585); the cap Khatri et al. 2025 (arXiv 2510.13786).

  TRL: `GRPOTrainer`, `loss_type` "cispo"
  """
  in_range("high", high, "(0, inf)")
  a = token_advantages(advantages, log_probs, where)
  ratio = importance_ratio(log_probs, old_log_probs, level=level, where=where)
  return weighed(-jax.lax.stop_gradient(jnp.minimum(ratio, high)) * a * masked(where, log_probs)[0], where)


@check_arrays
def sapo(
    log_probs: Float[AnyArray, "batch time"],
    old_log_probs: Float[AnyArray, "batch time"] | None,
    advantages: Float[AnyArray, "batch ..."],
    *,
    positive_temperature: float = 1.0,
    negative_temperature: float = 1.05,
    level: Level = "token",
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
  """SAPO: `-(4 / tau) sigmoid(tau (rho - 1)) A`, a gate that closes slowly in place of a clip.

  Args:
    log_probs, old_log_probs, advantages, level, where: see `clipped_policy_loss`.
    positive_temperature, negative_temperature: tau > 0 where the advantage is above 0, and where it is not.

  Returns:
    `(values, weights)` of the tokens, float32.

  Raises:
    ValueError: advantages of another shape, an unknown level, or a temperature <= 0.

  Example:
    >>> values, _ = sapo(jnp.array([[-1.0]]), None, jnp.array([2.0]))
    >>> np.array(values)  # at the ratio 1
    array([[-4.]], dtype=float32)

  Source: Gao et al. 2025 (arXiv 2511.20347).

  TRL: `GRPOTrainer`, `loss_type` "sapo"
  """
  in_range("positive_temperature", positive_temperature, "(0, inf)")
  in_range("negative_temperature", negative_temperature, "(0, inf)")
  a = token_advantages(advantages, log_probs, where)
  ratio = importance_ratio(log_probs, old_log_probs, level=level, where=where)
  tau = jnp.where(a > 0, positive_temperature, negative_temperature)
  return weighed(-4 / tau * jax.nn.sigmoid(tau * (ratio - 1)) * a, where)


@check_arrays
def vespo(
    log_probs: Float[AnyArray, "batch time"],
    old_log_probs: Float[AnyArray, "batch time"] | None,
    advantages: Float[AnyArray, " batch"],
    *,
    positive: tuple[float, float] = (2.0, 3.0),
    negative: tuple[float, float] = (3.0, 2.0),
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
  """VESPO: `-phi(w) A log p`, with the constant `phi(w) = w^k exp(lambda (1 - w))` of the whole response's ratio w.

  Args:
    log_probs, old_log_probs, where: see `clipped_policy_loss`.
    advantages: A, of the sequences, constants.
    positive, negative: `(k, lambda)`, >= 0 and > 0, where the advantage is >= 0, and where it is below.

  Returns:
    `(values, weights)` of the tokens, float32; the value itself means little. The ratio is cut to [1e-8, e^20], and a
    token's log-ratio to 20 either way.

  Raises:
    ValueError: a number out of range.

  Example:
    >>> values, _ = vespo(jnp.array([[-1.0, -2.0]]), None, jnp.array([1.0]))
    >>> np.array(values)  # phi(1) = 1
    array([[1., 2.]], dtype=float32)

  Source: Shen et al. 2026 (arXiv 2602.10693).

  TRL: `GRPOTrainer`, `loss_type` "vespo"
  """
  for name, (k, rate) in (("positive", positive), ("negative", negative)):
    in_range(f"{name}[0]", k, "[0, inf)")
    in_range(f"{name}[1]", rate, "(0, inf)")
  a = token_advantages(advantages, log_probs, where)
  (log_probs,) = masked(where, log_probs)
  old = log_probs if old_log_probs is None else masked(where, old_log_probs)[0]
  apart = jnp.clip(jax.lax.stop_gradient(log_probs - old), -FARTHEST, FARTHEST)
  log_w = jnp.clip(jnp.sum(apart, axis=-1, keepdims=True), LEAST, FARTHEST)
  gain = jnp.asarray(advantages)[:, None] >= 0
  k, rate = (jnp.where(gain, *both) for both in zip(positive, negative, strict=True))
  return weighed(-jnp.exp(rate + k * log_w - rate * jnp.exp(log_w)) * a * log_probs, where)
