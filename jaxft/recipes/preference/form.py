"""Prompts with responses that are compared or judged, or both, as the preference losses take them."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxft.recipes.forms.form import Asked, Form, Prepared, Reading
from jaxft.recipes.preference.losses import PREFERENCES
from jaxft.recipes.preference.objective import preference
from jaxft.recipes.preference.preparation import prepare_preferences
from jaxft.recipes.preference.records import collate_of
from jaxft.recipes.run_loss import compares_all, preference_settings
from jaxft.training.recipe import Objective


def _objective(asked: Asked) -> Objective:
  chunks = asked.compared["chunks"] if compares_all(asked.loss) else 1
  settings = preference_settings(asked.run.loss, asked.loss)
  return preference(asked.config, asked.loss, settings, **{**asked.compared, "chunks": chunks})


def _batch(asked: Asked) -> dict[str, Any]:
  rows, sides = asked.rows, 1 if PREFERENCES[asked.loss].sides == "response" else 2
  side = asked.ids(rows, sides, asked.run.examples.max_length)
  return {"ids": side, "mask": side, "loss_mask": side, "reference": jax.ShapeDtypeStruct((rows, sides), jnp.float32),
          "desirable": jax.ShapeDtypeStruct((rows,), jnp.bool_)}


def _prepare(reading: Reading) -> Prepared:
  whole, uncut = reading.uncut()
  found = prepare_preferences(
      reading.options, reading.loss, reading.model, reading.splits, reading.initial, reading.weights, reading.mesh)
  return Prepared(*found, collate_of(PREFERENCES[reading.loss], whole, reading.splits.train[0], **uncut))


RESPONSES = Form(_objective, _batch, _prepare)
