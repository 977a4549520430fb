"""Pairs in rows that they share: the same shape from batch to batch, and every text whole."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxft.data import plan_packing, tokenize_packed_pairs, tokenize_pairs

LENGTHS = (4, 8, 16)


@pytest.fixture(scope="module")
def tokenizer():
  made = Tokenizer(models.WordLevel({"?": 0, **{word: i + 1 for i, word in enumerate("abcdef")}}, unk_token="?"))
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  return made


def pairs(n, longest, seed=0):
  rng = np.random.default_rng(seed)
  text = lambda: " ".join(rng.choice([*"abcdef"], rng.integers(1, longest + 1)))
  return [{"anchor": text(), "positive": text(), "negative": text()} for _ in range(n)]


@pytest.mark.parametrize("multiple, slots", [(1, None), (4, 2)])
def test_every_text_is_whole_and_the_shape_stays(tokenizer, multiple, slots):
  keys, records = ("anchor", "positive", "negative"), pairs(64, 9)
  packing = plan_packing(
      records, tokenizer, batch_size=16, lengths=LENGTHS, keys=keys, multiple=multiple, slots=slots)
  assert packing.lengths == (16, 16, 16) and all(rows % multiple == 0 for rows in packing.rows)
  assert packing.packed == 16 * sum(packing.rows) and packing.padded > packing.packed or slots == 2
  shapes = set()
  for start in range(0, 64, 16):
    batch = records[start : start + 16]
    packed, padded = tokenize_packed_pairs(batch, tokenizer, packing), tokenize_pairs(
        batch, tokenizer, lengths=LENGTHS, keys=keys)
    assert packed["where"].tolist() == [True] * 16
    for key in keys:
      ids, segments = packed[key]["ids"], packed[key]["segment_ids"]
      shapes.add(ids.shape)
      for i in range(16):
        np.testing.assert_array_equal(ids[segments == i + 1], padded[key]["ids"][i][padded[key]["mask"][i] > 0])
      if slots is not None:
        assert max(len(set(row) - {0}) for row in segments.tolist()) <= slots
  assert len(shapes) <= len(set(packing.rows))  # none of these batches needs more than was planned


def test_a_batch_that_needs_more_has_more(tokenizer):
  packing = plan_packing(pairs(32, 3), tokenizer, batch_size=8, lengths=(4, 16), multiple=2)
  wide = [{"anchor": "a " * 16, "positive": "b"}] * 8  # longer texts than those looked at, and more of them
  batch = tokenize_packed_pairs(wide, tokenizer, packing._replace(lengths=(4, 4)))
  assert batch["anchor"]["ids"].shape == (8, 16) and batch["positive"]["ids"].shape[1] == 4
  assert batch["positive"]["ids"].shape[0] % 2 == 0


def test_what_cannot_be_planned(tokenizer):
  with pytest.raises(ValueError, match="records and batch_size must be at least 1; got 0 and 4"):
    plan_packing([], tokenizer, batch_size=4, lengths=LENGTHS)
  with pytest.raises(ValueError, match="records and batch_size must be at least 1; got 2 and 0"):
    plan_packing(pairs(2, 3), tokenizer, batch_size=0, lengths=LENGTHS)
  with pytest.raises(ValueError, match="slots"):
    plan_packing(pairs(2, 3), tokenizer, batch_size=2, lengths=LENGTHS, slots=0)
