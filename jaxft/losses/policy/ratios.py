"""How far a policy has moved: from the one that sampled, as a ratio, and from a reference, as a divergence.

Exponentials of log-ratios are safe: beyond 20 either way, where a ratio says no more, they are constants.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from jaxft.checks import in_range, one_of
from jaxft.losses.reduction import count_of, masked, weighed
from jaxft.signatures import AnyArray, check_arrays

Level = Literal["token", "sequence", "sequence-sum"]
Estimator = Literal["k1", "k2", "k3"]
FARTHEST = 20.0


@check_arrays
def importance_ratio(
    log_probs: Float[AnyArray, "batch time"],
    old_log_probs: Float[AnyArray, "batch time"] | None = None,
    *,
    level: Level = "token",
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
) -> Float[Array, "batch time"]:
  """`p / p_old` of each token, or of its sequence.

  Args:
    log_probs: of the tokens by the policy in training.
    old_log_probs: by the one that sampled them; None takes the policy itself, whose ratio is 1 and has a gradient.
    level: "token"; "sequence", the geometric mean over the tokens that count (GSPO); "sequence-sum", their product
      (RLOO), the ratio of the whole response.
    where: the tokens that count; the others have the ratio 1, or that of their sequence.

  Returns:
    The ratios, float32.

  Raises:
    ValueError: an unknown level.

  Example:
    >>> log_probs, old = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.25, 0.5]]))
    >>> [importance_ratio(log_probs, old, level=level).round(2) for level in ("token", "sequence-sum")]
    [Array([[2., 1.]], dtype=float32), Array([[2., 2.]], dtype=float32)]

  Source: sequences Zheng et al. 2025, GSPO (arXiv 2507.18071).

  TRL: `GRPOTrainer`, `importance_sampling_level`
  """
  one_of("level", level, get_args(Level))
  (log_probs,) = masked(where, log_probs)
  old = log_probs if old_log_probs is None else masked(where, old_log_probs)[0]
  apart = log_probs - jax.lax.stop_gradient(old)
  if level != "token":
    total = jnp.sum(apart, axis=-1, keepdims=True)
    count = jnp.sum(count_of(where, apart.shape) != 0, axis=-1, keepdims=True)
    apart = jnp.broadcast_to(total / jnp.maximum(count, 1) if level == "sequence" else total, apart.shape)
  return safe_exp(apart)


@check_arrays
def kl_estimate(
    log_probs: Float[AnyArray, "batch time"],
    reference_log_probs: Float[AnyArray, "batch time"],
    *,
    kind: Estimator = "k3",
    ratios: Float[AnyArray, "batch time"] | None = None,
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
  """Estimates of the divergence from a reference at each sampled token, by `r = log p_ref - log p`.

  "k1" is `-r`, without bias and of either sign; "k2" `r^2 / 2`; "k3" `exp(r) - r - 1`, without bias and never negative.

  Args:
    log_probs: of the tokens by the policy.
    reference_log_probs: by the reference, constants.
    kind: the estimator.
    ratios: of `importance_ratio`, by which the estimates are multiplied: tokens of an older policy then count as those
      of this one.
    where: the tokens that count, or how much each weighs.

  Returns:
    `(values, weights)` of the tokens, float32: times beta they are added to those of a policy loss.

  Raises:
    ValueError: an unknown kind.

  Example:
    >>> values, _ = kl_estimate(jnp.array([[-1.0, -1.0]]), jnp.array([[-1.0, -3.0]]))
    >>> np.array(values).round(3)
    array([[0.   , 1.135]], dtype=float32)

  Sources: Schulman 2020, Approximating KL Divergence; in GRPO Shao et al. 2024 (arXiv 2402.03300).

  TRL: `GRPOTrainer`, its `beta` times this; with ratios `use_bias_correction_kl`
  """
  one_of("kind", kind, get_args(Estimator))
  log_probs, reference = masked(where, log_probs, reference_log_probs)
  r = jax.lax.stop_gradient(reference) - log_probs
  values = {"k1": lambda: -r, "k2": lambda: 0.5 * r * r, "k3": lambda: safe_exp(r) - r - 1}[kind]()
  return weighed(values if ratios is None else values * masked(where, ratios)[0], where)


@check_arrays
def off_policy_mask(
    advantages: Float[AnyArray, " batch"],
    log_probs: Float[AnyArray, "batch time"],
    sampling_log_probs: Float[AnyArray, "batch time"],
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"],
    *,
    threshold: float,
) -> Bool[Array, " batch"]:
  """Sequences to keep: those of an advantage >= 0, or of a mean `log p_sampling - log p` of at most a threshold.

  Args:
    advantages: of the sequences.
    log_probs: of the tokens by the policy in training.
    sampling_log_probs: by the one that sampled, in its own arithmetic; NaN where it has none, which counts as no shift.
    where: the tokens that count.
    threshold: >= 0, in nats per token.

  Raises:
    ValueError: threshold below 0 or not finite.

  Example:
    >>> log_probs, sampled = jnp.array([[-3.0], [-3.0]]), jnp.array([[-1.0], [-1.0]])
    >>> off_policy_mask(jnp.array([1.0, -1.0]), log_probs, sampled, jnp.ones((2, 1)), threshold=0.5)
    Array([ True, False], dtype=bool)

  Source: DeepSeek-AI 2025, DeepSeek-V3.2 (arXiv 2512.02556).

  TRL: `GRPOTrainer`, `off_policy_mask_threshold`
  """
  in_range("threshold", threshold, "[0, inf)")
  (apart,) = masked(where, jnp.asarray(sampling_log_probs) - log_probs)
  count = jnp.maximum(jnp.sum(jnp.asarray(where) != 0, axis=-1), 1)
  shift = jnp.sum(jnp.where(jnp.isnan(apart), 0.0, apart), axis=-1) / count
  return (jnp.asarray(advantages) >= 0) | (shift <= threshold)


def safe_exp(x: Array) -> Array:
  return jnp.exp(jnp.clip(x, -FARTHEST, FARTHEST))
