"""The control that several experiments share: does all-MiniLM-L6-v2 still find the next sentence of a news editorial?

Retrieval by cosine similarity is what the encoder was pretrained for, and needs no head. A fine-tuning on another task
trains none of it, so that a loss of nDCG@10 is forgetting.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.tasks.ranking import rank_own
from jaxft.adapters import Adapter
from jaxft.data import source
from jaxft.data.tokenization import tokenize_texts
from jaxft.formats import Pretrained
from jaxft.models import encoder


class Neighbours(NamedTuple):
  """Tokenized pairs of sentences: row i of the first half, and the one after it in row i of the second half."""

  ids: Int[np.ndarray, "twice time"]
  mask: Int[np.ndarray, "twice time"]


def load_neighbours(model: Pretrained, split: str, *, limit: int, length: int = 24) -> Neighbours:
  """`limit` pairs of a split, spread evenly; longer sentences are cut to `length` tokens."""
  records = source("sentiment/neighbours-news", split)
  rows = [records[int(i)] for i in np.linspace(0, len(records) - 1, min(limit, len(records)))]
  texts = [row[side] for side in ("anchor", "positive") for row in rows]
  tokens = tokenize_texts(texts, model.tokenizer, lengths=length)
  return Neighbours(tokens["ids"], tokens["mask"])


class Finder:
  """nDCG@10 of a checkpoint over the second sentences of all pairs; compiled once for all checkpoints.

  Args:
    model: the encoder.
    adapter: changes activations by `params["edits"]`.
    batch_size: sentences of one forward pass.
  """

  def __init__(self, model: Pretrained, *, adapter: Adapter | None = None, batch_size: int = 100):
    def embed(params: dict[str, Any], ids: Int[Array, "n time"], mask: Int[Array, "n time"]) -> Float[Array, "n dim"]:
      edits = None if adapter is None else adapter.edits(params["edits"])
      return encoder.embed(params, model.config, ids, mask, edits=edits)

    self._embed, self._batch_size = jax.jit(embed), batch_size

  def __call__(self, params: dict[str, Any], texts: Neighbours) -> float:
    parts, size = [], min(self._batch_size, len(texts.ids))
    for start in range(0, len(texts.ids), size):
      ids, mask = (x[start : start + size] for x in texts)
      fill = size - len(ids)  # one shape for all batches
      padded = (np.pad(x, ((0, fill), (0, 0)), mode="edge") for x in (ids, mask))
      parts.append(np.asarray(self._embed(params, *padded))[: len(ids)])
    first, second = np.split(np.concatenate(parts), 2)
    return rank_own(first @ second.T)["ndcg"]
