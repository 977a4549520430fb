"""Examples beside which a teacher speaks, as the losses of distillation take them."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxft.recipes.distillation import objective
from jaxft.recipes.distillation.losses import DISTILLATIONS, NEW_TOKENS, OF_HEADS, setting
from jaxft.recipes.distillation.preparation import prepare_distillation, text_keys
from jaxft.recipes.distillation.teacher import KEY
from jaxft.recipes.examples import as_pairs, language_collate, pair_collate
from jaxft.recipes.forms.form import Asked, Form, Prepared, Reading
from jaxft.recipes.forms.texts import check_scored, rows_of_tokens
from jaxft.training.recipe import Objective


def _objective(asked: Asked) -> Objective:
  loss, given = DISTILLATIONS[asked.loss], asked.run.loss
  temperature = None if loss.temperature is None else setting(asked.loss, "temperature", given.temperature)
  if loss.of == "tokens":
    beta = setting(asked.loss, "beta", given.beta)
    return objective.tokens(asked.config, asked.teacher, beta=beta, temperature=temperature, **asked.compute)
  if loss.of == "classes":
    assert temperature is not None
    return objective.classes(asked.config, temperature=temperature, **asked.compute)
  if loss.of == "numbers":
    return objective.numbers(asked.config, **asked.compute)
  return objective.vectors(asked.config, asked.loss, temperature=temperature, **asked.compared)


def _batch(asked: Asked) -> dict[str, Any]:
  """Of classes two, as only the teacher's head tells how many they are."""
  of = DISTILLATIONS[asked.loss].of
  if of == "tokens":
    new = asked.run.loss.max_new_tokens or NEW_TOKENS
    # A student's own answer follows a prompt that may be as long as a row.
    length = asked.run.examples.max_length + (new if asked.run.loss.on_policy else 0)
    return rows_of_tokens(asked.ids(asked.rows, length), packed=asked.run.examples.pack)
  width = {"classes": 2, "numbers": 1}.get(of) or asked.teacher.dim
  read = {**asked.inputs(), KEY: jax.ShapeDtypeStruct((asked.rows, width), jnp.float32)}
  return read if of in OF_HEADS else {"anchor": read, "positive": read}


def _prepare(reading: Reading) -> Prepared:
  teacher, records, of = reading.teacher, reading.splits.train, DISTILLATIONS[reading.loss].of
  assert teacher is not None
  found = prepare_distillation(
      reading.options, reading.loss, reading.model, teacher, records, reading.target, mesh=reading.mesh,
      one_length=reading.several, dtype=reading.dtype)
  whole, uncut = reading.uncut()
  if of == "tokens":
    check_scored(records, found[1], reading.max_length)
    return Prepared(*found, language_collate(whole, records[0], **uncut))
  if reading.model.kind == "vision":
    return Prepared(*found)
  pairs = as_pairs(records)
  return Prepared(
      *found, pair_collate(whole, ("text",) if of in OF_HEADS else text_keys(reading.loss, pairs), **uncut))


TAUGHT = Form(_objective, _batch, _prepare)
