"""The objective of a preference loss: two responses of a row in one pass, scored without holding their logits.

A batch holds `ids`, `mask` and `loss_mask` `[B, sides, T]`: the chosen and the rejected response, each with the prompt;
of judged responses the response and one to another prompt, by which KTO estimates how far the policy has moved; or a
single response. Where the loss reads a reference, `reference` `[B, sides]` holds its scores; `desirable` `[B]` the
judgements; `where` `[B]`, if present, is False at rows that fill up a batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxft import losses
from jaxft.checks import in_range, pick
from jaxft.losses import Mean, Terms
from jaxft.models import decoder
from jaxft.models.remat import Policy
from jaxft.recipes.preference.losses import PREFERENCES, Preference, Settings
from jaxft.training.gradient_cache import embed_cached
from jaxft.training.recipe import Objective

Batch = Any
POSITIONS = 1024  # of all rows, whose logits are held at once
INPUTS = ("ids", "mask", "loss_mask", "reference", "desirable", "where")


class Scores(NamedTuple):
  """Of each row and side the sum of the log-probabilities of the response's tokens, and their number.

  Attributes:
    sums, tokens: `[B, sides]`, float32; in the sums `length_alpha` makes light of tokens beyond the shorter side.
    whole: the sums in which each token counts alike.
    text, text_tokens: of prompt and response of the first side, `[B]`.
    near: `wpo_weights`; None where they are not asked for.
  """

  sums: Float[Array, "batch sides"]
  tokens: Float[Array, "batch sides"]
  whole: Float[Array, "batch sides"]
  text: Float[Array, " batch"]
  text_tokens: Float[Array, " batch"]
  near: Float[Array, "batch sides"] | None = None

  def of(self, score: str) -> Float[Array, "batch sides"]:
    """The sums, or the averages over tokens."""
    return self.sums if score == "sum" else self.whole / jnp.maximum(self.tokens, 1)


class Sides(NamedTuple):
  """What a loss of `PREFERENCES` reads: scores under policy and reference, numbers of tokens, and which rows count."""

  policy: Float[Array, "batch sides"]
  reference: Float[Array, "batch sides"]
  tokens: Any
  desirable: Any
  kl: Any
  where: Any

  @property
  def two(self) -> tuple[Array, Array]:
    """Of the chosen and of the rejected response."""
    return self.policy[:, 0], self.policy[:, 1]

  @property
  def four(self) -> tuple[Array, Array, Array, Array]:
    """The same of the policy and of the reference."""
    return (*self.two, self.reference[:, 0], self.reference[:, 1])


def score_function(
    config: decoder.DecoderConfig, *, text: bool = False, length_alpha: float = 1.0, near: bool = False,
    dtype: Any = jnp.float32, remat: Policy = "dots",
) -> Callable[[Any, Batch], Scores]:
  """`(params, batch) -> Scores`; the logits of about a thousand positions are held at once.

  Args:
    config: of the decoder.
    text: score the prompt of the first side too; what is not asked for is 0.
    length_alpha: how much tokens count that go beyond the length of the shortest side.
    near: weigh each response by how near it is to the policy's own, which takes the entropies' pass over the logits.
    dtype, remat: as of `decoder.hidden_states`.
  """

  def score(params: Any, batch: Batch) -> Scores:
    rows, sides, time = batch["ids"].shape
    flat = {name: batch[name].reshape(rows * sides, time) for name in ("ids", "mask", "loss_mask")}
    hidden = decoder.hidden_states(params, config, flat["ids"], mask=flat["mask"], dtype=dtype, remat=remat).hidden
    kernel, transposed = decoder.head(params, config)
    wanted = batch["loss_mask"]
    if text:
      wanted = jnp.concatenate([batch["mask"][:, :1], wanted[:, 1:]], axis=1)
    of_tokens = losses.token_statistics if near else losses.linear_token_log_probs
    found = of_tokens(
        hidden, kernel, flat["ids"], wanted.reshape(rows * sides, time), transposed=transposed,
        chunk=max(1, POSITIONS // (rows * sides)))
    log_probs, weights = (x.reshape(rows, sides, time) for x in (found[0], found[-1]))
    response = batch["loss_mask"] != 0
    total = lambda x: jnp.sum(jnp.where(response, x, 0.0), axis=-1)
    tokens, weighed = total(weights), None
    if isinstance(found, losses.TokenStatistics):
      weighed = losses.wpo_weights(found.log_probs, found.log_collisions, (response & (weights > 0)).reshape(
          rows * sides, time)).reshape(rows, sides)
    sums = whole = total(log_probs)
    if length_alpha != 1:
      shared = jnp.repeat(jnp.min(tokens, axis=1).astype(jnp.int32), sides)
      sums = losses.length_desensitized(
          log_probs.reshape(rows * sides, time), (response & (weights > 0)).reshape(rows * sides, time), shared,
          alpha=length_alpha).reshape(rows, sides)
    zero = jnp.zeros(rows, jnp.float32)
    of_text = (jnp.sum(log_probs[:, 0], axis=-1), jnp.sum(weights[:, 0], axis=-1)) if text else (zero, zero)
    return Scores(sums, tokens, whole, *of_text, weighed)

  return score


def sides_of(loss: Preference, scores: Scores, batch: Batch) -> Sides:
  """What the loss reads; rows in which a response has no token left do not count."""
  responses = 1 if loss.sides == "judged" else scores.tokens.shape[1]
  where = jnp.all(scores.tokens[:, :responses] > 0, axis=1)
  if batch.get("where") is not None:
    where = where & batch["where"]
  policy = scores.of(loss.score)
  reference = jnp.asarray(batch["reference"]) if loss.reference else jnp.zeros_like(policy)
  kl: Any = 0.0
  if loss.sides == "judged":
    moved = losses.mismatched_kl(policy[:, 1] - reference[:, 1], where=where & (scores.tokens[:, 1] > 0))
    kl = jnp.maximum(moved.value, 0.0)
  return Sides(policy, reference, scores.tokens.astype(jnp.int32), batch.get("desirable"), kl, where)


def preference(
    config: decoder.DecoderConfig, name: str, settings: Settings, *, chunks: int = 1, mesh: Mesh | None = None,
    dtype: Any = jnp.float32, remat: Policy = "dots",
) -> Objective:
  """A loss of `PREFERENCES` and, where its weight is not 0, the likelihood of the chosen response beside it.

  Micro-batches equal one batch: the likelihood is a mean of its own (`Terms`), and a loss that compares all of a batch
  scores it in `chunks` and compares it whole. Metrics are `accuracy`, the share of pairs whose chosen response leads by
  what the loss ranks, `margin`, by how much, in nats, and the log-probabilities a token of both responses (of
  single ones `log_prob`), as in the validation.

  Args:
    config: of the decoder.
    name: a key of `PREFERENCES`.
    settings: of the loss; `settings_of` gives the usual ones.
    chunks: of a loss with `whole`: into how many the batch is cut; its activations are held a chunk at a time.
    mesh: of the step.
    dtype, remat: as of `decoder.hidden_states`.

  Raises:
    ValueError: an unknown name, a setting out of its range, or chunks of a loss that needs none.
  """
  loss = pick("loss", name, PREFERENCES)
  in_range("length_alpha", settings.length_alpha, "[0, 1]")
  if chunks > 1 and not loss.whole:
    raise ValueError(f"chunks must be 1 with {name}, whose micro-batches add up; got {chunks}")
  _check_settings(loss, settings)
  score = score_function(config, **scored_by(loss, settings), dtype=dtype, remat=remat)

  def scores_of(params: Any, batch: Batch, key: jax.Array) -> Scores:
    del key
    if loss.sides != "judged":
      return score(params, batch)
    side = lambda params, i: score(params, {x: batch[x][:, i:i + 1] for x in ("ids", "mask", "loss_mask")})
    own, other = side(params, 0), side(jax.lax.stop_gradient(params), 1)  # nothing is learnt from the second
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1) if a.ndim == 2 else a, own, other)

  def objective(params: Any, batch: Batch, key: jax.Array) -> tuple[Mean | Terms, dict[str, Any]]:
    inputs = {x: batch[x] for x in INPUTS if x in batch}
    scores = scores_of(params, inputs, key) if chunks == 1 else (
        embed_cached(scores_of, params, inputs, key, chunks=chunks, mesh=mesh))
    return value_of(loss, settings, scores, inputs)

  return objective


def _check_settings(loss: Preference, settings: Settings) -> None:
  """Raises ValueError where a number is out of the range of its loss, before a batch is read."""
  rows = jnp.zeros((2, 1 if loss.sides == "response" else 2))
  sides = Sides(rows, rows, jnp.ones(rows.shape, jnp.int32), jnp.array([True, False]), 0.0, None)
  jax.eval_shape(lambda: loss.make(losses, sides, settings))


def scored_by(loss: Preference, settings: Settings) -> dict[str, Any]:
  """What a policy is scored by; a reference by `length_alpha` alone."""
  return {"text": wants_text(loss, settings), "length_alpha": settings.length_alpha, "near": settings.wpo}


def wants_text(loss: Preference, settings: Settings) -> bool:
  """Whether prompts are scored too."""
  return settings.likelihood != 0 and loss.likelihood_of == "texts"


def value_of(
    loss: Preference, settings: Settings, scores: Scores, batch: Batch
) -> tuple[Mean | Terms, dict[str, Any]]:
  """What an objective gives, from the scores of a batch."""
  sides = sides_of(loss, scores, batch)
  values, weights = loss.make(losses, sides, settings)
  if scores.near is not None:  # the mean stays one by the number of pairs
    values = values * jnp.where(weights > 0, jnp.prod(scores.near, axis=1), 1.0)
  ranked = Mean.of(values, weights)
  if settings.likelihood == 0:
    return ranked, _metrics(loss, sides, scores)
  weight = settings.beta if loss.beta_weighs and settings.beta is not None else 1.0
  likelihood = settings.likelihood, _likelihood(loss, scores, sides)
  return Terms.of((weight, ranked), likelihood), _metrics(loss, sides, scores)


def _likelihood(loss: Preference, scores: Scores, sides: Sides) -> Mean:
  if loss.likelihood_of == "average":
    return Mean.of(-scores.of("average")[:, 0], sides.where)
  of_text = loss.likelihood_of == "texts"
  total, tokens = (scores.text, scores.text_tokens) if of_text else (scores.whole[:, 0], scores.tokens[:, 0])
  counted = jnp.where(sides.where, tokens, 0.0)
  return Mean(-jnp.sum(jnp.where(sides.where, total, 0.0)), jnp.sum(counted))


def leads(loss: Preference, sides: Sides) -> Float[Array, " batch"]:
  """By how much, of each row: the chosen response before the rejected one, or the policy before the references."""
  gained = sides.policy - sides.reference
  return gained[:, 0] - gained[:, 1] if loss.sides == "pair" else gained[:, 0]


def _metrics(loss: Preference, sides: Sides, scores: Scores) -> dict[str, Mean]:
  constant, average = jax.lax.stop_gradient((sides, scores.of("average")))
  lead, of = leads(loss, constant), lambda x, where=constant.where: Mean.of(x, where)
  if loss.sides == "judged":
    good = jnp.asarray(constant.desirable)
    return {"kl": Mean(constant.kl * 1.0, jnp.ones(())), "gain_desirable": of(lead, constant.where & good),
            "gain_undesirable": of(lead, constant.where & ~good)}
  names = ("log_prob",) if average.shape[1] == 1 else ("chosen", "rejected")
  return {"accuracy": of((jnp.sign(lead) + 1) / 2), "margin": of(lead),
          **{name: of(average[:, i]) for i, name in enumerate(names)}}


def settings_of(name: str, **given: Any) -> Settings:
  """The settings of a loss: those that are given and not None, and the usual ones for the others.

  Raises:
    ValueError: an unknown name.
  """
  loss = pick("loss", name, PREFERENCES)
  usual = {option: getattr(loss, option) for option in ("beta", "label_smoothing", "margin", "likelihood")}
  return Settings(**usual | {option: value for option, value in given.items() if value is not None})
