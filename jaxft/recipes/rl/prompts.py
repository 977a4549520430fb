"""Prompts of a run that learns by rewards: records as tokens, padded on the left, each beside its index."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxft.data.files.records import with_others
from jaxft.formats.pretrained import Pretrained
from jaxft.recipes.examples import BUCKETS, Records, turns_of
from jaxft.recipes.model import encode_prompt, encode_turns, left_padded
from jaxft.together import is_first


class Prompts(Sequence):
  """Records whose prompts are tokenized; `[i]` has the tokens and i, and `record(i)` what rewards read.

  - `prompt`: a text, which is continued as it stands, or turns of a chat, which the model's template writes out;
  - `question`: a user's turn where the model has a chat template, otherwise a text.

  Args:
    records: of a data set.
    model: whose tokenizer and template are taken.
    max_length: the most tokens; records with longer prompts are left out, with a line that says how many.

  Raises:
    ValueError: other fields, an empty prompt, a chat for a model without a template, or no prompt that is short enough.
  """

  def __init__(self, records: Records, model: Pretrained, *, max_length: int):
    rows = [_encoded(records[i], model) for i in range(len(records))]
    self._kept = [i for i, row in enumerate(rows) if len(row) <= max_length]
    self._records, self._rows = records, [rows[i] for i in self._kept]
    if not self._kept:
      raise ValueError(f"max_length must leave a prompt; the shortest has {min(map(len, rows))} tokens, max_length is "
                       f"{max_length}")
    if (left := len(rows) - len(self._kept)) and is_first():
      print(f"jaxft: note: {left:,} of {len(rows):,} prompts are longer than max_length = {max_length} and left out",
            file=sys.stderr)
    self._pad, longest = model.text_decoder()[0].pad_id or 0, max(map(len, self._rows))
    self.longest = min(-(-longest // 16) * 16, max_length)

  def __len__(self) -> int:
    return len(self._kept)

  # No slices, as of the records themselves.
  def __getitem__(self, i: int) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
    return {"index": int(i), "ids": self._rows[int(i)]}

  def record(self, i: int) -> dict[str, Any]:
    """A record as rewards read it: with all columns of its file, and a chat as a list of turns."""
    record = with_others(self._records[self._kept[i]])
    if not isinstance(record.get("prompt", ""), str):
      record["prompt"] = turns_of(record["prompt"])
    return record

  def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """`index` `[batch]`, `ids` and `mask` `[batch, time]`, of one of a few lengths."""
    longest = max(len(row["ids"]) for row in rows)
    short = () if jax.process_count() > 1 else BUCKETS  # processes pad parts of one batch
    length = next((n for n in short if longest <= n < self.longest), self.longest)
    ids, mask = left_padded([row["ids"] for row in rows], self._pad, length)
    return {"index": np.array([row["index"] for row in rows], np.int32), "ids": ids, "mask": mask}


def _encoded(record: Mapping[str, Any], model: Pretrained) -> list[int]:
  if "prompt" in record:
    prompt = record["prompt"]
    return encode_prompt(model, prompt) if isinstance(prompt, str) else encode_turns(model, turns_of(prompt))
  if "question" not in record:
    raise ValueError(f"--task rl reads prompts (fields prompt or question); got the fields {', '.join(record)}")
  if model.chat_template is None:
    return encode_prompt(model, record["question"])
  return encode_turns(model, [{"role": "user", "content": record["question"]}])
