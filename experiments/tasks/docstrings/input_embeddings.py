"""What small embedders read: texts as means of a pretrained encoder's input embeddings, without any of its layers.

What trains on them takes seconds, so that studies of retrieval objectives afford many seeds and rates. A pair is a
function's signature and the first sentence of its docstring.

    signatures, sentences = spread_pairs("validation", 200)
    read_means(load("minilm-l6"), signatures, length=24)    # [200, 384]
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxft.data import source, tokenize_texts
from jaxft.formats.pretrained import Pretrained


@dataclasses.dataclass(frozen=True)
class Settings:
  """What these studies have alike.

  Attributes:
    model: whose input embeddings are read.
    length: tokens of a text.
    temperature: of InfoNCE.
    rates: that each arm chooses from.
    seeds, tuning_seeds: of the runs.
  """

  model: str = "minilm-l6"
  length: int = 24
  temperature: float = 0.05
  rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
  seeds: tuple[int, ...] = tuple(range(10))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


# Of smoke runs, where what the two studies set apart is set alike.
SMALL: dict[str, Any] = {
    "model": "minilm-l6:tiny", "length": 16, "pairs": 32, "drawn": 24, "held_out": 24, "hidden": 16, "steps": 10,
    "batch_size": 8, "rates": (1e-1,), "seeds": (0, 1), "tuning_seeds": (100,)}


def spread_pairs(split: str, count: int) -> tuple[list[str], list[str]]:
  """Signatures and first sentences, spread evenly over the packages of a split."""
  records = source("docstrings", split)
  rows = records.__getitems__(np.linspace(0, len(records) - 1, min(count, len(records))).astype(int).tolist())
  return [row["anchor"] for row in rows], [row["positive"] for row in rows]


def read_means(model: Pretrained, texts: list[str], *, length: int) -> Float[np.ndarray, "n dim"]:
  """The mean of the input embeddings of a text's tokens, of length sqrt(dim); a text is cut to `length` tokens."""
  _, tokenizer = model.text_encoder("model")
  embedding = np.asarray(model.params["embed"]["tokens"]["embedding"], np.float32)
  tokens = tokenize_texts(texts, tokenizer, lengths=length)
  weights = np.asarray(tokens["mask"], np.float32)[..., None]
  x = (embedding[np.asarray(tokens["ids"])] * weights).sum(1) / weights.sum(1)
  return x / np.linalg.norm(x, axis=1, keepdims=True) * x.shape[1] ** 0.5
