"""Rewards without a gradient, such as whether a caption finds its image: the score function, and what lowers its noise.

Three steps: sample captions (no gradient), reward them (`retrieval_reward`, on any device or host), and minimize
`reinforce` of their log-probabilities (`sequence_log_probs`) with the reward less a baseline.

A running baseline is a `Mean` that grows by the batch's mean after each step, so that it is that of the batches before:

    values, weights = reinforce(log_probs, rewards - baseline.value)
    baseline += Mean(rewards.mean(), 1.0)
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxft.checks import in_range, one_of
from jaxft.losses.contrastive import cosine_similarity, normalize
from jaxft.losses.reduction import count_of
from jaxft.signatures import AnyArray, check_arrays

Reward = Literal["log_prob", "accuracy", "similarity"]


@check_arrays
def retrieval_reward(
    text: Float[AnyArray, "batch dim"],
    image: Float[AnyArray, "images dim"],
    target: Int[AnyArray, " batch"] | None = None,
    *,
    scale: float = 100.0,
    extra: Float[AnyArray, "batch distractors dim"] | None = None,
    kind: Reward = "log_prob",
) -> Float[Array, " batch"]:
  """How well a caption finds its image among those of the batch, by a frozen retriever.

  With `a_ij = scale cos(text_i, image_j)`: `log softmax(a_i)[target]`, whether the target is first, or `a_i,target`.

  Args:
    text: the retriever's embeddings of the captions.
    image: its embeddings of the images.
    target: the image of each caption; None is row i's image i. One that does not exist gives NaN.
    scale: > 0; CLIP's is 100.
    extra: hard distractors of each caption, such as its image's nearest neighbours in the training set.
    kind: "log_prob", "accuracy" or "similarity".

  Returns:
    The rewards, constants, float32; of "accuracy" 1 or 0, and 0 at ties.

  Raises:
    ValueError: an unknown kind, scale <= 0, or no target with another number of images than captions.

  Example:
    >>> retrieval_reward(jnp.ones((2, 3)), jnp.ones((2, 3))).round(3)  # log 1/2: all are alike
    Array([-0.693, -0.693], dtype=float32)

  Source: Dessì et al. 2023, DiscriTune (arXiv 2304.01662).
  """
  one_of("kind", kind, get_args(Reward))
  in_range("scale", scale, "(0, inf)")
  if target is None and len(text) != len(image):
    raise ValueError(f"target must be given where images are not one for each text; got {len(image)} for {len(text)}")
  text, image, extra = jax.tree.map(jax.lax.stop_gradient, (text, image, extra))
  logits = scale * cosine_similarity(text, image)
  at = jnp.arange(len(text)) if target is None else target
  known = (at >= 0) & (at < logits.shape[1])
  column = jnp.where(known, at, 0)[:, None]
  own = jnp.take_along_axis(logits, column, axis=1)[:, 0]
  if extra is not None:
    logits = jnp.concatenate([logits, scale * jnp.sum(normalize(text)[:, None] * normalize(extra), axis=-1)], axis=1)
  if kind == "similarity":
    reward = own
  elif kind == "accuracy":
    others = jnp.where(jnp.arange(logits.shape[1]) == column, -jnp.inf, logits)
    reward = (own > jnp.max(others, axis=1)).astype(jnp.float32)
  else:
    reward = own - jax.nn.logsumexp(logits, axis=1)
  return jax.lax.stop_gradient(jnp.where(known, reward, jnp.nan))


@check_arrays
def reinforce(
    log_probs: Float[AnyArray, " batch"],
    advantages: Float[AnyArray, " batch"],
    *,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """`-advantage log p(sample)`, whose gradient is that of the expected reward, with its sign turned.

  Args:
    log_probs: of what was sampled, by the model in training and at the sampler's temperature.
    advantages: rewards less a baseline that does not depend on the sample; constants.
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the rows, float32. The value itself means little: log the reward.

  Example:
    >>> values, weights = reinforce(jnp.array([-2.0, -1.0]), jnp.array([0.5, -0.5]))
    >>> np.array(values), weights
    (array([ 1. , -0.5], dtype=float32), Array([1., 1.], dtype=float32))

  Source: Williams 1992; of captions Dessì et al. 2023 (arXiv 2304.01662), with log-probabilities per token and a
  running
  mean.
  """
  advantages = jax.lax.stop_gradient(advantages)
  if where is not None:
    log_probs, advantages = (jnp.where(where, x, 0) for x in (log_probs, advantages))
  values = -jnp.asarray(advantages, jnp.float32) * jnp.asarray(log_probs, jnp.float32)
  return values, count_of(where, values.shape)


@check_arrays
def leave_one_out(rewards: Float[AnyArray, "batch samples"]) -> Float[Array, "batch samples"]:
  """The baseline of each of several samples: the mean reward of the others for the same input.

  Args:
    rewards: of two or more samples.

  Raises:
    ValueError: of one sample.

  Example:
    >>> leave_one_out(jnp.array([[1.0, 2.0, 6.0]]))
    Array([[4. , 3.5, 1.5]], dtype=float32)

  Source: Kool et al. 2019, Buy 4 REINFORCE Samples, Get a Baseline for Free!
  """
  samples = rewards.shape[1]
  if samples < 2:
    raise ValueError(f"rewards must be of two or more samples; got {samples}")
  rewards = jnp.asarray(rewards, jnp.float32)
  return (jnp.sum(rewards, axis=1, keepdims=True) - rewards) / (samples - 1)


@check_arrays
def whiten(
    advantages: Float[AnyArray, " *shape"], *, where: Bool[AnyArray, " *shape"] | None = None, eps: float = 1e-8,
    ddof: int = 0,
) -> Float[Array, " *shape"]:
  """`(x - mean) / sqrt(variance + eps)` over the batch, so that one learning rate suits rewards of any scale.

  Args:
    advantages: of the rows, or of tokens.
    where: those that count; the others give 0.
    eps: >= 0, for rewards that are all alike.
    ddof: 0, or 1 for the unbiased variance, which PPO takes.

  Raises:
    ValueError: eps below 0 or not finite, or another ddof.

  Example:
    >>> whiten(jnp.array([1.0, 3.0]))
    Array([-1.,  1.], dtype=float32)
  """
  in_range("eps", eps, "[0, inf)")
  if ddof not in (0, 1):
    raise ValueError(f"ddof must be 0 or 1; got {ddof}")
  kept = jnp.ones(advantages.shape, bool) if where is None else where
  x = jnp.asarray(jnp.where(kept, advantages, 0), jnp.float32)
  count = jnp.maximum(jnp.sum(kept), 1)
  apart = jnp.where(kept, x - jnp.sum(x) / count, 0.0)
  return apart / jnp.sqrt(jnp.sum(apart * apart) / jnp.maximum(count - ddof, 1) + eps)
