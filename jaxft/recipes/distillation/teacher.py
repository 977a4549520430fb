"""The teacher of a run: read and checked, beside the params of its student, and what it says of records."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxft.evaluation.embed import embed_texts
from jaxft.formats.pretrained import Pretrained
from jaxft.recipes import tasks
from jaxft.recipes.distillation.losses import DISTILLATIONS
from jaxft.recipes.examples import Records
from jaxft.recipes.forms.labels import Target
from jaxft.recipes.model import Model, load
from jaxft.recipes.options import Finetune
from jaxft.recipes.preference.reference import digest, kept_beside
from jaxft.together import is_first
from jaxft.training.checksums import checksum
from jaxft.transforms import ParamTransform

KEY = "teacher"  # of its params among those of a run whose teacher speaks in every step
VECTOR = "teacher/"  # before a text's key: the field of its vector
ROWS = 64  # images at once


def teacher_of(options: Finetune, name: str, model: Pretrained) -> Model | None:
  """The teacher of a loss of this name; None of losses without one.

  Raises:
    ValueError: it is none for this student.
  """
  if name not in DISTILLATIONS:
    return None
  if name == "gkd" and options.loss.max_new_tokens is not None and not options.loss.on_policy:
    raise ValueError(f"--max-new-tokens is read with --on-policy alone; got {options.loss.max_new_tokens}")
  loss, teacher = DISTILLATIONS[name], load(options.loss.teacher or "")
  if loss.of == "tokens":
    (config, tokenizer), (own, words) = teacher.text_decoder("teacher"), model.text_decoder()
    if digest(tokenizer) != digest(words) or config.vocab_size != own.vocab_size:
      raise ValueError(f"teacher must have the tokenizer and vocabulary of {model.name}, whose tokens it judges "
                       f"({own.vocab_size:,} rows); {teacher.name} has another of {config.vocab_size:,}")
  elif loss.of == "vectors":
    config, _ = teacher.text_encoder("teacher")
    if teacher.head is not None and is_first():
      by = "kd learns its classes" if teacher.head.classes else "value_mse learns its numbers"
      print(f"jaxft: note: {name} learns the teacher's vectors, and its head is not read; --loss {by}", file=sys.stderr)
    if name == "embedding_mse" and config.dim != model.config.dim:
      raise ValueError(f"teacher must give vectors as wide as those of {model.name}, {model.config.dim}, for loss "
                       f"embedding_mse; {teacher.name} gives {config.dim}. similarity_kl compares models of any widths")
  elif teacher.kind != model.kind:
    raise ValueError(f"teacher must be of the kind of {model.name}, {model.kind}; {teacher.name} is {teacher.kind}")
  elif teacher.head is None or bool(teacher.head.classes) != (loss.of == "classes"):
    wanted, other = ("classifier", "regressor") if loss.of == "classes" else ("regressor", "classifier")
    has = f"no {wanted}" if teacher.head is None else f"a {other}"
    fits = "similarity_kl learns the vectors of an encoder" if teacher.head is None else (
        f"{'value_mse' if loss.of == 'classes' else 'kd'} learns of a {other}")
    raise ValueError(f"teacher must be a {wanted} for loss {name}; {teacher.name} is {has}. {fits}")
  return teacher


def numbers_said(records: Records, field: str, teacher: Model, *, max_length: int) -> Target:
  """What the student of a regressor learns: its numbers, by their mean and deviation over the training records.

  Raises:
    ValueError: the teacher says the same of all.
  """
  said = np.array([float(record[KEY][0]) for record in with_scores(records, teacher, max_length=max_length)])
  if not (std := float(said.std())):
    raise ValueError(f"teacher must say numbers that differ between records; {teacher.name} says {said[0]:g} of all "
                     f"{len(said)}")
  return Target(field, mean=float(said.mean()), std=std)


def beside(transform: ParamTransform) -> ParamTransform:
  """A transform of the student's params where the teacher's lie beside them, which stay as they are."""

  def split(key: jax.Array, params: Any) -> tuple[Any, Any]:
    frozen, trainable = transform.split(key, alone(params))
    return {**frozen, KEY: params[KEY]}, trainable

  return ParamTransform(split, lambda frozen, trainable: {
      **transform.join(alone(frozen), trainable), KEY: frozen[KEY]})


def alone(params: Mapping[str, Any]) -> dict[str, Any]:
  """The student's side of params, or of what stays frozen."""
  return {name: part for name, part in params.items() if name != KEY}


def with_rules(rules: Sequence[tuple[str, PartitionSpec]]) -> tuple[tuple[str, PartitionSpec], ...]:
  """Partition rules for both: those of the student, and the same for its teacher."""
  return (*rules, *((f"{KEY}/{glob}", spec) for glob, spec in rules if not glob.startswith("**")))


def with_vectors(
    records: Records, teacher: Model, keys: Sequence[str], *, max_length: int, mesh: Mesh | None
) -> Records:
  """Records with the teacher's vector of each of their texts, `teacher/<key>`; embedded once and kept."""
  config, tokenizer = teacher.text_encoder("teacher")
  # Each process embeds by itself, on one device.
  params = teacher.params if mesh is None else jax.device_put(teacher.params, jax.local_devices()[0])
  embed, length = tasks.embedder(params, config), min(max_length, teacher.max_length)

  def compute(batch: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return {VECTOR + key: embed_texts(
        embed, tasks.column(batch, key), tokenizer, max_length=length,
        progress=f"teacher: {key}" if is_first() else None) for key in keys}

  return kept_beside(records, compute, batch_size=len(records), identity=_identity(teacher, length, list(keys)))


def with_scores(records: Records, teacher: Model, *, max_length: int) -> Records:
  """Records with the teacher's scores of its classes, `teacher` `[classes]`; computed once and kept."""
  of_images = teacher.kind == "vision"
  length = 0 if of_images else min(max_length, teacher.max_length)

  def compute(batch: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    inputs = tasks.column(batch, "image" if of_images else "text")
    return {KEY: np.asarray(teacher.logits(inputs, max_length=length or None), np.float32)}

  size = min(ROWS, len(records)) if of_images else len(records)
  return kept_beside(records, compute, batch_size=size, identity=_identity(teacher, length, "classes"))


def _identity(teacher: Model, length: int, what: Any) -> dict[str, Any]:
  head = None if teacher.head is None else checksum(dict(zip("kbd", teacher.head[:3], strict=True)))
  return {"weights": checksum(teacher.params), "head": head, "length": length, "of": what, "form": 1,
          "tokenizer": digest(teacher.tokenizer), "config": repr(teacher.config)}
