"""The jaxft sides: padded as the peer pads, packed, and packed with the gradient cache."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.contrastive import workload
from benchmarks.contrastive.sizes import BATCHES
from benchmarks.ours import Step, stepper
from jaxft.data import pack_texts
from jaxft.formats.pretrained import load
from jaxft.losses import Mean, multiple_negatives_ranking
from jaxft.models import encoder
from jaxft.models.heads.pooling import by_text
from jaxft.training import embed_cached
from jaxft.transforms import full

SLOTS = 16  # texts of a row, at most


def padded(batch: int) -> Step:
  """Each side of the pairs as long as its longest text, as on the peer's side."""
  config, params, sides = _inputs(batch)

  def embed(params, sides, key):
    del key
    return [encoder.embed(params, config, side["ids"], side["mask"]) for side in sides]

  return _stepper(params, [_padded(side) for side in sides], embed)


def packed(batch: int) -> Step:
  """Texts of both sides share rows."""
  config, params, sides = _inputs(batch)
  rows = pack_texts(sum(sides, []), workload.LENGTH)

  def embed(params, rows, key):
    del key
    return jnp.split(encoder.embed_packed(params, config, rows["ids"], rows["segment_ids"], 2 * batch), 2)

  return _stepper(params, rows, embed)


def cached(batch: int) -> Step:
  """Packed, with as many chunks as the peer has mini-batches."""
  config, params, sides = _inputs(batch)
  rows, chunks = packed_rows(sides)

  def of_rows(params, rows, key):
    del key
    return encoder.embed_segments(params, config, rows["ids"], rows["segment_ids"], SLOTS)

  def embed(params, rows, key):
    vectors = embed_cached(of_rows, params, rows, key, chunks=chunks)
    return jnp.split(by_text(vectors, rows["segment_ids"], 2 * batch), 2)

  return _stepper(params, rows, embed)


def packed_rows(sides: list[list[list[int]]]) -> tuple[dict[str, np.ndarray], int]:
  """The rows of a cached step, and in how many chunks it takes them."""
  chunks = max(1, len(sides[0]) // workload.MINI_BATCH)
  return pack_texts(sum(sides, []), workload.LENGTH, multiple=chunks, slots=SLOTS), chunks


def token_counts(batch: int) -> dict[str, int]:
  """Tokens of a batch, and how many each way of arranging them computes."""
  _, _, sides = _inputs(batch)
  return {**workload.token_counts(sides), "packed_in_chunks": packed_rows(sides)[0]["ids"].size}


def _inputs(batch: int):
  model = load("minilm-l6")
  config, tokenizer = model.text_encoder()
  tokenizer.enable_truncation(workload.LENGTH)
  sides = [[e.ids for e in tokenizer.encode_batch(list(side))] for side in zip(*workload.pairs(batch), strict=True)]
  return config, model.params, sides


def _padded(texts: list[list[int]]) -> dict[str, np.ndarray]:
  width = max(map(len, texts))
  return {"ids": np.array([row + [0] * (width - len(row)) for row in texts], np.int32),
          "mask": np.array([[1] * len(row) + [0] * (width - len(row)) for row in texts], np.int32)}


def _stepper(params, batch, embed) -> Step:
  def objective(params, batch, key):
    return Mean.of(*multiple_negatives_ranking(*embed(params, batch, key), temperature=workload.TEMPERATURE)), {}

  optimizer = optax.adamw(workload.LEARNING_RATE, weight_decay=workload.WEIGHT_DECAY)
  return stepper(params, full(), objective, batch, optimizer, compiled=True)


SIDES: dict[str, Callable[[], Step]] = {
    f"jaxft-{kind.__name__}-{batch}": partial(kind, batch) for kind in (padded, packed, cached) for batch in BATCHES}
