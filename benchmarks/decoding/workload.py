"""What both sides get: the same prompts, padded alike, and the same number of tokens to add."""

import numpy as np

from benchmarks.workload import smollm2_folder, text_pairs

__all__ = ["BATCHES", "KINDS", "NEW", "PROMPT", "prompts", "smollm2_folder"]

BATCHES = (1, 16)
KINDS = ("greedy", "sampled")  # sampled at temperature 1, without filters
PROMPT, NEW = 64, 128  # tokens; no side stops earlier


def prompts(rows: int) -> tuple[np.ndarray, np.ndarray]:
  """`ids` and `mask` `[rows, PROMPT]` of real text: of several rows each of another length, padded on the left."""
  from tokenizers import Tokenizer

  tokenizer = Tokenizer.from_file(str(smollm2_folder() / "tokenizer.json"))
  text = tokenizer.encode(" ".join(pair[1] for pair in text_pairs(1000))).ids
  ids, mask = np.zeros((rows, PROMPT), np.int32), np.zeros((rows, PROMPT), np.int32)
  for i in range(rows):
    length = PROMPT - 2 * i % (PROMPT // 2)
    ids[i, PROMPT - length:] = text[i * PROMPT:i * PROMPT + length]
    mask[i, PROMPT - length:] = 1
  return ids, mask


def told(tokens: np.ndarray) -> float:
  """A number that tells sequences of tokens apart, by which two sides are compared."""
  return float((tokens.astype(np.int64) * (1 + np.arange(tokens.size).reshape(tokens.shape)) % 100003).sum())
