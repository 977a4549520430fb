"""Prompts whose answers the model gives itself, and a reward judges."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxft.recipes.forms.form import Asked, Form, Prepared, Reading
from jaxft.recipes.rl.losses import POLICY_LOSSES
from jaxft.recipes.rl.objective import Answers, policy
from jaxft.recipes.rl.preparation import prepare_policy
from jaxft.recipes.run_loss import rows_of, run_policy
from jaxft.training.recipe import Objective


def _objective(asked: Asked) -> Objective:
  return policy(asked.config, asked.loss, run_policy(asked.run.loss, asked.loss), **asked.compute)


def _batch(asked: Asked) -> Answers:
  """Of an update; what answers are compared with by the names of `Answers`."""
  run, loss = asked.run, asked.loss
  settings, rows = run_policy(run.loss, loss), rows_of(run, loss)
  tokens, new = (rows, run.examples.max_length + settings.max_new_tokens), (rows, settings.max_new_tokens)
  of: Any = jax.ShapeDtypeStruct
  reads_reference = settings.beta and not POLICY_LOSSES[loss].beta_of_reward
  return Answers(
      of(tokens, jnp.int32), of(tokens, jnp.bool_), of(new, jnp.bool_), of((rows,), jnp.float32),
      of(new, jnp.float32) if settings.passes > 1 else None, of(new, jnp.float32) if reads_reference else None)


def _prepare(reading: Reading) -> Prepared:
  return Prepared(*prepare_policy(reading.options, reading.loss, reading.model, reading.splits, reading.mesh))


PROMPTS = Form(_objective, _batch, _prepare)
