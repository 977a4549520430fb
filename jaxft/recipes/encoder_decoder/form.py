"""Prompts with answers, which an encoder-decoder learns token by token: sft."""

from typing import Any

from jaxft.recipes import measure
from jaxft.recipes.encoder_decoder.answers import answer_collate, answers
from jaxft.recipes.forms.form import Asked, Form, Prepared, Reading
from jaxft.training.recipe import Objective


def _objective(asked: Asked) -> Objective:
  return answers(asked.config, **asked.compute)


def _batch(asked: Asked) -> dict[str, Any]:
  ids = asked.ids()
  return {"inputs": {"ids": ids, "mask": ids}, "ids": ids, "mask": ids, "loss_mask": ids}


def _prepare(reading: Reading) -> Prepared:
  model, records, (config, _) = reading.model, reading.splits.train, reading.model.text_encoder_decoder()
  lengths = {**reading.padded(), "max_length": reading.max_length}  # of prompt and answer each
  make = lambda records: answer_collate(model, records[0], **lengths)
  size, mesh, dtype, (whole, uncut) = reading.size, reading.mesh, reading.dtype, reading.uncut()
  return Prepared(
      records, make(records), lambda held: measure.perplexity(config, held, make(held), size, mesh, dtype=dtype),
      answer_collate(whole, records[0], **uncut))


ANSWERS = Form(_objective, _batch, _prepare)
