"""Texts, chats, and prompts with completions, which a decoder learns token by token: sft."""

from typing import Any

from jaxft.recipes import measure
from jaxft.recipes.examples import Collate, Records, language_collate
from jaxft.recipes.forms.form import Asked, Form, Prepared, Reading
from jaxft.recipes.objectives import language
from jaxft.training.recipe import Objective


def _objective(asked: Asked) -> Objective:
  return language(asked.config, **asked.compute)


def batch(asked: Asked) -> dict[str, Any]:
  """Rows of one text each, or packed ones."""
  return rows_of_tokens(asked.ids(), packed=asked.run.examples.pack)


def rows_of_tokens(ids: Any, *, packed: bool) -> dict[str, Any]:
  """A batch of texts whose ids have this shape."""
  return {"ids": ids, "loss_mask": ids} | ({"segment_ids": ids} if packed else {"mask": ids})


def _prepare(reading: Reading) -> Prepared:
  model, records, (config, _) = reading.model, reading.splits.train, reading.model.text_decoder()
  lengths = {**reading.padded(), "max_length": reading.max_length}  # a longer one than the model's is refused
  make = lambda records: language_collate(model, records[0], **lengths)
  collate, (whole, uncut) = make(records), reading.uncut()
  check_scored(records, collate, reading.max_length)
  size, mesh, dtype = reading.size, reading.mesh, reading.dtype
  return Prepared(
      records, collate, lambda held: measure.perplexity(config, held, make(held), size, mesh, dtype=dtype),
      language_collate(whole, records[0], **uncut))


TEXTS = Form(_objective, batch, _prepare)


def check_scored(records: Records, collate: Collate, max_length: int) -> None:
  """Raises ValueError where no record has a token to learn from; reads as far as the first that has one."""
  for record in records:
    if collate([record])["loss_mask"][:, 1:].any():  # the first token follows none that could predict it
      return
  raise ValueError(f"data must hold a token to learn from; got none in {len(records)} records: the data mark none, or "
                   f"max_length = {max_length} cuts them all off")
