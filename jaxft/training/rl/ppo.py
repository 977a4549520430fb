"""PPO on text: a reward at the end and a price on each token, advantages by a critic that learns beside the policy."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxft.checks import in_range
from jaxft.finite import require_finite
from jaxft.losses.language import aggregate_tokens
from jaxft.losses.policy.advantages import gae, shaped_rewards
from jaxft.losses.policy.clipped import clipped_policy_loss, clipped_value_loss
from jaxft.losses.reduction import Mean
from jaxft.losses.score_function import whiten
from jaxft.signatures import AnyArray, check_arrays, explain_errors
from jaxft.training.recipe import Objective
from jaxft.training.rl.passes import Step, take_steps
from jaxft.training.rl.rollouts import PolicyBatch, Rollouts
from jaxft.training.state import TrainState

Outputs = Callable[[Any, Rollouts], tuple[Array, Array]]  # (params, rollouts) -> (log-probabilities, values)


@explain_errors
def ppo_objective(
    outputs: Outputs, *, value_weight: float = 0.1, low: float = 0.2, high: float | None = None,
    value_clip: float = 0.2,
) -> Objective:
  """The objective of a `Recipe` whose batches are those of `ppo_update`: both clipped losses, means over tokens.

  >>> ones = jnp.ones((1, 2), bool)
  >>> outputs = lambda params, rollouts: (jnp.full((1, 2), jnp.log(0.5)), jnp.broadcast_to(params["v"], (1, 2)))
  >>> batch = PolicyBatch(Rollouts(jnp.zeros((1, 2), int), ones, ones, jnp.zeros((1, 2))), jnp.zeros((1, 2)),
  ...                     jnp.full((1, 2), jnp.log(0.5)), None, jnp.zeros((1, 2)), jnp.ones((1, 2)))
  >>> round(float(ppo_objective(outputs)({"v": jnp.array(0.0)}, batch, jax.random.key(0))[0].value), 3)  # 0.1 * 1/2
  0.05

  Args:
    outputs: of policy and critic, as `decoder_log_probs_and_values(config)`.
    value_weight: >= 0. Where policy and critic share no params, and each has its own rate by
      `optax.multi_transform`, Adam makes no difference between weights.
    low, high: of `clipped_policy_loss`.
    value_clip: of `clipped_value_loss`.

  Returns:
    The objective; its metrics are `policy_loss` and `value_loss`.

  Raises:
    ValueError: value_weight out of range.

  Source: Schulman et al. 2017 (arXiv 1707.06347).
  """
  in_range("value_weight", value_weight, "[0, inf)")

  def objective(params: Any, batch: PolicyBatch, key: Array) -> tuple[Mean, dict[str, Any]]:
    del key
    if batch.old_values is None or batch.returns is None:
      raise ValueError("batch must have old_values and returns, as ppo_update makes them")
    where = batch.rollouts.where
    log_probs, values = outputs(params, batch.rollouts)
    policy, weights = clipped_policy_loss(
        log_probs, batch.old_log_probs, batch.advantages, low=low, high=high, where=where)
    value, _ = clipped_value_loss(values, batch.old_values, batch.returns, clip=value_clip, where=where)
    metrics = {"policy_loss": Mean.of(policy, weights), "value_loss": Mean.of(value, weights)}
    return aggregate_tokens(policy + value_weight * value, weights), metrics

  return objective


@check_arrays
def ppo_update(
    step: Step, state: TrainState, frozen: Any, rollouts: Rollouts, scores: Float[AnyArray, " rows"], *,
    old_log_probs: Float[AnyArray, "rows time"], old_values: Float[AnyArray, "rows time"],
    reference_log_probs: Float[AnyArray, "rows time"], key: Key[Array, ""] | None = None, kl_coef: float = 0.05,
    clip_score: float | None = None, gamma: float = 1.0, lam: float = 0.95, whitened: bool = True, epochs: int = 4,
    minibatches: int = 1,
) -> tuple[TrainState, dict[str, Array]]:
  """The steps of PPO on one set of rollouts.

      r_t = -kl_coef (log p_old - log p_ref),  and the score at the last token
      A, R = gae(r, V_old);  A whitened over all tokens
      epochs * minibatches steps on the clipped losses of policy and critic

  >>> from jaxft.training import Recipe, init_state, make_train_step
  >>> from jaxft.transforms import full
  >>> outputs = lambda params, rollouts: (  # a coin, and one value for all
  ...     jax.nn.log_sigmoid(jnp.where(rollouts.tokens == 1, 1, -1) * params["w"]), jnp.full((2, 1), params["v"]))
  >>> recipe = Recipe(ppo_objective(outputs, value_weight=1.0), full(), optax.sgd(1.0))
  >>> state, frozen = init_state(jax.random.key(0), {"w": jnp.array(0.0), "v": jnp.array(0.0)}, recipe)
  >>> ones, half = jnp.ones((2, 1), bool), jnp.log(jnp.full((2, 1), 0.5))
  >>> sampled = Rollouts(jnp.array([[1], [0]]), ones, ones, half)
  >>> state, _ = ppo_update(make_train_step(recipe), state, frozen, sampled, jnp.array([1.0, 0.0]),
  ...                       old_log_probs=half, old_values=jnp.zeros((2, 1)), reference_log_probs=half, epochs=1,
  ...                       whitened=False)
  >>> state.trainable  # A = 1 and 0: half the gradient of log p, 1/2; the value goes to the mean return
  {'v': Array(0.5, dtype=float32), 'w': Array(0.25, dtype=float32)}

  Args:
    step: `make_train_step` of a recipe with `ppo_objective`.
    state, frozen: as of `init_state`; the state is donated.
    rollouts: of `rollout`.
    scores: of the responses, finite.
    old_log_probs, old_values: by policy and critic before the first step.
    reference_log_probs: by the reference; the policy's own where kl_coef is 0.
    key: of the order of rows in minibatches; needed where there are several.
    kl_coef, clip_score: of `shaped_rewards`. TL-Training: 0.4, and scores within 5.
    gamma, lam: of `gae`.
    whitened: advantages have mean 0 and variance 1 over the tokens of the whole batch; TL-Training does without.
    epochs, minibatches: >= 1; TL-Training makes one pass, TRL four.

  Returns:
    `(state, metrics)`: the mean of the steps' metrics; `score`, the mean; `kl`, the mean of `log p_old - log p_ref`
    over tokens.

  Raises:
    ValueError: a number out of range, shapes that differ, or a score that is not finite where values are known.

  Sources: Schulman et al. 2017 (arXiv 1707.06347); Ye et al. 2024, TL-Training (arXiv 2412.15495). The score stands at
  the last token of a response; TRL's stands one later where there is room.
  """
  require_finite(scores=scores)
  where = rollouts.where
  apart = jnp.where(where, jnp.asarray(old_log_probs) - reference_log_probs, 0.0)
  rewards = shaped_rewards(apart, scores, where, kl_coef=kl_coef, clip=clip_score)
  advantages, returns = gae(rewards, old_values, where, gamma=gamma, lam=lam)
  if whitened:
    advantages = whiten(advantages, where=jnp.asarray(where), eps=1e-8, ddof=1)
  batch = PolicyBatch(
      rollouts, advantages, jnp.asarray(old_log_probs), None, jnp.asarray(old_values, jnp.float32), returns)
  state, metrics = take_steps(step, state, frozen, batch, key=key, epochs=epochs, minibatches=minibatches)
  return state, metrics | {"score": jnp.mean(jnp.asarray(scores)), "kl": Mean.of(apart, where).value}
