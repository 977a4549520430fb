"""Texts or images with a label or a number: cross_entropy and mse with a head, supcon without one."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.formats.pretrained import Pretrained
from jaxft.recipes import measure
from jaxft.recipes.distillation.teacher import numbers_said
from jaxft.recipes.examples import Splits, target_collate
from jaxft.recipes.forms.form import Asked, Form, Prepared, Reading
from jaxft.recipes.forms.labels import Target, labels_of, numbers_of
from jaxft.recipes.model import Model
from jaxft.recipes.objectives import prediction, same_label
from jaxft.recipes.options import Finetune
from jaxft.recipes.run_loss import TARGETS, loss_name, target_field
from jaxft.training.recipe import Objective


def _objective(asked: Asked) -> Objective:
  if asked.loss == "supcon":
    return same_label(asked.config, temperature=asked.run.loss.temperature, **asked.compared)
  return prediction(asked.config, classes=asked.loss == "cross_entropy", **asked.compute)


def _batch(asked: Asked) -> dict[str, Any]:
  target = jax.ShapeDtypeStruct((asked.rows,), jnp.float32 if asked.loss == "mse" else jnp.int32)
  return {**asked.inputs(), "target": target}


def _prepare(reading: Reading) -> Prepared:
  model, records, target = reading.model, reading.splits.train, reading.target
  assert target is not None
  collate = target_collate(model, target, **reading.padded())
  collate([records[0]])  # what is wrong with the records is told before anything is compiled
  kind = measure.same_label if reading.loss == "supcon" else partial(measure.prediction, target=target)
  size, mesh, dtype, (whole, uncut) = reading.size, reading.mesh, reading.dtype, reading.uncut()
  return Prepared(
      records, collate, lambda held: kind(model.config, held, collate, size, mesh, dtype=dtype),
      None if model.kind == "vision" else target_collate(whole, target, **uncut))


LABELLED = Form(_objective, _batch, _prepare)


def target_of(options: Finetune, model: Pretrained, splits: Splits, teacher: Model | None = None) -> Target | None:
  """What a classifier, a regressor or an embedder of labels learns, or the teacher's classes; None of other losses."""
  loss = loss_name(options.loss.loss, model.kind)
  if loss not in TARGETS:
    return None
  if teacher is not None and teacher.head is not None:
    field = target_field(options.loss, loss)
    if not teacher.head.classes:
      return numbers_said(splits.train, field, teacher, max_length=options.examples.max_length)
    return Target(field, teacher.head.classes)
  return (numbers_of if loss == "mse" else labels_of)(splits.train, target_field(options.loss, loss))
