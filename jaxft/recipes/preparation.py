"""What a run reads, made ready: its records, how they become batches, and what it is measured by."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxft.data.packed_pairs import PairPacking, plan_packing
from jaxft.formats.pretrained import Pretrained, load
from jaxft.recipes import measure, tasks
from jaxft.recipes.account.counts import WHOLE
from jaxft.recipes.distillation.losses import DISTILLATIONS, OF_HEADS
from jaxft.recipes.distillation.preparation import prepare_distillation, text_keys
from jaxft.recipes.distillation.teacher import numbers_said
from jaxft.recipes.encoder_decoder.answers import answer_collate
from jaxft.recipes.examples import (
  Collate,
  Guided,
  Records,
  Splits,
  as_pairs,
  keys_of,
  language_collate,
  lengths_up_to,
  pair_collate,
  scored_keys,
  target_collate,
)
from jaxft.recipes.labels import Target, labels_of, numbers_of
from jaxft.recipes.model import Model
from jaxft.recipes.options import Finetune
from jaxft.recipes.preference.losses import PREFERENCES
from jaxft.recipes.preference.preparation import prepare_preferences
from jaxft.recipes.preference.records import collate_of
from jaxft.recipes.rl.losses import POLICY_LOSSES
from jaxft.recipes.rl.preparation import prepare_policy
from jaxft.recipes.run import DTYPES
from jaxft.recipes.run_loss import OF_PAIRS, TARGETS, loss_name, target_field
from jaxft.training.mesh import batch_axes, rows_of_process

PAYS = 1.25  # so many times fewer tokens


class Prepared(NamedTuple):
  """What a run reads, made ready.

  Attributes:
    records: to train on.
    collate: records to batches.
    measure: records to what they measure, a function of the params.
    uncut: records to batches, of texts of any length; None of images.
    alone: as collate, with a row for each text; None where collate is so.
    said: what is to be told of the batches.
  """

  records: Records
  collate: Collate
  measure: Callable[[Records], measure.Measure]
  uncut: Collate | None
  alone: Collate | None = None
  said: str | None = None


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


def prepare(
    options: Finetune, model: Pretrained, splits: Splits, target: Target | None, mesh: Mesh | None,
    initial: Callable[[], Any], weights: str, teacher: Model | None = None,
) -> Prepared:
  """The records to train on, how they become batches, and how others are measured.

  `initial` gives the params before the first step; `weights` tells the model's from those of others; `teacher` is that
  of `teacher_of`.
  """
  records = splits.train
  if model.tokenizer is None and model.kind != "vision":
    raise ValueError(f"{model.name} has no tokenizer.json, which tuning on text needs")
  several = rows_of_process(mesh)[1] > 1  # each pads its own rows, and all to the same length
  if several and options.examples.pack:
    raise ValueError("--pack is for one process: how many rows the texts of an epoch fill is known only in order")
  light = dataclasses.replace(model, params={})  # what the functions below keep must not keep the weights alive
  loss = loss_name(options.loss.loss, model.kind)
  pairs = model.kind == "encoder" and loss in OF_PAIRS
  if options.examples.pack and model.kind != "decoder" and not pairs:
    raise ValueError(f"--pack is for decoders and for the losses of pairs, {', '.join(OF_PAIRS)}; got loss {loss}")
  if options.examples.pad and not pairs:
    raise ValueError(f"--pad is for the losses of pairs, {', '.join(OF_PAIRS)}, whose texts may share rows; got {loss}")
  size, dtype = options.optimization.batch_size, DTYPES[options.compute.dtype]
  whole = dataclasses.replace(light, max_length=WHOLE)
  uncut = lambda records: _collate(loss, whole, records, target, WHOLE, False)
  if loss in PREFERENCES:
    found = prepare_preferences(options, loss, model, splits, initial, weights, mesh)
    return Prepared(*found, uncut(records))
  if loss in POLICY_LOSSES:
    return Prepared(*prepare_policy(options, loss, model, splits, mesh), None)
  if teacher is not None:
    found = prepare_distillation(
        options, loss, model, teacher, records, target, mesh=mesh, one_length=several, dtype=dtype)
    if model.kind == "decoder":
      _check_scored(records, found[1], options.examples.max_length)
    return Prepared(*found, None if model.kind == "vision" else uncut(as_pairs(records)))
  if target is not None:
    length = min(options.examples.max_length, model.max_length)
    collate = _collate(loss, light, records, target, length, several)
    collate([records[0]])  # what is wrong with the records is told before anything is compiled
    kind = measure.same_label if loss == "supcon" else partial(measure.prediction, target=target)
    return Prepared(
        records, collate, lambda held: kind(model.config, held, collate, size, mesh, dtype=dtype),
        None if model.kind == "vision" else uncut(records))
  if model.kind == "decoder":
    make = lambda records: _collate(loss, light, records, None, options.examples.max_length, several)
    collate, (config, _) = make(records), model.text_decoder()
    _check_scored(records, collate, options.examples.max_length)
    measured = lambda held: measure.perplexity(config, held, make(held), size, mesh, dtype=dtype)
    return Prepared(records, collate, measured, uncut(records))
  if model.kind == "encoder-decoder":
    make = lambda records: _collate(loss, light, records, None, options.examples.max_length, several)
    both, _ = model.text_encoder_decoder()
    measured = lambda held: measure.perplexity(both, held, make(held), size, mesh, dtype=dtype)
    return Prepared(records, make(records), measured, uncut(records))
  records, length = as_pairs(records), min(options.examples.max_length, model.max_length)
  over = {"max_length": length, "dtype": dtype, "mesh": mesh}
  collate = _collate(loss, light, records, None, length, several)
  if loss == "cosent":
    return Prepared(records, collate, lambda held: measure.similarity(light, held, **over), uncut(records))
  _check_different(records, keys_of(records), size)
  plain = uncut(records)
  if loss == "gist":
    guide = load(options.loss.guide) if options.loss.guide else model
    config, tokenizer = guide.text_encoder("guide")
    # Each process embeds by itself, on one device; a model of the run itself may lie in the host's memory.
    params = guide.params if mesh is None else jax.device_put(guide.params, jax.local_devices()[0])
    records = Guided(records, tokenizer, tasks.embedder(params, config), max_length=min(length, guide.max_length))
  out = Prepared(records, collate, lambda held: measure.retrieval(light, as_pairs(held), **over), plain)
  packing = None if several or options.examples.pad else _packing(options, light, records, length, mesh)
  if packing is None:
    return out
  packed, saved = pair_collate(light, packing.keys, max_length=length, packing=packing), packing.padded / packing.packed
  shapes = " and ".join(f"{rows} of {n} tokens" for rows, n in zip(packing.rows, packing.lengths, strict=True))
  said = (f"texts share rows, {shapes} a step, {saved:.1f} times fewer tokens than padded; the loss is the same; --pad "
          "gives each text its own row")
  return out._replace(collate=packed, alone=collate, said=said)


def _packing(
    options: Finetune, model: Pretrained, records: Records, length: int, mesh: Mesh | None
) -> PairPacking | None:
  """How the texts of pairs share rows; None where that saves too little and is not asked for."""
  _, tokenizer = model.text_encoder()
  shards = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in batch_axes(mesh))
  found = plan_packing(
      records, tokenizer, batch_size=options.optimization.batch_size, lengths=lengths_up_to(length),
      keys=keys_of(records), multiple=shards * options.optimization.accumulate, slots=options.examples.slots)
  return found if options.examples.pack or found.padded >= PAYS * found.packed else None


def _collate(
    loss: str, model: Pretrained, records: Records, target: Target | None, max_length: int, one_length: bool
) -> Collate:
  """How records become batches for a loss, at most so many tokens long."""
  options = {"max_length": max_length, "one_length": one_length}
  if loss in PREFERENCES:
    return collate_of(PREFERENCES[loss], model, records[0], **options)
  if loss in DISTILLATIONS and model.kind == "encoder":
    return pair_collate(model, ("text",) if DISTILLATIONS[loss].of in OF_HEADS else text_keys(loss, records), **options)
  if target is not None:
    return target_collate(model, target, **options)
  if model.kind == "decoder":
    return language_collate(model, records[0], **options)
  if model.kind == "encoder-decoder":
    return answer_collate(model, records[0], **options)
  return pair_collate(model, scored_keys(records) if loss == "cosent" else keys_of(records), **options)


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
