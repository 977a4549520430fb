"""Objectives of distillation: what a student says of a batch, compared with what its teacher said of it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxft.formats.huggingface_config import Config
from jaxft.losses import (
  Mean,
  candidate_scores,
  cosine_similarity,
  distill_scores,
  linear_generalized_jsd,
  margin_mse,
  squared_error,
  token_weights,
)
from jaxft.models import decoder, encoder
from jaxft.models.remat import Policy
from jaxft.recipes.distillation.teacher import KEY, alone
from jaxft.recipes.objectives import Batch, prediction_scores
from jaxft.training.gradient_cache import embed_cached
from jaxft.training.recipe import Objective

Tokens = tuple[Float[Array, "batch time"], Float[Array, "batch time"]]
KEYS = ("anchor", "positive", "negative", "text")


def token_divergence(
    config: decoder.DecoderConfig, teacher: decoder.DecoderConfig, *, beta: float, temperature: float,
    dtype: Any = jnp.float32, remat: Policy = "dots",
) -> Callable[[Any, Batch], Tokens]:
  """`(params, batch) -> (nats, weights)` of the tokens that `loss_mask` marks, of a batch as of `language`.

  The params hold the teacher's as `teacher`; its logits and the student's are formed a piece at a time.
  """

  def run(params: Any, config: decoder.DecoderConfig, batch: Batch, remat: Policy) -> tuple[Array, decoder.Head]:
    layout = {"mask": batch.get("mask"), "segment_ids": batch.get("segment_ids")}
    hidden = decoder.hidden_states(params, config, batch["ids"], dtype=dtype, remat=remat, **layout).hidden
    return hidden[:, :-1], decoder.head(params, config)

  def divergence(params: Any, batch: Batch) -> Tokens:
    where = batch["loss_mask"] * batch["where"][:, None] if "where" in batch else batch["loss_mask"]
    weights = token_weights(
        batch["ids"], where, mask=batch.get("mask"), segment_ids=batch.get("segment_ids"))[:, 1:]
    hidden, head = run(alone(params), config, batch, remat)
    said, its_head = run(jax.lax.stop_gradient(params[KEY]), teacher, batch, "none")
    return linear_generalized_jsd(
        hidden, head.kernel, said, its_head.kernel, beta=beta, temperature=temperature, where=weights,
        transposed=head.transposed, teacher_transposed=its_head.transposed)

  return divergence


def tokens(config: decoder.DecoderConfig, teacher: decoder.DecoderConfig, **options: Any) -> Objective:
  """GKD on given text: the mean divergence of a token, options as of `token_divergence`."""
  divergence = token_divergence(config, teacher, **options)
  return lambda params, batch, key: (Mean.of(*divergence(params, batch)), {})


def classes(config: Config, *, temperature: float, dtype: Any = jnp.float32, remat: Policy = "dots") -> Objective:
  """Hinton's divergence between the scores of classes, of a batch with what `features` takes and `teacher` `[B, C]`."""
  run = prediction_scores(config, dtype=dtype, remat=remat)
  return lambda params, batch, key: (
      Mean.of(*distill_scores(run(params, batch), batch[KEY], temperature=temperature)), {})


def numbers(config: Config, *, dtype: Any = jnp.float32, remat: Policy = "dots") -> Objective:
  """The squared error to a regressor's numbers, of a batch with what `features` takes and `teacher` `[B, 1]`."""
  run = prediction_scores(config, dtype=dtype, remat=remat)
  return lambda params, batch, key: (Mean.of(*squared_error(run(params, batch)[:, 0], batch[KEY][:, 0])), {})


def vectors(
    config: encoder.EncoderConfig, name: str, *, temperature: float | None, chunks: int = 1, mesh: Mesh | None = None,
    dtype: Any = jnp.float32, remat: Policy = "dots",
) -> Objective:
  """The vectors of an encoder beside its teacher's, by a loss of `DISTILLATIONS`.

  A batch holds `anchor`, `positive` and perhaps `negative`, or `text`, each with `ids` and `mask` `[B, T]` and
  `teacher`, a vector `[B, dim of the teacher]`.

  - similarity_kl: which of the batch's texts a text is like, as a distribution at the temperature.
  - similarity_mse: the cosines of all pairs of them.
  - margin_mse: the lead of the positive over the negative.
  - embedding_mse: the vectors themselves, of one width: `mean_d (s_d - t_d)^2`, over the texts of a row.

  Args:
    config, chunks, mesh, dtype, remat: see `text_pairs`.
    name: of the loss.
    temperature: of similarity_kl, on both sides.
  """
  run = partial(encoder.embed, config=config, dtype=dtype, remat=remat)
  embed = lambda params, texts, key: {name: run(params, ids=x["ids"], mask=x["mask"]) for name, x in texts.items()}

  def objective(params: Any, batch: Batch, key: jax.Array) -> tuple[Mean, dict[str, Any]]:
    texts = {name: {x: batch[name][x] for x in ("ids", "mask")} for name in KEYS if name in batch}
    own = embed(params, texts, key) if chunks == 1 else (
        embed_cached(embed, params, texts, key, chunks=chunks, mesh=mesh))
    said = {name: batch[name][KEY] for name in texts}
    return Mean.of(*compared(name, own, said, temperature)), {}

  return objective


def compared(
    name: str, own: dict[str, Array], said: dict[str, Array], temperature: float | None
) -> tuple[Float[Array, " rows"], Float[Array, " rows"]]:
  """Values and weights of the rows of a batch, from the student's vectors and the teacher's."""
  if name == "embedding_mse":
    each = jnp.stack([jnp.mean(jnp.square(own[key].astype(jnp.float32) - said[key]), axis=1) for key in own])
    values = jnp.mean(each, axis=0)
    return values, jnp.ones_like(values)
  if name == "margin_mse":
    lead = lambda x: candidate_scores(
        x["anchor"], jnp.stack([x["positive"], x["negative"]], axis=1), similarity="cosine")
    return margin_mse(lead(own), lead(said))
  scores, its_scores, where = similarities(own), similarities(said), others(own)
  if name == "similarity_kl":
    assert temperature is not None
    return distill_scores(scores, its_scores, temperature=temperature, where=where, scale=False)
  each = jnp.where(where, jnp.square(scores - its_scores), 0.0)
  values = jnp.sum(each, axis=1) / jnp.maximum(jnp.sum(where, axis=1), 1)
  return values, jnp.any(where, axis=1).astype(jnp.float32)


def similarities(vectors: dict[str, Array]) -> Float[Array, "rows candidates"]:
  """The cosines of each anchor with all positives and negatives, or of each text with all texts."""
  if "text" in vectors:
    return cosine_similarity(vectors["text"], vectors["text"])
  candidates = [vectors[name] for name in ("positive", "negative") if name in vectors]
  return cosine_similarity(vectors["anchor"], jnp.concatenate(candidates))


def others(vectors: dict[str, Array]) -> Any:
  """Which of them are compared: all, but for a text with itself."""
  if "text" in vectors:
    return ~jnp.eye(len(vectors["text"]), dtype=bool)
  rows = len(vectors["anchor"])
  return jnp.ones((rows, rows * (len(vectors) - 1)), bool)
