"""The inputs that both sides of every pair get: the same checkpoints, tokens and texts."""

from pathlib import Path

import numpy as np

BATCH, TIME = 4, 128
PAIRS = 64
LINEAR = ("query", "key", "value", "out", "gate", "up", "down")
PEFT_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK, ALPHA = 8, 16.0
OFT_BLOCK = 32
LEARNING_RATE = 1e-4


def smollm2_folder() -> Path:
  """The converted checkpoint, a Hugging Face folder that transformers reads too."""
  from jaxft.formats.presets import fetch

  return fetch("smollm2-135m")


def minilm_folder() -> Path:
  """The encoder, a Hugging Face folder that sentence-transformers reads too."""
  from jaxft.formats.presets import fetch

  return fetch("minilm-l6")


def tokens() -> np.ndarray:
  """`[4, 128]` tokens of real text: descriptions of functions, one after the other."""
  from tokenizers import Tokenizer

  tokenizer = Tokenizer.from_file(str(smollm2_folder() / "tokenizer.json"))
  ids = tokenizer.encode(" ".join(pair[1] for pair in text_pairs(1000))).ids
  return np.array(ids[: BATCH * TIME], np.int32).reshape(BATCH, TIME)


def text_pairs(n: int = PAIRS) -> list[tuple[str, str]]:
  """Signatures with descriptions, from the training split of `docstrings`."""
  from jaxft.data import source

  records = source("docstrings", "train")
  return [(records[i]["anchor"], records[i]["positive"]) for i in range(0, n * 7, 7)]
