"""Batches of pairs whose texts share rows, in shapes that stay the same from step to step.

    packing = plan_packing(records, tokenizer, batch_size=64, lengths=(32, 64, 128))
    batch = tokenize_packed_pairs(records[:64], tokenizer, packing)        of `recipes.objectives.text_pairs`
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from jaxft.data.packing import pack_texts
from jaxft.data.tokenization import tokenize_pairs
from jaxft.signatures import explain_errors

MOST = 512  # records that are looked at; of more, so many are taken at equal distances
DRAWS = 16  # batches that are tried
SHORTEST = 128  # rows are no shorter where `lengths` go so far: short ones leave more room unfilled


class PairPacking(NamedTuple):
  """How the batches of a run are packed.

  Attributes:
    keys: the texts of a record; each has rows of its own.
    lengths: of rows of each key; a batch with a longer text has longer ones.
    rows: of a batch for each key; one that needs more has more.
    multiple: of which the number of rows is one.
    slots: the most texts of a row; None: any number.
    allowed: the lengths of texts, rising; the last cuts them.
    packed, padded: tokens of a batch, padding included, packed and where each text has its own row.
  """

  keys: tuple[str, ...]
  lengths: tuple[int, ...]
  rows: tuple[int, ...]
  multiple: int
  slots: int | None
  allowed: tuple[int, ...]
  packed: int
  padded: int


@explain_errors
def plan_packing(
    records: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, *, batch_size: int, lengths: Sequence[int],
    keys: Sequence[str] = ("anchor", "positive"), multiple: int = 1, slots: int | None = None,
) -> PairPacking:
  """The shape of packed batches, from what batches that are drawn need: nearly all fit it, so a step compiles once.

  >>> from tokenizers import models, pre_tokenizers
  >>> tokenizer = Tokenizer(models.WordLevel({"?": 0, "a": 1, "cat": 2}, unk_token="?"))
  >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  >>> packing = plan_packing([{"anchor": "a cat", "positive": "cat"}], tokenizer, batch_size=6, lengths=(4, 8))
  >>> packing.lengths, packing.rows, (packing.packed, packing.padded)  # 12 tokens and 6, or 6 rows of 4 on each side
  ((8, 8), (2, 1), (24, 48))

  Args:
    records: of the run; at most `MOST` are looked at.
    tokenizer: see `tokenize_pairs`.
    batch_size: pairs of a batch.
    lengths: those that padded batches may have, rising; the last cuts texts.
    keys: which texts of the records.
    multiple, slots: see `pack_texts`.

  Raises:
    ValueError: there are no records, or of the texts and lengths see `tokenize_pairs`, of the rest `pack_texts`.
  """
  if not len(records) or batch_size < 1:
    raise ValueError(f"records and batch_size must be at least 1; got {len(records)} and {batch_size}")
  allowed = tuple(lengths)
  looked = np.unique(np.linspace(0, len(records) - 1, min(MOST, len(records))).round().astype(int))
  tokens = tokenize_pairs([records[int(i)] for i in looked], tokenizer, lengths=[allowed[-1]], keys=tuple(keys))
  sizes = [tokens[key]["mask"].sum(axis=1) for key in keys]
  fitting = lambda size: next(length for length in allowed if length >= size)
  of_rows = tuple(max(fitting(int(own.max())), fitting(min(SHORTEST, allowed[-1]))) for own in sizes)
  rng = np.random.default_rng(0)
  draw = lambda: rng.choice(len(looked), batch_size, replace=batch_size > len(looked))
  needed, padded = np.zeros((DRAWS, len(sizes)), int), np.zeros((DRAWS, len(sizes)), int)
  for i in range(DRAWS):
    batch = draw()
    for j, (own, length) in enumerate(zip(sizes, of_rows, strict=True)):
      filled = pack_texts([[0] * int(n) for n in own[batch]], length, multiple=multiple, slots=slots)
      needed[i, j], padded[i, j] = len(filled["ids"]), batch_size * fitting(int(own[batch].max()))
  rows = tuple(int(n) for n in needed.max(axis=0))
  return PairPacking(
      tuple(keys), of_rows, rows, multiple, slots, allowed, int(np.dot(rows, of_rows)),
      round(float(padded.sum(axis=1).mean())))


@explain_errors
def tokenize_packed_pairs(
    records: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, packing: PairPacking
) -> dict[str, Any]:
  """A batch of packed texts: `{"anchor": {"ids", "segment_ids"}, ..., "where"}`, with text i as the segment i + 1.

  >>> from tokenizers import models, pre_tokenizers
  >>> tokenizer = Tokenizer(models.WordLevel({"?": 0, "a": 1, "cat": 2}, unk_token="?"))
  >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  >>> records = [{"anchor": "a cat", "positive": "cat"}] * 2
  >>> batch = tokenize_packed_pairs(records, tokenizer, plan_packing(records, tokenizer, batch_size=2, lengths=(4,)))
  >>> batch["anchor"]["ids"].tolist(), batch["anchor"]["segment_ids"].tolist(), batch["where"].tolist()
  ([[1, 2, 1, 2]], [[1, 1, 2, 2]], [True, True])

  Args:
    records: of the batch.
    tokenizer: as given to `plan_packing`.
    packing: its answer. Rows are as many and as long as it says, or as the batch needs where that is more.

  Raises:
    ValueError: a record lacks a key.
  """
  tokens = tokenize_pairs(records, tokenizer, lengths=[packing.allowed[-1]], keys=packing.keys)
  out: dict[str, Any] = {"where": np.ones(len(records), bool)}
  for key, usual, rows in zip(packing.keys, packing.lengths, packing.rows, strict=True):
    sizes = tokens[key]["mask"].sum(axis=1)
    length = max(usual, next(n for n in packing.allowed if n >= sizes.max()))
    texts = [ids[:n].tolist() for ids, n in zip(tokens[key]["ids"], sizes, strict=True)]
    filled = pack_texts(texts, length, multiple=packing.multiple, slots=packing.slots)
    missing = max(rows - len(filled["ids"]), 0)
    out[key] = {name: np.pad(x, ((0, missing), (0, 0))) for name, x in filled.items()}
  return out
