"""Pairs of texts with a score of how alike they are, which an encoder learns to rank: cosent."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxft.recipes import measure
from jaxft.recipes.examples import as_pairs, pair_collate, scored_keys
from jaxft.recipes.forms.form import Asked, Form, Prepared, Reading
from jaxft.recipes.objectives import scored_pairs
from jaxft.training.recipe import Objective


def _objective(asked: Asked) -> Objective:
  return scored_pairs(asked.config, temperature=asked.run.loss.temperature, **asked.compared)


def _batch(asked: Asked) -> dict[str, Any]:
  text = asked.inputs()
  return {"sentence1": text, "sentence2": text, "score": jax.ShapeDtypeStruct((asked.rows,), jnp.float32)}


def _prepare(reading: Reading) -> Prepared:
  model, records = reading.model, as_pairs(reading.splits.train)
  keys, (whole, uncut) = scored_keys(records), reading.uncut()
  over = {"max_length": reading.length, "dtype": reading.dtype, "mesh": reading.mesh}
  return Prepared(records, pair_collate(model, keys, **reading.padded()),
                  lambda held: measure.similarity(model, held, **over), pair_collate(whole, keys, **uncut))


SCORED_PAIRS = Form(_objective, _batch, _prepare)
