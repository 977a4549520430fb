"""What a run reads, made ready: its records, how they become batches, and what it is measured by."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from jaxft.formats.pretrained import Pretrained, load
from jaxft.recipes import measure, tasks
from jaxft.recipes.examples import (
  Collate,
  Guided,
  Records,
  Splits,
  as_pairs,
  keys_of,
  language_collate,
  pair_collate,
  scored_keys,
  target_collate,
)
from jaxft.recipes.labels import Target, labels_of, numbers_of
from jaxft.recipes.options import Finetune
from jaxft.recipes.preference.losses import PREFERENCES
from jaxft.recipes.preference.preparation import prepare_preferences
from jaxft.recipes.rl.losses import POLICY_LOSSES
from jaxft.recipes.rl.preparation import prepare_policy
from jaxft.recipes.run import DTYPES, TARGETS, loss_name, target_field
from jaxft.training.mesh import rows_of_process
from jaxft.training.recipe import Objective


def target_of(options: Finetune, model: Pretrained, splits: Splits) -> Target | None:
  """What a classifier, a regressor or an embedder of labels learns; None of other losses."""
  loss = loss_name(options.loss.loss, model.kind)
  if loss not in TARGETS:
    return None
  return (numbers_of if loss == "mse" else labels_of)(splits.train, target_field(options.loss, loss))


def prepare(
    options: Finetune, model: Pretrained, splits: Splits, target: Target | None, objective: Objective,
    mesh: Mesh | None, initial: Callable[[], Any], weights: str,
) -> tuple[Records, Collate, measure.Measure | None]:
  """The records to train on, how they become batches, and the measure of validation, None where there is no data.

  `initial` gives the params before the first step; `weights` tells the model's from those of others.
  """
  records, held = splits.train, splits.validation
  if model.tokenizer is None and model.kind != "vision":
    raise ValueError(f"{model.name} has no tokenizer.json, which tuning on text needs")
  several = rows_of_process(mesh)[1] > 1  # each pads its own rows, and all to the same length
  if several and options.examples.pack:
    raise ValueError("--pack is for one process: how many rows the texts of an epoch fill is known only in order")
  light = dataclasses.replace(model, params={})  # what the functions below keep must not keep the weights alive
  loss = loss_name(options.loss.loss, model.kind)
  if options.examples.pack and model.kind != "decoder":
    raise ValueError("--pack is for decoders; a model of vectors needs one a row")
  if loss in PREFERENCES:
    return prepare_preferences(options, loss, model, splits, initial, weights, mesh)
  if loss in POLICY_LOSSES:
    return prepare_policy(options, loss, model, splits, mesh)
  if target is not None:
    length = min(options.examples.max_length, model.max_length)
    collate = target_collate(light, target, max_length=length, one_length=several)
    collate([records[0]])  # what is wrong with the records is told before anything is compiled
    if held is None:
      return records, collate, None
    over = (held, collate, options.optimization.batch_size, mesh)
    kind = measure.same_label if loss == "supcon" else partial(measure.prediction, target=target)
    return records, collate, kind(model.config, *over, dtype=DTYPES[options.compute.dtype])
  if model.kind == "decoder":
    collate = language_collate(light, records[0], max_length=options.examples.max_length, one_length=several)
    _check_scored(records, collate, options.examples.max_length)
    size = options.optimization.batch_size
    validate = None if held is None else measure.perplexity(objective, held, collate, size, mesh)
    return records, collate, validate
  records, held = as_pairs(records), None if held is None else as_pairs(held)
  length, dtype = min(options.examples.max_length, model.max_length), DTYPES[options.compute.dtype]
  if loss == "cosent":
    collate = pair_collate(light, scored_keys(records), max_length=length, one_length=several)
    validate = None if held is None else measure.similarity(light, held, max_length=length, dtype=dtype, mesh=mesh)
    return records, collate, validate
  keys = keys_of(records)
  _check_different(records, keys, options.optimization.batch_size)
  if loss == "gist":
    guide = load(options.loss.guide) if options.loss.guide else model
    config, tokenizer = guide.text_encoder("guide")
    # Each process embeds by itself, on one device; a model of the run itself may lie in the host's memory.
    params = guide.params if mesh is None else jax.device_put(guide.params, jax.local_devices()[0])
    records = Guided(records, tokenizer, tasks.embedder(params, config), max_length=min(length, guide.max_length))
  validate = None if held is None else measure.retrieval(light, held, max_length=length, dtype=dtype, mesh=mesh)
  return records, pair_collate(light, keys, max_length=length, one_length=several), validate


def _check_scored(records: Records, collate: Collate, max_length: int) -> None:
  """Raises ValueError where no record has a token to learn from; reads as far as the first that has one."""
  for record in records:
    if collate([record])["loss_mask"][:, 1:].any():  # the first token follows none that could predict it
      return
  raise ValueError(f"data must hold a token to learn from; got none in {len(records)} records: the data mark none, or "
                   f"max_length = {max_length} cuts them all off")


def _check_different(records: Records, keys: Sequence[str], batch_size: int) -> None:
  """Raises ValueError where a batch must hold an example twice, which would be a negative of itself.

  Reads as far as the record with which there are enough.
  """
  different: set[tuple[str, ...]] = set()
  for record in records:
    different.add(tuple(record[key] for key in keys))
    if len(different) >= batch_size:
      return
  raise ValueError(f"batch_size must be at most the number of different pairs, {len(different)} of {len(records)}, as "
                   f"the others of a batch are the negatives of each; got {batch_size}")
