"""Advantages: how much better a sampled response, or a token of it, was than what was to be expected. Constants."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from jaxft.checks import in_range, one_of
from jaxft.losses.reduction import masked
from jaxft.signatures import AnyArray, check_arrays

Scale = Literal["group", "batch", "none"]


@check_arrays
def group_advantages(
    rewards: Float[AnyArray, "prompts samples"],
    *,
    scale: Scale = "group",
    eps: float = 1e-4,
    where: Bool[AnyArray, "prompts samples"] | None = None,
) -> Float[Array, "prompts samples"]:
  """`(reward - mean of its group) / (std + eps)`, a group being the samples of one prompt; GRPO's baseline.

  Args:
    rewards: NaN where a response cannot be scored: it is left out of mean and deviation, and its advantage is 0.
    scale: whose unbiased deviation divides: "group", the group's; "batch", that of all rewards; "none", none, which
      leaves easy and hard prompts their weight (Dr. GRPO).
    eps: >= 0.
    where: samples that count; the others are left out like NaN.

  Returns:
    The advantages, float32, without a gradient; 0 in groups whose rewards are all alike.

  Raises:
    ValueError: an unknown scale, or eps below 0 or not finite.

  Example:
    >>> group_advantages(jnp.array([[1.0, 0.0, jnp.nan], [2.0, 2.0, 2.0]]), eps=0.0, scale="none")
    Array([[ 0.5, -0.5,  0. ],
           [ 0. ,  0. ,  0. ]], dtype=float32)

  Sources: Shao et al. 2024, GRPO (arXiv 2402.03300); Liu et al. 2025, Dr. GRPO (arXiv 2503.20783); of the batch Liu et
  al. 2025 (arXiv 2508.08221).

  TRL: `GRPOTrainer`, `scale_rewards`
  """
  one_of("scale", scale, get_args(Scale))
  in_range("eps", eps, "[0, inf)")
  kept, rewards = _scored(rewards, where)
  apart = _from_first(rewards, kept)
  apart = jnp.where(kept, apart - _mean(apart, kept), 0.0)
  if scale == "none":
    return apart
  if scale == "group":
    spread = jnp.sqrt(jnp.sum(apart * apart, axis=1, keepdims=True) / jnp.maximum(_count(kept) - 1, 1))
  else:
    rewards = _from_first(rewards.reshape(1, -1), kept.reshape(1, -1)).reshape(kept.shape)
    everywhere = jnp.sum(rewards) / jnp.maximum(jnp.sum(kept), 1)
    squares = jnp.square(jnp.where(kept, rewards - everywhere, 0.0))
    spread = jnp.sqrt(jnp.sum(squares) / jnp.maximum(jnp.sum(kept) - 1, 1))
  return apart / jnp.where(spread + eps > 0, spread + eps, 1)


@check_arrays
def leave_one_out_advantages(
    rewards: Float[AnyArray, "prompts samples"], *, where: Bool[AnyArray, "prompts samples"] | None = None
) -> Float[Array, "prompts samples"]:
  """The reward less the mean of the other samples of the same prompt, RLOO's baseline.

  Args:
    rewards: NaN where a response cannot be scored: it is no other's baseline, and its advantage is 0. RLOO takes from
      each `beta` times the summed log-ratio of the policy that sampled it to the reference.
    where: samples that count; the others are left out like NaN.

  Returns:
    The advantages, float32, without a gradient; 0 where a prompt has one sample alone.

  Example:
    >>> leave_one_out_advantages(jnp.array([[1.0, 3.0, jnp.nan], [5.0, jnp.nan, jnp.nan]]))
    Array([[-2.,  2.,  0.],
           [ 0.,  0.,  0.]], dtype=float32)

  Source: Ahmadian et al. 2024 (arXiv 2402.14740).

  TRL: `RLOOTrainer`
  """
  kept, rewards = _scored(rewards, where)
  rewards, others = _from_first(rewards, kept), _count(kept) - 1
  baseline = (jnp.sum(rewards, axis=1, keepdims=True) - rewards) / jnp.maximum(others, 1)
  return jnp.where(kept & (others > 0), rewards - baseline, 0.0)


@check_arrays
def informative_groups(
    rewards: Float[AnyArray, "prompts samples"], *, where: Bool[AnyArray, "prompts samples"] | None = None
) -> Bool[Array, " prompts"]:
  """Prompts whose samples differ in reward: DAPO drops the others, whose advantages are all 0.

  Args:
    rewards: NaN where a response cannot be scored.
    where: samples that count.

  Example:
    >>> informative_groups(jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, jnp.nan]]))
    Array([ True, False, False], dtype=bool)

  Source: Yu et al. 2025 (arXiv 2503.14476).
  """
  kept, rewards = _scored(rewards, where)
  high = jnp.max(jnp.where(kept, rewards, -jnp.inf), axis=1)
  return high > jnp.min(jnp.where(kept, rewards, jnp.inf), axis=1)


@check_arrays
def overlong_penalty(
    lengths: Num[AnyArray, " *shape"], *, max_length: int, buffer: int
) -> Float[Array, " *shape"]:
  """DAPO's penalty of long responses: 0 up to `max_length - buffer`, then down to -1 at `max_length`, and -1 beyond.

  Args:
    lengths: in tokens.
    max_length: >= buffer.
    buffer: >= 1, the tokens over which the penalty grows.

  Raises:
    ValueError: a length below 1, or a buffer that is longer than max_length.

  Example:
    >>> overlong_penalty(jnp.array([7, 8, 9, 20]), max_length=10, buffer=4)
    Array([-0.25, -0.5 , -0.75, -1.  ], dtype=float32)

  Source: Yu et al. 2025 (arXiv 2503.14476).

  TRL: `rewards.get_soft_overlong_punishment`
  """
  if not 1 <= buffer <= max_length:
    raise ValueError(f"buffer must lie in [1, max_length = {max_length}]; got {buffer}")
  (lengths,) = masked(None, lengths)
  return jnp.clip((max_length - buffer - lengths) / buffer, -1.0, 0.0)


@check_arrays
def gae(
    rewards: Float[AnyArray, "batch time"],
    values: Float[AnyArray, "batch time"],
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
  """Generalized advantage estimation, `A_t = r_t + gamma V_{t+1} - V_t + gamma lam A_{t+1}`, and the returns `A + V`.

  The next of a token is the next one that counts: what is masked between two, such as the output of a tool, is passed
  over. After the last one the value is 0.

  Args:
    rewards: of each token; see `shaped_rewards`.
    values: the critic's, of the text before each token.
    where: the tokens of the response.
    gamma: in [0, 1].
    lam: in [0, 1]: 0 trusts the critic, 1 the rewards.

  Returns:
    `(advantages, returns)`, float32, without a gradient; 0 where masked. Whiten the first, not the second.

  Raises:
    ValueError: gamma or lam out of range.

  Example:
    >>> rewards, values, where = jnp.array([[0.0, 0.0, 1.0]]), jnp.array([[0.5, 0.5, 0.5]]), jnp.array([[1, 0, 1]])
    >>> gae(rewards, values, where, lam=1.0)
    (Array([[0.5, 0. , 0.5]], dtype=float32), Array([[1., 0., 1.]], dtype=float32))

  Source: Schulman et al. 2015 (arXiv 1506.02438).

  TRL: `experimental.ppo.PPOTrainer`, not in its wheel
  """
  in_range("gamma", gamma, "[0, 1]")
  in_range("lam", lam, "[0, 1]")
  rewards, values = jax.lax.stop_gradient(masked(where, rewards, values))
  counts = jnp.broadcast_to(jnp.asarray(where) != 0, rewards.shape)

  def back(carry, at):
    next_value, next_advantage = carry
    reward, value, here = at
    advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
    carry = jnp.where(here, value, next_value), jnp.where(here, advantage, next_advantage)
    return carry, jnp.where(here, advantage, 0.0)

  nothing = jnp.zeros_like(rewards[:, 0])
  _, advantages = jax.lax.scan(back, (nothing, nothing), (rewards.T, values.T, counts.T), reverse=True)
  return advantages.T, jnp.where(counts, advantages.T + values, 0.0)


@check_arrays
def shaped_rewards(
    log_ratios: Float[AnyArray, "batch time"],
    scores: Float[AnyArray, " batch"],
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"],
    *,
    kl_coef: float = 0.05,
    clip: float | None = None,
) -> Float[Array, "batch time"]:
  """PPO's reward of each token, `-kl_coef (log p_old - log p_ref)`, and the score of the response at its last token.

  Args:
    log_ratios: of the policy that sampled to the reference, by token.
    scores: of the responses, by a reward model or a rule.
    where: the tokens of the response; one without any gets nothing.
    kl_coef: >= 0.
    clip: > 0, to which scores are cut, both ways; None leaves them.

  Returns:
    The rewards, float32, without a gradient; 0 where masked.

  Raises:
    ValueError: kl_coef or clip out of range.

  Example:
    >>> shaped_rewards(jnp.array([[0.0, 1.0, 9.0]]), jnp.array([2.0]), jnp.array([[1, 1, 0]]), kl_coef=0.5)
    Array([[0. , 1.5, 0. ]], dtype=float32)

  Source: Stiennon et al. 2020; with clipped scores Ye et al. 2024, TL-Training (arXiv 2412.15495). TRL adds the score
  one position later where there is one, so that its value mask is longer than its policy mask.
  """
  in_range("kl_coef", kl_coef, "[0, inf)")
  if clip is not None:
    in_range("clip", clip, "(0, inf)")
    scores = jnp.clip(scores, -clip, clip)
  log_ratios, scores = jax.lax.stop_gradient(masked(where, log_ratios)[0]), jax.lax.stop_gradient(jnp.asarray(scores))
  counts = jnp.asarray(where) != 0
  last = counts & (jnp.cumsum(counts[:, ::-1], axis=1)[:, ::-1] == 1)
  return -kl_coef * log_ratios + jnp.where(last, scores[:, None].astype(jnp.float32), 0.0)


def _scored(rewards: AnyArray, where: AnyArray | None) -> tuple[Array, Array]:
  rewards = jax.lax.stop_gradient(jnp.asarray(rewards))
  kept = ~jnp.isnan(rewards) if where is None else ~jnp.isnan(rewards) & where
  return kept, masked(kept, rewards)[0]


def _count(kept: Array) -> Array:
  return jnp.sum(kept, axis=1, keepdims=True)


def _from_first(rewards: Array, kept: Array) -> Array:
  """Less the first of each row that counts, 0 where none does: of equal rewards nothing is left, to the last bit."""
  first = jnp.take_along_axis(rewards, jnp.argmax(kept, axis=1, keepdims=True), axis=1)
  return jnp.where(kept, rewards - first, 0.0)


def _mean(rewards: Array, kept: Array) -> Array:
  return jnp.sum(rewards, axis=1, keepdims=True) / jnp.maximum(_count(kept), 1)
