"""GRPO and its family: advantages within the samples of a prompt, and a clipped step or several on each rollout."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxft.checks import in_range
from jaxft.losses.language import Aggregation, aggregate_tokens
from jaxft.losses.policy.advantages import Scale, group_advantages
from jaxft.losses.policy.clipped import clipped_policy_loss
from jaxft.losses.policy.ratios import Level, importance_ratio, kl_estimate, off_policy_mask
from jaxft.losses.reduction import Mean
from jaxft.signatures import AnyArray, check_arrays, explain_errors
from jaxft.training.recipe import Objective
from jaxft.training.rl.passes import Step, take_steps
from jaxft.training.rl.rollouts import PolicyBatch, Rollouts
from jaxft.training.state import TrainState

LogProbs = Callable[[Any, Rollouts], Array]  # (params, rollouts) -> log-probabilities of the responses, [rows, time]


@explain_errors
def grpo_objective(
    log_probs: LogProbs, *, beta: float = 0.0, low: float = 0.2, high: float | None = None, level: Level = "token",
    mode: Aggregation = "token-mean", max_length: int | None = None,
) -> Objective:
  """The objective of a `Recipe` whose batches are those of `grpo_update`: the clipped loss and `beta` times the KL.

  >>> log_probs = lambda params, rollouts: jnp.where(rollouts.where, jax.nn.log_sigmoid(params["w"]), 0.0)
  >>> ones = jnp.ones((2, 1), bool)
  >>> batch = PolicyBatch(Rollouts(jnp.zeros((2, 1), int), ones, ones, jnp.zeros((2, 1))), jnp.array([[1.0], [0.5]]))
  >>> loss = lambda params: grpo_objective(log_probs)(params, batch, jax.random.key(0))[0].value
  >>> value, gradient = jax.value_and_grad(loss)({"w": jnp.array(0.0)})  # the ratio is 1, and of log p the gradient 1/2
  >>> float(value), float(gradient["w"])
  (-0.75, -0.375)

  Args:
    log_probs: of the policy, as `decoder_log_probs(config)`.
    beta: >= 0, of the divergence from the reference ("k3"), whose log-probabilities the update is then given. TRL's
      default is 0, the source's 0.04.
    low, high, level: of `clipped_policy_loss`.
    mode, max_length: of `aggregate_tokens`; `jaxft.losses.policy` says which is whose. TRL's default is DAPO's
      "token-mean", the source's "seq-mean-token-mean".

  Returns:
    The objective; its metrics are `clipped`, the share of tokens whose ratio is beyond the clip, and `kl`.

  Raises:
    ValueError: beta out of range; in the step, reference log-probabilities that lack or that beta = 0 leaves unused.

  Sources: Shao et al. 2024 (arXiv 2402.03300); Yu et al. 2025, DAPO (arXiv 2503.14476).
  """
  in_range("beta", beta, "[0, inf)")
  upper = low if high is None else high

  def objective(params: Any, batch: PolicyBatch, key: Array) -> tuple[Mean, dict[str, Any]]:
    del key
    where = batch.rollouts.where
    own = log_probs(params, batch.rollouts)
    values, weights = clipped_policy_loss(
        own, batch.old_log_probs, batch.advantages, low=low, high=upper, level=level, where=where)
    metrics = {}
    if (batch.reference_log_probs is None) == (beta > 0):
      raise ValueError(f"reference_log_probs must be given where beta > 0, and there alone; got beta = {beta} and "
                       f"{'none' if batch.reference_log_probs is None else 'an array'}")
    if batch.reference_log_probs is not None:
      divergence, _ = kl_estimate(own, batch.reference_log_probs, where=where)
      values, metrics["kl"] = values + beta * divergence, Mean.of(divergence, where)
    ratio = importance_ratio(own, batch.old_log_probs, level=level, where=where)
    beyond = (ratio < 1 - low) & (batch.advantages < 0) | (ratio > 1 + upper) & (batch.advantages > 0)
    metrics["clipped"] = Mean.of(beyond.astype(jnp.float32), where)
    return aggregate_tokens(values, weights, mode=mode, max_length=max_length), metrics

  return objective


@check_arrays
def grpo_update(
    step: Step, state: TrainState, frozen: Any, rollouts: Rollouts, rewards: Float[AnyArray, "prompts samples"], *,
    key: Key[Array, ""] | None = None, old_log_probs: Float[AnyArray, "rows time"] | None = None,
    reference_log_probs: Float[AnyArray, "rows time"] | None = None, scale: Scale = "group", eps: float = 1e-4,
    epochs: int = 1, minibatches: int = 1, sampling_cap: float | None = None, off_policy_threshold: float | None = None,
) -> tuple[TrainState, dict[str, Array]]:
  """The steps of GRPO on one set of rollouts.

      A   = (reward - mean of the prompt's) / (std of the prompt's + eps)
      A_t = A * min(p_old(t) / p_sampling(t), sampling_cap)                  where a cap is given
      epochs * minibatches steps on -min(rho A_t, clip(rho) A_t) + beta KL,  rho = p / p_old

  >>> from jaxft.training import Recipe, init_state, make_train_step
  >>> from jaxft.transforms import full
  >>> log_probs = lambda params, rollouts: jnp.where(  # of a coin: token 1 with probability sigmoid(w)
  ...     rollouts.where, jax.nn.log_sigmoid(jnp.where(rollouts.tokens == 1, 1, -1) * params["w"]), 0.0)
  >>> recipe = Recipe(grpo_objective(log_probs), full(), optax.sgd(1.0))
  >>> state, frozen = init_state(jax.random.key(0), {"w": jnp.array(0.0)}, recipe)
  >>> ones = jnp.ones((2, 1), bool)
  >>> sampled = Rollouts(jnp.array([[1], [0]]), ones, ones, jnp.log(jnp.full((2, 1), 0.5)))
  >>> state, _ = grpo_update(make_train_step(recipe), state, frozen, sampled, jnp.array([[1.0, 0.0]]), scale="none")
  >>> state.trainable["w"]  # mean over both of A times the gradient of log p, 1/2 * 1/2
  Array(0.25, dtype=float32)

  Args:
    step: `make_train_step` of a recipe with `grpo_objective`.
    state, frozen: as of `init_state`; the state is donated.
    rollouts: of `rollout`, `samples` neighbouring rows for each prompt.
    rewards: of the responses; NaN where one cannot be scored, which then counts nothing.
    key: of the order of rows in minibatches; needed where there are several.
    old_log_probs: by the policy before the first step, as its `log_probs` gives them. None takes the policy itself,
      which is right for a single step and refused for several.
    reference_log_probs: by the reference, where `beta` is above 0.
    scale, eps: of `group_advantages`.
    epochs, minibatches: >= 1; minibatches must divide the rows.
    sampling_cap: > 0; each token counts `min(p_old / p_sampling, cap)` times, for a sampler of another arithmetic or
      with filters, or for rollouts of an older policy. Needs old_log_probs. TRL's cap is 3 there.
    off_policy_threshold: see `off_policy_mask`; needs old_log_probs.

  Returns:
    `(state, metrics)`: the mean of the steps' metrics; `reward`, the mean of those that are scored; and
    `uninformative`, the share of prompts whose responses all have one advantage, 0.

  Raises:
    ValueError: rewards that are not one for each row, old_log_probs that lack, or a number out of range.

  Sources: Shao et al. 2024 (arXiv 2402.03300); the cap Yao et al. 2025, Your Efficient RL Framework Secretly Brings You
  Off-Policy RL Training; the threshold DeepSeek-AI 2025 (arXiv 2512.02556).
  """
  rows = rollouts.tokens.shape[0]
  if rewards.shape[0] * rewards.shape[1] != rows:
    raise ValueError(f"rewards must be one for each of the {rows} rows of rollouts; got {list(rewards.shape)}")
  needs = [name for name, needed in (
      ("epochs * minibatches > 1", epochs * minibatches > 1), ("sampling_cap", sampling_cap is not None),
      ("off_policy_threshold", off_policy_threshold is not None)) if needed]
  if needs and old_log_probs is None:
    raise ValueError(f"old_log_probs must be given with {needs[0]}")
  by_prompt = group_advantages(rewards, scale=scale, eps=eps)
  advantages = jnp.where(rollouts.where, by_prompt.reshape(-1, 1), 0.0)
  scored = ~jnp.isnan(jnp.asarray(rewards)).reshape(-1)
  kept = scored
  if sampling_cap is not None and old_log_probs is not None:
    in_range("sampling_cap", sampling_cap, "(0, inf)")
    ratio = importance_ratio(old_log_probs, rollouts.sampling_log_probs, where=rollouts.where)
    advantages = advantages * jnp.minimum(ratio, sampling_cap)
  if off_policy_threshold is not None and old_log_probs is not None:
    kept = kept & off_policy_mask(
        by_prompt.reshape(-1), old_log_probs, rollouts.sampling_log_probs, rollouts.where,
        threshold=off_policy_threshold)
  batch = PolicyBatch(
      rollouts._replace(where=jnp.asarray(rollouts.where) & kept[:, None]), advantages, old_log_probs,
      reference_log_probs)
  state, metrics = take_steps(step, state, frozen, batch, key=key, epochs=epochs, minibatches=minibatches)
  reward = Mean.of(jnp.asarray(rewards, jnp.float32).reshape(-1), scored).value
  return state, metrics | {"reward": reward, "uninformative": jnp.mean(jnp.all(by_prompt == 0, axis=1))}

