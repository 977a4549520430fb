"""Micro-edits at full size: a whole CLIP learns to tell a picture from its edited copy by their captions.

    python -m experiments.full_scale.edits --out runs/edits
    python -m experiments.full_scale.edits --out runs/close --weight 0.1 --margin 0.1

A batch holds whole pairs, so that the other of a pair is a negative of both its picture and its caption; with a weight
the embeddings of a pair's pictures are kept within a margin of each other, as in the paper's feature consistency. The
small study, `experiments.vision_language.micro_edit`, has the controls; this trains both towers of a public checkpoint,
resumable and over all devices, and the numbers that it prints are of one run.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.full_scale.entry import enter
from experiments.full_scale.pictures import batches
from jaxft.checks import in_range
from jaxft.data import source
from jaxft.data.images import read_image
from jaxft.files import write_text
from jaxft.formats.huggingface import save_directory
from jaxft.leaves import materialize
from jaxft.losses import Mean, clip as clip_loss, feature_consistency
from jaxft.models import clip
from jaxft.models.config.clip import ClipConfig
from jaxft.models.pixels import standardize
from jaxft.recipes.model import Model, load
from jaxft.training import Checkpoints, Recipe, fit, init_state, make_mesh, make_train_step
from jaxft.training.rules import ENCODER_RULES
from jaxft.transforms import full, lora


@dataclasses.dataclass(frozen=True)
class Edits:
  """Tunes a CLIP on edited pairs, and measures it before and after on held-out ones."""

  out: Path
  """A folder for `model/` and `result.json`; the same command goes on where it was stopped."""
  model: str = "hf:openai/clip-vit-large-patch14"
  """A CLIP with its tokenizer."""
  data: str = "avatars/edits"
  """A data set whose records have the four fields below."""
  train_split: str = "train"
  held_out: str = "test"
  images: tuple[str, str] = ("image", "edited")
  captions: tuple[str, str] = ("caption", "edited_caption")
  limit: int | None = None
  """Only so many pairs of each split."""
  rank: int | None = None
  """Of LoRA on both towers' matrices; without one, everything trains."""
  weight: float = 0.0
  """Of what keeps the pictures of a pair close."""
  margin: float = 0.0
  """The distance, 1 - cosine, within which they may differ."""
  steps: int = 1000
  batch_size: int = 64
  """Pairs."""
  learning_rate: float = 1e-5
  save_every: int = 200
  seed: int = 0


class Pairs:
  """The pairs of a split, as a CLIP reads them; indexed by the step with rows, or read whole."""

  def __init__(self, options: Edits, split: str, model: Model):
    records = source(options.data, split)
    count = len(records) if options.limit is None else min(options.limit, len(records))
    self.records = [records[i] for i in range(count)]
    names = (*options.images, *options.captions)
    if missing := [name for name in names if name not in self.records[0]]:
      raise ValueError(f"data must have the fields {', '.join(names)}; {options.data} lacks {', '.join(missing)} and "
                       f"has {', '.join(self.records[0])}")
    assert isinstance(model.config, ClipConfig)
    self.names, self.vision, self.rows = options, model.config.vision, np.arange(count)[None]
    captions = [record[name] for record in self.records for name in options.captions]
    assert model.tokenizer is not None
    encoded = [model.tokenizer.encode(text).ids for text in captions]
    longest = min(max(map(len, encoded)), model.max_length)
    self.ids, self.mask = np.zeros((2, len(encoded), longest), np.int32)
    for i, row in enumerate(encoded):
      row = row if len(row) <= longest else [*row[: longest - 1], row[-1]]
      self.ids[i, : len(row)], self.mask[i, : len(row)] = row, 1
    self.same = np.unique(captions, return_inverse=True)[1].astype(np.int32)

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    rows = self.rows[step]
    read = lambda image: read_image(image, self.vision.image_size, self.vision.framing)
    shown = [read(self.records[i][name]) for i in rows for name in self.names.images]
    sides = np.stack([2 * rows, 2 * rows + 1], axis=1).ravel()
    by_pair = lambda x: np.asarray(x).reshape(len(rows), 2, *np.shape(x)[1:])
    return {"images": by_pair(np.stack(shown)), "ids": by_pair(self.ids[sides]), "mask": by_pair(self.mask[sides]),
            "same": by_pair(self.same[sides])}


def vectors(params: Any, config: ClipConfig, batch: dict[str, Any]) -> tuple[Any, Any]:
  """Unit vectors of a batch's pictures and captions, `[pairs, 2, dim]`."""
  flat = lambda x: jnp.reshape(x, (-1, *x.shape[2:]))
  images = standardize(flat(batch["images"]), mean=config.vision.mean, std=config.vision.std)
  shown = clip.embed_images(params, config, images)
  read = clip.embed_texts(params, config, flat(batch["ids"]), flat(batch["mask"]))
  return shown.reshape(-1, 2, config.dim), read.reshape(-1, 2, config.dim)


def measured(params: Any, config: ClipConfig, held: Pairs, *, size: int = 32) -> dict[str, float]:
  """Of how many pairs both captions and both pictures are told right, of how many pictures, and how near a pair is."""
  run, cosines, near = jax.jit(lambda params, batch: vectors(params, config, batch)), [], []
  count = len(held.records)
  for start in range(0, count, size):
    held.rows = (np.arange(start, start + size) % count)[None]  # one shape
    shown, read = (np.asarray(x)[: count - start] for x in run(params, held[0]))
    cosines.append(np.einsum("nid,njd->nij", shown, read))
    near.append((shown[:, 0] * shown[:, 1]).sum(-1))
  cosine = np.concatenate(cosines)
  own, other = cosine[:, [0, 1], [0, 1]], cosine[:, [0, 1], [1, 0]]
  by_picture, by_caption = own > other, own > other[:, ::-1]
  return {"group": float(np.mean(np.all(by_picture & by_caption, axis=1))), "caption": float(by_picture.mean()),
          "near": float(np.concatenate(near).mean())}


def run(options: Edits) -> dict[str, Any]:
  """The result, which is also written to `out`."""
  in_range("weight", options.weight, "[0, inf)")
  in_range("margin", options.margin, "[0, 2]")
  model = load(options.model)
  config = model.config
  if not isinstance(config, ClipConfig) or model.tokenizer is None:
    raise ValueError(f"model must be a CLIP with its tokenizer; got {options.model}, of the kind {model.kind}")
  known, held = (Pairs(options, split, model) for split in (options.train_split, options.held_out))
  known.rows = batches(
      np.random.default_rng(options.seed), range(len(known.records)), steps=options.steps, size=options.batch_size)
  before = measured(model.params, config, held)

  def objective(params: Any, batch: dict[str, Any], key: Any) -> tuple[Mean, dict[str, Any]]:
    shown, read = vectors(params, config, batch)
    flat, same = lambda x: x.reshape(-1, config.dim), batch["same"].reshape(-1)
    temperature = 1 / jnp.exp(jnp.minimum(params["logit_scale"], jnp.log(100.0)))
    values, weights = clip_loss(flat(shown), flat(read), temperature=temperature, a_ids=same, b_ids=same)
    if options.weight:
      # Each is drawn to the other, which is a constant in that term.
      apart = sum(feature_consistency(shown[:, i], shown[:, 1 - i])[0] for i in (0, 1))
      values += options.weight * jnp.mean(jnp.maximum(apart - 2 * options.margin, 0.0))
    return Mean.of(values, weights), {}

  transform = full() if options.rank is None else lora("{vision,text}/layers/**/kernel", rank=options.rank)
  mesh = make_mesh() if jax.device_count() > 1 else None
  schedule = optax.schedules.warmup_cosine_decay_schedule(
      0.0, options.learning_rate, max(1, options.steps // 20), max(2, options.steps))
  recipe = Recipe(objective, transform, optax.adamw(schedule), mesh=mesh, rules=ENCODER_RULES)
  state, frozen = init_state(jax.random.key(options.seed), model.params, recipe)
  defining = {name: str(value) for name, value in dataclasses.asdict(options).items() if name not in ("out", "steps")}
  state = fit(
      make_train_step(recipe), state, frozen, known, steps=options.steps, save_every=options.save_every,
      checkpoints=Checkpoints(options.out / "checkpoints", fingerprint=defining))
  tuned = materialize(transform.join(frozen, state.trainable))
  result = {"pairs": len(known.records), "held out": len(held.records), "before": before,
            "after": measured(tuned, config, held)}
  if not (folder := options.out / "model").exists():
    save_directory(tuned, config, folder, tokenizer=model.tokenizer)
  write_text(options.out / "result.json", json.dumps(result, indent=1) + "\n")
  return result


def main(args: Sequence[str]) -> int:
  """The program; its exit status."""
  return enter(Edits, run, args, "edits")


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
