"""Pairs and triples of texts, which an encoder learns to tell apart: mnrl and gist."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxft.data.packed_pairs import PairPacking, plan_packing
from jaxft.formats.pretrained import Pretrained, load
from jaxft.recipes import measure, tasks
from jaxft.recipes.examples import Guided, Records, as_pairs, keys_of, lengths_up_to, pair_collate
from jaxft.recipes.forms.form import Asked, Form, Prepared, Reading
from jaxft.recipes.objectives import text_pairs
from jaxft.recipes.options import Finetune
from jaxft.training.mesh import batch_axes
from jaxft.training.recipe import Objective

PAYS = 1.25  # texts share rows where that is so many times fewer tokens


def _objective(asked: Asked) -> Objective:
  run = asked.run
  guided = {"guided": True, "margin": run.loss.margin} if asked.loss == "gist" else {}
  return text_pairs(
      asked.config, **guided, temperature=run.loss.temperature, slots=run.examples.slots, **asked.compared)


def _batch(asked: Asked) -> dict[str, Any]:
  """Pairs without negatives, each text in a row of its own."""
  text = asked.inputs()
  if asked.loss == "gist":
    guide = asked.config if asked.guide is None else asked.guide
    text["guide"] = jax.ShapeDtypeStruct((asked.rows, guide.dim), jnp.float32)
  return {"anchor": text, "positive": text}


def _prepare(reading: Reading) -> Prepared:
  model, options, size = reading.model, reading.options, reading.size
  records = as_pairs(reading.splits.train)
  keys = keys_of(records)
  collate = pair_collate(model, keys, **reading.padded())
  _check_different(records, keys, size)
  whole, uncut = reading.uncut()
  plain = pair_collate(whole, keys, **uncut)
  if reading.loss == "gist":
    records = _guided(reading, records)
  over = {"max_length": reading.length, "dtype": reading.dtype, "mesh": reading.mesh}
  out = Prepared(records, collate, lambda held: measure.retrieval(model, as_pairs(held), **over), plain)
  packing = None
  if not reading.several and not options.examples.pad:
    packing = _packing(options, model, records, reading.length, reading.mesh)
  if packing is None:
    return out
  packed, saved = pair_collate(model, keys, max_length=reading.length, packing=packing), packing.padded / packing.packed
  shapes = " and ".join(f"{rows} of {n} tokens" for rows, n in zip(packing.rows, packing.lengths, strict=True))
  said = (f"texts share rows, {shapes} a step, {saved:.1f} times fewer tokens than padded; the loss is the same; --pad "
          "gives each text its own row")
  return out._replace(collate=packed, alone=collate, said=said)


PAIRS = Form(_objective, _batch, _prepare)


def _guided(reading: Reading, records: Records) -> Records:
  """The records with what the guide says of their texts."""
  named = reading.options.loss.guide
  guide = load(named) if named else dataclasses.replace(reading.model, params=reading.params)
  config, tokenizer = guide.text_encoder("guide")
  # Each process embeds by itself, on one device; a model of the run itself may lie in the host's memory.
  params = guide.params if reading.mesh is None else jax.device_put(guide.params, jax.local_devices()[0])
  return Guided(records, tokenizer, tasks.embedder(params, config), max_length=min(reading.length, guide.max_length))


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
