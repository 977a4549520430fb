"""Records of preferences as batches: pairs, judged responses with one to another prompt, single responses."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from jaxft.data import render_with_spans, tokenize_completions
from jaxft.formats.pretrained import Pretrained
from jaxft.recipes.examples import Collate, Records, language_collate, lengths_up_to, special_tokens, turns_of
from jaxft.recipes.preference.losses import Preference

PAIR, JUDGED = ("prompt", "chosen", "rejected"), ("prompt", "completion", "label")


class Judged(Sequence):
  """Pairs as judged responses: the chosen one of each, then the rejected one."""

  def __init__(self, records: Records):
    self._records = records

  def __len__(self) -> int:
    return 2 * len(self._records)

  # No slices, as of the records themselves.
  def __getitem__(self, i: int) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
    record, good = self._records[int(i) // 2], i % 2 == 0
    return {"prompt": record["prompt"], "completion": record["chosen" if good else "rejected"], "label": good}


class Mismatched(Sequence):
  """Judged responses, each with `other`: a response to another prompt.

  It is that of the last record before it with another prompt, the records being a circle; or, of the records `beside`
  them, of the first with another prompt from the same place on.
  """

  def __init__(self, records: Records, beside: Records | None = None):
    self._records, self._from = records, records if beside is None else beside
    prompts = [_prompt(records[i]) for i in range(len(records))]
    if beside is not None:
      of = [_prompt(beside[i]) for i in range(len(beside))]
      places = [next((j for j in range(i, i + len(of)) if of[j % len(of)] != prompt), None)
                for i, prompt in enumerate(prompts)]
    else:
      places, last = [], next((i for i in range(len(prompts) - 1, -1, -1) if prompts[i] != prompts[0]), None)
      for i, prompt in enumerate(prompts):
        last = i - 1 if prompts[i - 1] != prompt else last
        places.append(last)
    if None in places:
      raise ValueError(f"loss kto compares responses with those to other prompts; all {len(self._from)} records have "
                       "one prompt")
    self._other = [cast(int, place) % len(self._from) for place in places]

  def __len__(self) -> int:
    return len(self._records)

  # No slices, as of the records themselves.
  def __getitem__(self, i: int) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
    return {**self._records[i], "other": self._from[self._other[int(i)]]["completion"]}


def _prompt(record: Mapping[str, Any]) -> str:
  prompt = record["prompt"]
  return prompt if isinstance(prompt, str) else repr(turns_of(prompt))


def records_of(loss: Preference, name: str, records: Records, beside: Records | None = None) -> Records:
  """The records as a loss reads them.

  Args:
    loss, name: of it.
    records: of a data set.
    beside: others that have the responses to other prompts, where the records may be few.

  Raises:
    ValueError: they are none of its.
  """
  fields = {*records[0]}
  if loss.sides == "pair":
    if not {*PAIR} <= fields:
      raise ValueError(f"loss {name} learns from pairs (fields {', '.join(PAIR)}); got the fields {', '.join(fields)}")
    return records
  if loss.sides == "judged":
    if {*PAIR} <= fields:
      records, beside = Judged(records), None if beside is None else Judged(beside)
    elif not {*JUDGED} <= fields:
      raise ValueError(f"loss {name} learns from judged responses (fields {', '.join(JUDGED)}) or from pairs (fields "
                       f"{', '.join(PAIR)}); got the fields {', '.join(fields)}")
    return Mismatched(records, beside)
  return records


def sides_collate(
    model: Pretrained, first: Mapping[str, Any], keys: Sequence[str], *, max_length: int, one_length: bool = False
) -> Collate:
  """Records of a prompt and responses to `ids`, `mask` and `loss_mask` `[batch, sides, time]`, all of one length.

  Prompts and responses are texts, which are joined as they are and end with the model's end-of-text token, or turns of
  a chat, by the model's template. A long row loses the start of its prompt. What is computed of a record, `reference`,
  and its judgement go with them.

  Args:
    model: whose tokenizer and template are taken.
    first: a record, which says whether they are chats.
    keys: of the responses.
    max_length: the most tokens.
    one_length: pad to `max_length` always.

  Raises:
    ValueError: a chat for a model without a template, or texts longer than the model's context.
  """
  (config, tokenizer), template = model.text_decoder(), model.chat_template
  if max_length > model.max_length:
    raise ValueError(f"max_length may be at most the context of {model.name}, {model.max_length}; got {max_length}")
  chats = not isinstance(first["prompt"], str)
  if chats and template is None:
    raise ValueError(f"{model.name} has no chat template, and the data are chats")
  lengths, named = lengths_up_to(max_length, one_length), special_tokens(model)

  def rendered(record: Mapping[str, Any], key: str) -> dict[str, str]:
    if not chats:
      return {"prompt": record["prompt"], "completion": record[key]}
    assert template is not None
    text, spans = render_with_spans([*turns_of(record["prompt"]), *turns_of(record[key])], template, **named)
    start, end = spans[-1]
    return {"prompt": text[:start], "completion": text[start:end]}

  def collate(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    tokens = tokenize_completions(
        [rendered(record, key) for record in records for key in keys], tokenizer, lengths=lengths,
        eos_id=None if chats else config.eos_id, pad_id=config.pad_id or 0, special=not chats)
    return {name: x.reshape(len(records), len(keys), -1) for name, x in tokens.items()} | _computed(records)

  return collate


def response_collate(
    model: Pretrained, first: Mapping[str, Any], *, max_length: int, one_length: bool = False
) -> Collate:
  """Records of supervised tuning, as of `language_collate`, with one side."""
  plain = language_collate(model, first, max_length=max_length, one_length=one_length)
  return lambda records: {name: x[:, None] for name, x in plain(records).items()} | _computed(records)


def _computed(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  out: dict[str, Any] = {}
  if "reference" in records[0]:
    out["reference"] = np.stack([record["reference"] for record in records]).astype(np.float32)
  if "other" in records[0]:
    out["desirable"] = np.array([bool(record["label"]) for record in records])
  return out


def collate_of(
    loss: Preference, model: Pretrained, first: Mapping[str, Any], *, max_length: int, one_length: bool = False
) -> Collate:
  """How records of `records_of` become batches for the objective of a loss."""
  if loss.sides == "response":
    return response_collate(model, first, max_length=max_length, one_length=one_length)
  keys = ("chosen", "rejected") if loss.sides == "pair" else ("completion", "other")
  return sides_collate(model, first, keys, max_length=max_length, one_length=one_length)
