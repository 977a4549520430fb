"""What a run that learns from a teacher reads, made ready: records beside what the teacher says, batches, measures."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxft.formats.pretrained import Pretrained
from jaxft.recipes.distillation import measure
from jaxft.recipes.distillation.losses import DISTILLATIONS
from jaxft.recipes.distillation.on_policy import check_on_policy
from jaxft.recipes.distillation.teacher import KEY, VECTOR, with_scores, with_vectors
from jaxft.recipes.examples import Collate, Records, as_pairs, input_collate, keys_of, language_collate, pair_collate
from jaxft.recipes.forms.labels import Target
from jaxft.recipes.measure import Measure
from jaxft.recipes.model import Model
from jaxft.recipes.options import Finetune
from jaxft.recipes.tasks import column

Made = tuple[Records, Collate, Callable[[Records], Measure]]


def prepare_distillation(
    options: Finetune, name: str, model: Pretrained, teacher: Model, records: Records, target: Target | None, *,
    mesh: Mesh | None, one_length: bool, dtype: Any,
) -> Made:
  """The records to train on, how they become batches, and what makes the measure of others.

  Args:
    options: of the run.
    name: of its loss.
    model: the student; of its weights nothing is kept.
    teacher: as of `teacher_of`.
    records: to train on.
    target: of classifiers, the teacher's classes and the field that may hold them.
    mesh: of the run.
    one_length: pad all batches alike.
    dtype: of activations.

  Raises:
    ValueError: the records are none that the loss learns from.
  """
  size, light = options.optimization.batch_size, dataclasses.replace(model, params={})
  lengths = {"max_length": min(options.examples.max_length, model.max_length), "one_length": one_length}
  if DISTILLATIONS[name].of == "tokens":
    (config, _), (its, _) = model.text_decoder(), teacher.text_decoder()
    make = lambda records: language_collate(light, records[0], **{**lengths, "max_length": options.examples.max_length})
    if options.loss.on_policy:
      check_on_policy(options, light, records, make(records))
    return records, make(records), lambda held: measure.tokens(
        config, its, held, make(held), size, mesh, dtype=dtype)
  if DISTILLATIONS[name].of == "vectors":
    pairs = as_pairs(records)
    keys = text_keys(name, pairs)
    whole = options.examples.max_length
    beside = lambda records: with_vectors(as_pairs(records), teacher, keys, max_length=whole, mesh=mesh)
    over = {"max_length": lengths["max_length"], "dtype": dtype}
    return beside(records), vector_collate(light, keys, **lengths), lambda held: measure.vectors(
        light, beside(held), keys, mesh, **over)
  assert target is not None
  if options.loss.target is not None:
    column([records[0]], options.loss.target)  # what is asked for is there
  numbers = DISTILLATIONS[name].of == "numbers"
  scored = lambda records: with_scores(records, teacher, max_length=options.examples.max_length)
  labelled = lambda records: target.field in records[0]
  form = number_collate if numbers else class_collate
  make = lambda records: form(light, target, records, labelled=labelled(records), **lengths)
  if numbers:
    return scored(records), make(records), lambda held: measure.numbers(
        model.config, scored(held), make(held), size, mesh, dtype=dtype, scale=target.std, labelled=labelled(held))
  return scored(records), make(records), lambda held: measure.classes(
      model.config, scored(held), make(held), size, mesh, dtype=dtype, labelled=labelled(held))


def text_keys(name: str, records: Records) -> tuple[str, ...]:
  """The texts of records that a loss of vectors compares.

  Raises:
    ValueError: they are none that it learns from.
  """
  keys = ("text",) if "text" in records[0] and "anchor" not in records[0] else keys_of(records)
  if name == "margin_mse" and "negative" not in keys:
    raise ValueError("loss margin_mse learns from triples (fields anchor, positive, negative); got the fields "
                     f"{', '.join(records[0])}; similarity_kl learns from pairs and from texts")
  return keys


def vector_collate(
    model: Pretrained, keys: tuple[str, ...], *, max_length: int, one_length: bool = False
) -> Collate:
  """Records to `{key: {ids, mask, teacher}}`."""
  plain = pair_collate(model, keys, max_length=max_length, one_length=one_length)

  def collate(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    made = plain(records)
    if VECTOR + keys[0] in records[0]:
      made = {key: {**made[key], KEY: np.stack([record[VECTOR + key] for record in records])} for key in keys}
    return made

  return collate


def class_collate(
    model: Pretrained, target: Target, of: Records, *, labelled: bool, max_length: int, one_length: bool = False
) -> Collate:
  """Records to what `features` takes, `teacher` `[batch, classes]` and, if `labelled`, their own class `target`.

  A label is found among the teacher's classes by its name.
  """
  read, features = input_collate(model, max_length=max_length, one_length=one_length), getattr(of, "features", {})
  names = None if target.field not in features else getattr(features[target.field], "names", None)

  def label(record: Mapping[str, Any]) -> int:
    said = record[target.field]
    said = said if isinstance(said, str) or names is None else names[int(said)]
    if said not in target.classes:
      raise ValueError(f"{target.field} must be one of the teacher's classes, {', '.join(target.classes):.200}; got "
                       f"{said!r:.60}")
    return target.classes.index(said)

  def collate(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    made = read(records)
    if KEY in records[0]:
      made[KEY] = np.stack([record[KEY] for record in records]).astype(np.float32)
    if labelled:
      made["target"] = np.array([label(record) for record in records], np.int32)
    return made

  return collate


def number_collate(
    model: Pretrained, target: Target, of: Records, *, labelled: bool, max_length: int, one_length: bool = False
) -> Collate:
  """Records to what `features` takes, `teacher` `[batch, 1]` and, if `labelled`, their own number `target`.

  Both are standardized as the target says, by the teacher's numbers of the training records.
  """
  del of
  read = input_collate(model, max_length=max_length, one_length=one_length)

  def collate(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    made = read(records)
    if KEY in records[0]:
      said = np.stack([record[KEY] for record in records]).astype(np.float64)
      made[KEY] = ((said - target.mean) / target.std).astype(np.float32)
    if labelled:
      for record in records:
        if isinstance(own := record[target.field], (str, bool)) or np.ndim(own) or not np.isfinite(own):
          raise ValueError(f"{target.field} must be one finite number in each record; got {own!r:.60}")
      made["target"] = target.of(records)
    return made

  return collate
