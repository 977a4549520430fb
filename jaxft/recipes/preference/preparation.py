"""What a run that learns preferences reads, made ready: records beside their references, batches, validation."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxft.formats.pretrained import Pretrained
from jaxft.recipes.dtypes import DTYPES
from jaxft.recipes.examples import Collate, Records, Splits
from jaxft.recipes.options import Finetune
from jaxft.recipes.preference.losses import PREFERENCES, Preference
from jaxft.recipes.preference.measure import preferences
from jaxft.recipes.preference.objective import score_function, scored_by
from jaxft.recipes.preference.records import collate_of, records_of
from jaxft.recipes.preference.reference import Reference, named, with_references
from jaxft.recipes.run_loss import preference_settings
from jaxft.together import is_first
from jaxft.training.mesh import rows_of_process

Measure = Callable[[Any], dict[str, float]]


def preference_splits(name: str | None, splits: Splits) -> Splits:
  """The records as the loss of this name reads them; those of other losses as they are."""
  if name not in PREFERENCES:
    return splits
  train = records_of(PREFERENCES[name], name, splits.train)
  beside = lambda records: None if records is None else (
      records_of(PREFERENCES[name], name, records, beside=splits.train))
  return splits._replace(train=train, validation=beside(splits.validation), control=beside(splits.control))


def prepare_preferences(
    options: Finetune, name: str, model: Pretrained, splits: Splits, initial: Callable[[], Any], weights: Any,
    mesh: Mesh | None,
) -> tuple[Records, Collate, Callable[[Records], Measure]]:
  """The records to train on, how they become batches, and what makes the measure of others.

  Args:
    options: of the run.
    name: of its loss.
    model: the pretrained one; of its weights nothing is kept.
    splits: as of `preference_splits`.
    initial: gives the params before the first step, which for adapters are the base's: the reference where no other is
      named.
    weights: what tells the model's weights from those of others, as `checksum` does.
    mesh: of the run.

  Raises:
    ValueError: options that do not go together, or data that hold nothing to learn.
  """
  loss, several, dtype = PREFERENCES[name], rows_of_process(mesh)[1] > 1, DTYPES[options.compute.dtype]
  length, size = options.examples.max_length, options.optimization.batch_size
  if options.examples.pack:
    raise ValueError(f"--pack is for --task sft; the rows of loss {name} are compared with one another")
  if len(options.loss.reference) > 1 and loss.sides != "response":
    raise ValueError(f"loss {name} takes one --reference; got {', '.join(options.loss.reference)}")
  if loss.sides == "response" and not options.loss.reference:
    raise ValueError(f"loss {name} needs --reference: the aligned models that the tuned one is to leave behind")
  light = dataclasses.replace(model, params={})
  collate = collate_of(loss, light, splits.train[0], max_length=length, one_length=several)
  _check_scored(loss, splits.train, collate, length)
  if is_first() and (note := teaches_less(loss, splits.train)) is not None:
    print(f"jaxft: note: {note}", file=sys.stderr)
  beside = lambda records: records
  if loss.reference:
    references = _references(options, name, light, initial, weights, mesh)
    beside = lambda records: with_references(records, references, batch_size=size, mesh=mesh, one_length=several)

  def measured(held: Records) -> Measure:
    settings = preference_settings(options.loss, name)
    score = score_function(model.text_decoder()[0], **scored_by(loss, settings), dtype=dtype, remat="none")
    own = collate_of(loss, light, held[0], max_length=length, one_length=several)
    return preferences(loss, settings, score, beside(held), own, size, mesh)

  return beside(splits.train), collate, measured


def teaches_less(loss: Preference, records: Records) -> str | None:
  """What a loss cannot learn from records of its own form, in words; None where nothing stands in its way.

  >>> teaches_less(PREFERENCES["dpo"], [{"chosen": "a", "rejected": "a"}, {"chosen": "a", "rejected": "b"}])
  '1 of 2 pairs has one response as both chosen and rejected, which teaches nothing'
  """
  if loss.sides == "pair":
    same = sum(str(record["chosen"]) == str(record["rejected"]) for record in records)
    has = "has" if same == 1 else "have"
    return None if not same else (f"{same:,} of {len(records):,} pairs {has} one response as both chosen and rejected, "
                                  "which teaches nothing")
  if loss.sides == "judged" and len(kinds := {bool(record["label"]) for record in records}) == 1:
    kind, likely = ("desirable", "more") if kinds.pop() else ("undesirable", "less")
    return (f"all {len(records):,} responses are {kind}: they are made {likely} likely, and what tells good from bad "
            "is not learnt")
  return None


def _references(
    options: Finetune, name: str, model: Pretrained, initial: Callable[[], Any], weights: Any, mesh: Mesh | None
) -> list[Reference]:
  loss, dtype, length = PREFERENCES[name], DTYPES[options.compute.dtype], options.examples.max_length
  length_alpha = preference_settings(options.loss, name).length_alpha
  if options.loss.reference:
    return [named(other, loss, model, dtype=dtype, mesh=mesh, max_length=length, length_alpha=length_alpha)
            for other in options.loss.reference]
  # Whatever it is that trains, and in how many bits the rest is kept: what the model says before the first step.
  made_of = [weights, dataclasses.asdict(options.method), options.optimization.seed, np.dtype(dtype).name]
  score = score_function(model.text_decoder()[0], length_alpha=length_alpha, dtype=dtype, remat="none")
  return [Reference(loss, score, model, initial(), made_of, max_length=length, length_alpha=length_alpha)]


def _check_scored(loss: Preference, records: Records, collate: Collate, max_length: int) -> None:
  """Raises ValueError where no record has tokens in all of its responses; reads as far as the first that has."""
  for i in range(len(records)):
    tokens = collate([records[i]])["loss_mask"][0, :, 1:]  # the first token follows none that could predict it
    if tokens[:1 if loss.sides == "judged" else None].any(axis=-1).all():
      return
  raise ValueError(f"data must hold a response to learn from; got none in {len(records)} records: max_length = "
                   f"{max_length} cuts them off")
