"""What a run minimizes: objectives `(params, batch, key) -> (Mean, metrics)`, made from a model and a loss."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxft.formats.families import family_of
from jaxft.formats.heads import apply_head
from jaxft.formats.huggingface_config import Config
from jaxft.losses import (
  Mean,
  cosent,
  cosine_similarity,
  cross_entropy,
  guided_info_nce,
  multiple_negatives_ranking,
  packed_text_ids,
  squared_error,
  supervised_contrastive,
  text_ids,
)
from jaxft.models import decoder, encoder
from jaxft.models.heads.pooling import by_text
from jaxft.models.pixels import standardize
from jaxft.models.remat import Policy
from jaxft.training.gradient_cache import embed_cached
from jaxft.training.recipe import Objective

Batch = Any
TEXTS = ("anchor", "positive", "negative")
SCORED = ("sentence1", "sentence2")

# Anchors and positives `[batch, dim]`, negatives `[batch, n, dim]` or None.
Rows = tuple[Float[Array, "batch dim"], Float[Array, "batch dim"], Float[Array, "batch n dim"] | None]


def contrastive(
    embed: Callable[[Any, Batch, jax.Array], Rows], *, guide: Callable[[Batch], Rows] | None = None,
    where: Callable[[Batch], Any] = lambda batch: None, copies: Callable[[Batch], dict[str, Any]] = lambda batch: {},
    **options: Any,
) -> Objective:
  """InfoNCE among the rows of a batch, or GISTEmbed's guided loss.

      objective = contrastive(lambda params, batch, key: (queries(params, batch), documents(params, batch), None))

  Args:
    embed: `(params, batch, key) -> (anchors, positives, negatives)`.
    guide: `batch -> ` the guide's embeddings of the same three. With a guide the loss is `guided_info_nce`, without one
      `multiple_negatives_ranking`.
    where: `batch -> ` False for rows that do not count.
    copies: `batch -> {"query_ids", "positive_ids", "negative_ids"}` or some of them: by these the loss tells copies of
      a row's texts, which are no negatives of it.
    options: of the loss.
  """

  def objective(params: Any, batch: Batch, key: jax.Array) -> tuple[Mean, dict[str, Any]]:
    rows, read = embed(params, batch, key), {"where": where(batch), **copies(batch), **options}
    losses = multiple_negatives_ranking(*rows, **read) if guide is None else (
        guided_info_nce(*rows, *guide(batch), **read))
    return Mean.of(*losses), {}

  return objective


def text_pairs(
    config: encoder.EncoderConfig, *, guided: bool = False, chunks: int = 1, slots: int | None = None,
    mesh: Mesh | None = None, dtype: Any = jnp.float32, remat: Policy = "dots", **options: Any,
) -> Objective:
  """Pairs or triples of texts through the encoder, then `contrastive`.

  A batch holds `anchor`, `positive` and perhaps `negative`, each with `ids` and `mask` `[B, T]` and, where guided,
  `guide`, the guide's vector `[B, dim]`; `where` `[B]`, if present, is False at rows that fill up a batch. Data sets
  repeat themselves: a copy of a row's texts elsewhere in the batch is no negative of it, and its partner is none.

  Texts may share rows, so that nothing is spent on padding: where a side has `segment_ids` in place of `mask`, it is of
  `jaxft.data.pack_texts`, `[rows, T]`, text i being the segment i + 1. `where` is then there, as it says what B is.

  Args:
    config: of the encoder.
    guided: GISTEmbed's loss; what the guide cannot tell from the positive is dropped too.
    chunks: the number of micro-batches in which rows are embedded; all texts are compared with all (GradCache).
    slots: of packed rows in chunks, the most texts of a row, as given to `pack_texts`; a row with more makes the loss
      NaN.
    mesh: where the micro-batches lie.
    dtype, remat: see `encoder.embed`.
    options: of the loss; those that are None take its own defaults.

  Raises:
    ValueError: while tracing, a side is packed and `where` is not there, or is embedded in chunks without slots.
  """

  run = partial(encoder.embed, config=config, dtype=dtype, remat=remat)

  def padded(params: Any, sides: Batch, key: jax.Array) -> dict[str, jax.Array]:
    del key
    return {name: run(params, ids=side["ids"], mask=side["mask"]) for name, side in sides.items()}

  def packed(params: Any, side: Batch, key: jax.Array, pairs: int) -> Float[Array, "pairs dim"]:
    compute = {"dtype": dtype, "remat": remat}
    if chunks == 1:
      return encoder.embed_packed(params, config, side["ids"], side["segment_ids"], pairs, **compute)
    if slots is None:
      raise ValueError(f"slots must be the most texts of a packed row where chunks is {chunks}; got None")
    most: int = slots
    of_rows = lambda params, rows, key: encoder.embed_segments(
        params, config, rows["ids"], rows["segment_ids"], most, **compute)
    return by_text(embed_cached(of_rows, params, side, key, chunks=chunks, mesh=mesh), side["segment_ids"], pairs)

  def embed(params: Any, batch: Batch, key: jax.Array) -> Rows:
    kept = lambda side: {name: side[name] for name in ("ids", "mask", "segment_ids") if name in side}
    sides = {name: kept(batch[name]) for name in TEXTS if name in batch}
    alone = {name: packed(params, side, key, _pairs(batch)) for name, side in sides.items() if "segment_ids" in side}
    rest = {name: side for name, side in sides.items() if name not in alone}
    if rest and chunks > 1:
      rest = embed_cached(padded, params, rest, key, chunks=chunks, mesh=mesh)
    elif rest:
      rest = padded(params, rest, key)
    return _rows(alone | rest)

  def number(text: Batch, batch: Batch) -> jax.Array:
    if "segment_ids" in text:
      return packed_text_ids(text["ids"], text["segment_ids"], _pairs(batch))
    return text_ids(text["ids"], text["mask"])

  def copies(batch: Batch) -> dict[str, Any]:
    query, positive, negative = _rows({name: number(batch[name], batch) for name in TEXTS if name in batch})
    return {"query_ids": query, "positive_ids": positive, "negative_ids": negative}

  given = {name: value for name, value in options.items() if value is not None}
  given |= {"where": lambda batch: batch.get("where"), "copies": copies}
  if not guided:
    return contrastive(embed, **given)
  guide = lambda batch: _rows({name: batch[name]["guide"] for name in TEXTS if name in batch})
  return contrastive(embed, guide=guide, inclusive=True, **given)


def _pairs(batch: Batch) -> int:
  """How many pairs a batch of packed texts holds."""
  if batch.get("where") is None:
    raise ValueError("a batch of packed texts must hold `where`, with an entry for each pair; got none")
  return len(batch["where"])


def _rows(texts: dict[str, Any]) -> tuple[Any, Any, Any]:
  """Anchor, positive and, as `[B, 1, ...]` as the losses take several of them, the negative or None."""
  negative = texts.get("negative")
  return texts["anchor"], texts["positive"], None if negative is None else negative[:, None]


def scored_pairs(
    config: encoder.EncoderConfig, *, chunks: int = 1, mesh: Mesh | None = None, dtype: Any = jnp.float32,
    remat: Policy = "dots", **options: Any,
) -> Objective:
  """CoSENT: of two pairs of texts, those with the higher score are to be more alike.

  A batch holds `sentence1` and `sentence2`, each with `ids` and `mask` `[B, T]`, and `score` `[B]`; `where` `[B]`, if
  present, is False at rows that fill up a batch.

  Args:
    config, chunks, mesh, dtype, remat: see `text_pairs`.
    options: of `cosent`; those that are None take its own defaults.
  """
  run = partial(encoder.embed, config=config, dtype=dtype, remat=remat)
  vectors = lambda params, texts, key: {name: run(params, ids=x["ids"], mask=x["mask"]) for name, x in texts.items()}
  given = {name: value for name, value in options.items() if value is not None}

  def objective(params: Any, batch: Batch, key: jax.Array) -> tuple[Mean, dict[str, Any]]:
    texts = {name: batch[name] for name in SCORED}
    sides = vectors(params, texts, key) if chunks == 1 else (
        embed_cached(vectors, params, texts, key, chunks=chunks, mesh=mesh))
    one, other = (sides[name] for name in SCORED)
    return Mean.of(*cosent(one, other, batch["score"], where=batch.get("where"), **given)), {}

  return objective


def features(config: Config, *, dtype: Any = jnp.float32, remat: Policy = "dots") -> Callable[[Any, Batch], Array]:
  """`(params, batch) -> [B, dim]`: a model's vectors, not scaled, of a batch with `ids` and `mask`, or with `images`.

  Raises:
    ValueError: the model gives no vectors.
  """
  embed = family_of(config).embed
  if embed is None:
    raise ValueError(f"model must be one that gives vectors of texts or images; got a {family_of(config).kind}")
  plain: Any = dataclasses.replace(config, normalize=False)  # pyright: ignore[reportCallIssue]: decoders are refused

  def run(params: Any, batch: Batch) -> Array:
    if "images" in batch:
      inputs = (standardize(batch["images"], mean=plain.mean, std=plain.std),)
    else:
      inputs = (batch["ids"], batch["mask"])
    return embed(params, plain, *inputs, dtype=dtype, remat=remat)

  return run


def prediction_scores(
    config: Config, *, dtype: Any = jnp.float32, remat: Policy = "dots"
) -> Callable[[Any, Batch], Float[Array, "batch outputs"]]:
  """`(params, batch) -> [B, outputs]`: the head `output` of the params on a model's vectors.

  A head with a dense layer, as transformers has it for encoders, takes the state of the first token.
  """
  first = dataclasses.replace(config, pooling="cls") if isinstance(config, encoder.EncoderConfig) else config
  by_dense = {dense: features(kind, dtype=dtype, remat=remat) for dense, kind in ((True, first), (False, config))}
  return lambda params, batch: apply_head(
      params["output"], by_dense["dense" in params["output"]](params, batch).astype(jnp.float32))


def prediction(config: Config, *, classes: bool, dtype: Any = jnp.float32, remat: Policy = "dots") -> Objective:
  """A classifier by cross-entropy or a regressor by squared error: the head `output` over the model's vectors.

  A batch holds what `features` takes and `target` `[B]`, labels or numbers; `where` `[B]`, if present, is False at rows
  that fill up a batch.
  """
  run = prediction_scores(config, dtype=dtype, remat=remat)

  def objective(params: Any, batch: Batch, key: jax.Array) -> tuple[Mean, dict[str, Any]]:
    del key
    scores = run(params, batch)
    if classes:
      losses = cross_entropy(scores, batch["target"], where=batch.get("where"))
    else:
      losses = squared_error(scores[:, 0], batch["target"], where=batch.get("where"))
    return Mean.of(*losses), {}

  return objective


def same_label(
    config: Config, *, chunks: int = 1, mesh: Mesh | None = None, dtype: Any = jnp.float32, remat: Policy = "dots",
    **options: Any,
) -> Objective:
  """SupCon: examples of one label are each other's positives among all of the batch, which is as of `prediction`.

  Args:
    config: of the model.
    chunks, mesh: see `text_pairs`.
    dtype, remat: see `features`.
    options: of `supervised_contrastive`; those that are None take its own defaults.
  """
  run = features(config, dtype=dtype, remat=remat)
  vectors = lambda params, batch, key: run(params, batch)
  given = {name: value for name, value in options.items() if value is not None}

  def objective(params: Any, batch: Batch, key: jax.Array) -> tuple[Mean, dict[str, Any]]:
    inputs = {name: batch[name] for name in ("images", "ids", "mask") if name in batch}
    x = vectors(params, inputs, key) if chunks == 1 else (
        embed_cached(vectors, params, inputs, key, chunks=chunks, mesh=mesh))
    label, own = batch["target"], jnp.eye(len(x), dtype=bool)
    drop = own if batch.get("where") is None else own | ~batch["where"]
    losses = supervised_contrastive(
        cosine_similarity(x, x), label[:, None] == label, drop=drop, where=batch.get("where"), **given)
    return Mean.of(*losses), {}

  return objective


def language(config: decoder.DecoderConfig, *, dtype: Any = jnp.float32, remat: Policy = "dots") -> Objective:
  """The mean negative log-likelihood of the tokens that `loss_mask` marks, over all of them and not row by row.

  A batch holds `ids`, `mask`, `loss_mask` and, where rows are packed, `segment_ids`, all `[B, T]`; `where` `[B]`, if
  present, is False at rows that fill up a batch.
  """

  nll = language_nll(config, dtype=dtype, remat=remat)
  return lambda params, batch, key: (Mean.of(*nll(params, batch)), {})


def language_nll(
    config: decoder.DecoderConfig, *, dtype: Any = jnp.float32, remat: Policy = "dots"
) -> Callable[[Any, Batch], tuple[Float[Array, "batch time"], Float[Array, "batch time"]]]:
  """`(params, batch) -> (nats, weights)` of each token, of a batch as of `language`."""

  def nll(params: Any, batch: Batch) -> tuple[Array, Array]:
    where = batch["loss_mask"] * batch["where"][:, None] if "where" in batch else batch["loss_mask"]
    layout = {"where": where, "mask": batch.get("mask"), "segment_ids": batch.get("segment_ids")}
    return decoder.token_nll(params, config, batch["ids"], dtype=dtype, remat=remat, **layout)

  return nll
