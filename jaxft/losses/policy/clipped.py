"""The clipped surrogate of PPO and of what came of it, for the policy and for the critic."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from jaxft.checks import in_range
from jaxft.losses.policy.ratios import Level, importance_ratio
from jaxft.losses.reduction import masked, weighed
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def clipped_policy_loss(
    log_probs: Float[AnyArray, "batch time"],
    old_log_probs: Float[AnyArray, "batch time"] | None,
    advantages: Float[AnyArray, "batch ..."],
    *,
    low: float = 0.2,
    high: float | None = None,
    delta: float | None = None,
    dual: float | None = None,
    level: Level = "token",
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
  """`-min(rho A, clip(rho, 1 - low, 1 + high) A)` of each token, with the ratio rho of the policy to the old one.

  Args:
    log_probs: of the tokens by the policy, at the temperature that they were sampled at.
    old_log_probs: by the policy that sampled them, constants; None takes the policy itself, for the first update.
    advantages: A, constants, of the sequences `[batch]` or of the tokens `[batch, time]`.
    low, high: >= 0, how far the ratio may move; None takes low for both. DAPO clips higher, at 0.28.
    delta: > 1 + high, a cap on the ratio that is not clipped, where the advantage is negative; None sets none.
    dual: c > 1: where the advantage is negative the loss is at most `-c A`; None sets no bound.
    level: whose ratio; see `importance_ratio`.
    where: the tokens that count, or how much each weighs.

  Returns:
    `(values, weights)` of the tokens, float32, for `aggregate_tokens`; `jaxft.losses.policy` says which mode is whose.

  Raises:
    ValueError: advantages of another shape, an unknown level, or a number out of range.

  Example:
    >>> values, weights = clipped_policy_loss(jnp.zeros((1, 2)), jnp.full((1, 2), -1.0), jnp.array([1.0]))
    >>> np.array(values).round(1), weights  # the ratio e is cut to 1.2
    (array([[-1.2, -1.2]], dtype=float32), Array([[1., 1.]], dtype=float32))

  Sources: Schulman et al. 2017, PPO (arXiv 1707.06347); Shao et al. 2024, GRPO (arXiv 2402.03300); asymmetric Yu et al.
  2025, DAPO (arXiv 2503.14476); sequences Zheng et al. 2025, GSPO (arXiv 2507.18071); delta Prime Intellect 2025
  (arXiv 2505.07291); dual Ye et al. 2019 (arXiv 1912.09729).

  TRL: `GRPOTrainer`, `loss_type` "grpo", "bnpo", "dapo", "dr_grpo", "luspo", by the mode of aggregation;
  `RLOOTrainer` with level "sequence-sum"; `experimental.ppo.PPOTrainer`
  """
  in_range("low", low, "[0, inf)")
  high = low if high is None else high
  in_range("high", high, "[0, inf)")
  if delta is not None and not delta > 1 + high:
    raise ValueError(f"delta must be above 1 + high = {1 + high}; got {delta}")
  if dual is not None:
    in_range("dual", dual, "(1, inf)")
  a = token_advantages(advantages, log_probs, where)
  ratio = importance_ratio(log_probs, old_log_probs, level=level, where=where)
  free = ratio if delta is None else jnp.minimum(ratio, delta)
  values = -jnp.minimum(free * a, jnp.clip(ratio, 1 - low, 1 + high) * a)
  if dual is not None:
    values = jnp.where(a < 0, jnp.minimum(values, -dual * a), values)
  return weighed(values, where)


@check_arrays
def clipped_value_loss(
    values: Float[AnyArray, "batch time"],
    old_values: Float[AnyArray, "batch time"],
    returns: Float[AnyArray, "batch time"],
    *,
    clip: float = 0.2,
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
  """The critic's loss, `max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2` of each token.

  Args:
    values: V, the critic's.
    old_values: those that the advantages were made with, constants.
    returns: R, of `gae`, constants.
    clip: >= 0.
    where: the tokens that count, or how much each weighs.

  Returns:
    `(values, weights)` of the tokens, float32.

  Raises:
    ValueError: clip below 0 or not finite.

  Example:
    >>> values, weights = clipped_value_loss(jnp.array([[1.0]]), jnp.array([[0.0]]), jnp.array([[1.0]]), clip=0.5)
    >>> np.array(values), weights  # held back at 0.5
    (array([[0.125]], dtype=float32), Array([[1.]], dtype=float32))

  Source: Schulman et al. 2017 (arXiv 1707.06347).

  TRL: `experimental.ppo.PPOTrainer`
  """
  in_range("clip", clip, "[0, inf)")
  v, old, returns = masked(where, values, old_values, returns)
  old, returns = jax.lax.stop_gradient((old, returns))
  held = jnp.clip(v, old - clip, old + clip)
  return weighed(0.5 * jnp.maximum(jnp.square(v - returns), jnp.square(held - returns)), where)


def token_advantages(advantages: AnyArray, log_probs: AnyArray, where: AnyArray | None) -> Array:
  """Advantages of sequences or tokens as constants of tokens, 0 where nothing counts."""
  if advantages.shape not in (log_probs.shape[:1], log_probs.shape):
    raise ValueError(f"advantages must be an array [batch] or [batch, time] = {list(log_probs.shape)}; got "
                     f"{list(advantages.shape)}")
  a = jnp.asarray(advantages) if advantages.ndim == 2 else jnp.asarray(advantages)[:, None]
  return masked(where, jax.lax.stop_gradient(jnp.broadcast_to(a, log_probs.shape)))[0]
