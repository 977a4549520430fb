"""What both sides get: the same pairs in the same order, cut to the same length, and the same settings."""

from collections.abc import Sequence

from benchmarks.workload import LEARNING_RATE, minilm_folder

__all__ = ["LEARNING_RATE", "LENGTH", "MINI_BATCH", "TEMPERATURE", "WEIGHT_DECAY", "minilm_folder", "pairs",
           "token_counts"]

LENGTH = 128  # tokens of a text; longer ones are cut
MINI_BATCH = 32  # pairs, sentence-transformers' default
TEMPERATURE = 0.05
WEIGHT_DECAY = 0.01


def pairs(n: int) -> list[tuple[str, str]]:
  """Signatures with descriptions, from all over the training split of `docstrings`."""
  from jaxft.data import source

  records = source("docstrings", "train")
  step = len(records) // n
  return [(row["anchor"], row["positive"]) for row in records.__getitems__(range(0, n * step, step))]


def token_counts(texts: Sequence[Sequence[Sequence[int]]]) -> dict[str, int]:
  """Tokens of the two sides, and what they become when each side, or each mini-batch of it, is as long as its longest.

  Args:
    texts: the token ids of each side.
  """
  lengths = [list(map(len, side)) for side in texts]
  starts = range(0, len(lengths[0]), MINI_BATCH)
  parts = [side[start : start + MINI_BATCH] for side in lengths for start in starts]
  return {"real": sum(map(sum, lengths)), "padded": sum(len(side) * max(side) for side in lengths),
          "padded_in_mini_batches": sum(len(part) * max(part) for part in parts)}
