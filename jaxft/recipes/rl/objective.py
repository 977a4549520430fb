"""The objective of a policy loss: answers of a step, scored without holding their logits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxft import losses
from jaxft.checks import in_range, pick
from jaxft.losses import Mean
from jaxft.models import decoder
from jaxft.models.remat import Policy as Remat
from jaxft.recipes.rl.losses import POLICY_LOSSES, PolicySettings
from jaxft.signatures import AnyArray
from jaxft.training.recipe import Objective
from jaxft.training.rl import Rollouts, decoder_log_probs

POSITIONS = 1024  # of all rows, whose logits are held at once


class Answers(NamedTuple):
  """What an update learns from: prompts with an answer each, and what is known of them; constants.

  Attributes:
    tokens, mask: prompts, and from a fixed column on the answers.
    where: the tokens of the answers that count.
    advantages: of the answers.
    old: log-probabilities of the answers' tokens before the first update; None where there is no other.
    reference: the same by the model before tuning; None where nothing reads them.
  """

  tokens: Int[AnyArray, "rows time"]
  mask: Bool[AnyArray, "rows time"]
  where: Bool[AnyArray, "rows new"]
  advantages: Float[AnyArray, " rows"]
  old: Float[AnyArray, "rows new"] | None = None
  reference: Float[AnyArray, "rows new"] | None = None


def answer_log_probs(
    config: decoder.DecoderConfig, *, temperature: float, dtype: Any = jnp.float32, remat: Remat = "none"
) -> Callable[[Any, Answers], Float[Array, "rows new"]]:
  """`(params, answers) -> log-probabilities` of the answers' tokens at the temperature of the draws, 0 elsewhere."""

  def score(params: Any, answers: Answers) -> Float[Array, "rows new"]:
    rows, time = answers.tokens.shape
    start = time - answers.where.shape[1]
    where = jnp.pad(jnp.asarray(answers.where), ((0, 0), (start, 0)))
    # Logits of about a thousand positions are held at once.
    log_probs = decoder_log_probs(
        config, temperature=temperature, start=start, chunk=max(1, POSITIONS // rows), dtype=dtype, remat=remat)
    none = jnp.zeros(where.shape, jnp.float32)
    return log_probs(params, Rollouts(jnp.asarray(answers.tokens), jnp.asarray(answers.mask), where, none))[:, start:]

  return score


def policy(
    config: decoder.DecoderConfig, name: str, settings: PolicySettings, *, dtype: Any = jnp.float32,
    remat: Remat = "dots",
) -> Objective:
  """A loss of `POLICY_LOSSES` and beside it beta times the divergence from the reference, unless the reward has it.

  Metrics are `clipped`, the share of tokens whose ratio lies beyond the clip, and `kl`.

  Args:
    config: of the decoder.
    name: a key of `POLICY_LOSSES`.
    settings: of the loss; `policy_settings` gives the usual ones.
    dtype, remat: as of `decoder.hidden_states`.

  Raises:
    ValueError: an unknown name, or a setting out of its range.
  """
  loss = pick("loss", name, POLICY_LOSSES)
  in_range("beta", settings.beta, "[0, inf)")
  score = answer_log_probs(config, temperature=settings.temperature, dtype=dtype, remat=remat)
  one = jnp.zeros((1, 1))
  jax.eval_shape(lambda: loss.make(losses, one, None, one[0], settings, None))  # numbers out of range
  most: dict[str, Any] = {"max_length": settings.max_new_tokens} if loss.mode == "seq-mean-token-sum-norm" else {}

  def objective(params: Any, answers: Answers, key: jax.Array) -> tuple[Mean, dict[str, Any]]:
    del key
    new, where = score(params, answers), answers.where
    values, weights = loss.make(losses, new, answers.old, answers.advantages, settings, where)
    ratio = losses.importance_ratio(new, answers.old, level=loss.level, where=where)
    metrics: dict[str, Any] = {}
    if (answers.reference is None) == bool(settings.beta and not loss.beta_of_reward):
      raise ValueError(f"answers must have reference where beta > 0 is of the loss, and there alone; got beta = "
                       f"{settings.beta} and {'none' if answers.reference is None else 'an array'}")
    if answers.reference is not None:
      apart, _ = losses.kl_estimate(new, answers.reference, ratios=ratio, where=where)
      values, metrics["kl"] = values + settings.beta * apart, Mean.of(jax.lax.stop_gradient(apart), where)
    if loss.clip_low is not None and settings.clip_low is not None and settings.clip_high is not None:
      gain = jnp.asarray(answers.advantages)[:, None]
      beyond = (ratio < 1 - settings.clip_low) & (gain < 0) | (ratio > 1 + settings.clip_high) & (gain > 0)
      metrics["clipped"] = Mean.of(beyond.astype(jnp.float32), where)
    return losses.aggregate_tokens(values, weights, mode=loss.mode, **most), metrics

  return objective
