"""What a run minimizes: objectives `(params, batch, key) -> (Mean, metrics)` made from a config and the options.

A batch of an encoder holds `anchor`, `positive` and perhaps `negative`, each with `ids` and `mask` `[B, T]`, and with
the loss gist also `guide`, the guide's vector `[B, dim]`. A batch of a decoder holds `ids`, `mask`, `loss_mask` and,
where rows are packed, `segment_ids`, all `[B, T]`. `where` `[B]`, if present, is False at rows that fill up a batch.
"""

import functools
from typing import Any

import jax
from jax.sharding import Mesh

from jaxft.cli.choices import DTYPES, pick
from jaxft.cli.options import Compute, Loss
from jaxft.losses import Mean, guided_info_nce, multiple_negatives_ranking
from jaxft.models import decoder, encoder
from jaxft.training.gradient_cache import embed_cached
from jaxft.training.step import Objective

Batch = dict[str, Any]
TEXTS = ("anchor", "positive", "negative")


def contrastive(
    config: encoder.EncoderConfig, loss: str, options: Loss, compute: Compute, *, chunks: int = 1,
    mesh: Mesh | None = None,
) -> Objective:
  """Pairs or triples of texts through the encoder, then GISTEmbed's loss ("gist") or InfoNCE ("mnrl").

  A copy of the positive elsewhere in the batch is dropped too with gist, since data sets repeat themselves. With
  `chunks` the texts are embedded in as many micro-batches and still compared all with all (GradCache).
  """
  run = functools.partial(encoder.embed, dtype=pick("dtype", compute.dtype, DTYPES), remat=compute.remat)
  more = {} if options.temperature is None else {"temperature": options.temperature}

  def embed(params: Any, texts: Batch, key: jax.Array) -> dict[str, jax.Array]:
    del key
    return {name: run(params, config, text["ids"], text["mask"]) for name, text in texts.items()}

  def objective(params: Any, batch: Batch, key: jax.Array) -> tuple[Mean, dict[str, Any]]:
    texts = {name: batch[name] for name in TEXTS if name in batch}
    if chunks == 1:
      vectors = embed(params, texts, key)
    else:
      vectors = embed_cached(embed, params, texts, key, chunks=chunks, mesh=mesh)
    where = batch.get("where")
    rows = _rows(vectors)
    if loss == "gist":
      guide = _rows({name: text["guide"] for name, text in texts.items()})
      losses = guided_info_nce(*rows, *guide, margin=options.margin, inclusive=True, where=where, **more)
    else:
      losses = multiple_negatives_ranking(*rows, where=where, **more)
    return Mean.of(*losses), {}

  return objective


def _rows(vectors: dict[str, Any]) -> tuple[Any, Any, Any]:
  """Anchor, positive and, as `[B, 1, dim]` as the losses take several of them, the negative or None."""
  negative = vectors.get("negative")
  return vectors["anchor"], vectors["positive"], None if negative is None else negative[:, None]


def language(config: decoder.DecoderConfig, compute: Compute) -> Objective:
  """The mean negative log-likelihood of the tokens that `loss_mask` marks, over all of them and not row by row."""
  dtype = pick("dtype", compute.dtype, DTYPES)

  def objective(params: Any, batch: Batch, key: jax.Array) -> tuple[Mean, dict[str, Any]]:
    del key
    where = batch["loss_mask"] * batch["where"][:, None] if "where" in batch else batch["loss_mask"]
    layout = {"where": where, "mask": batch.get("mask"), "segment_ids": batch.get("segment_ids")}
    return Mean.of(*decoder.token_nll(params, config, batch["ids"], dtype=dtype, remat=compute.remat, **layout)), {}

  return objective
