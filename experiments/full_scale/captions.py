"""Captioners at the size of the papers: by likelihood, by a retriever's reward, in bags of look-alikes, on clean parts.

    python -m experiments.full_scale.captions --out runs/likely                                 ClipCap on COCO
    python -m experiments.full_scale.captions --by reward --start runs/likely --out runs/told   DiscriTune
    python -m experiments.full_scale.captions --by reward --start runs/likely --bags 0 3 5 --out runs/bags
    python -m experiments.full_scale.captions --start runs/likely --keep 0.2 --data ... --out runs/clean     POINTS

A captioner is `jaxft.models.captioner`: the vector of a frozen image tower becomes the first embeddings of a decoder.
By reward, one caption of each picture of a batch is sampled, and its log-probability per token is raised or lowered by
how well the judge finds the picture by it among the batch, less the mean over the batch. The small studies of
`experiments.vision_language` measure whether that helps; this is the same on public checkpoints and data, resumable
and over all devices, and the numbers that it prints are of one run.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Int

from experiments.full_scale.entry import enter
from experiments.full_scale.pictures import Pictures, batches, pictures
from experiments.full_scale.writer import Writer, begin, save
from jaxft.checks import in_range
from jaxft.data import bag_batches, similar_bags
from jaxft.evaluation import caption_faithfulness, random_distractor_recall, token_f1
from jaxft.files import write_text
from jaxft.leaves import materialize
from jaxft.losses import Mean, reinforce, retrieval_reward, whiten
from jaxft.models import captioner
from jaxft.recipes.model import Model, load
from jaxft.selection import select_band
from jaxft.training import Checkpoints, Recipe, fit, init_state, make_mesh, make_train_step
from jaxft.training.rules import DECODER_RULES
from jaxft.transforms import full, train

RULES = tuple((f"decoder/{path}" if not path.startswith("**") else path, spec) for path, spec in DECODER_RULES)


@dataclasses.dataclass(frozen=True)
class Captions:
  """Tunes a captioner, and measures it before and after on held-out pictures."""

  out: Path
  """A folder for `captioner/`, `captions.jsonl` and `result.json`; the same command goes on where it was stopped."""
  vision: str = "hf:openai/clip-vit-large-patch14"
  """What the captioner sees by: a CLIP or a model of images, which stays as it is."""
  decoder: str = "hf:HuggingFaceTB/SmolLM2-360M"
  """What writes; the source has GPT-2."""
  judge: str = "hf:openai/clip-vit-large-patch14"
  """A CLIP that finds pictures by captions: it rewards, and it measures."""
  data: str = "tfds:coco_captions"
  """A data set with an `image` in each record."""
  train_split: str = "train"
  held_out: str = "val"
  captions: str = "captions/text"
  """The field of the captions, a text or several."""
  fields: str | None = None
  """Other names of a file's columns, as `image_file=image,description=caption`."""
  limit: int | None = None
  """Only so many pictures of each split."""
  start: Path | None = None
  """The folder of an earlier run, whose captioner is tuned further; without one, its projector starts at random."""
  by: Literal["likelihood", "reward"] = "likelihood"
  bags: tuple[int, ...] = (0,)
  """Sizes of the bags of look-alikes that a batch is made of, for equal parts of the steps; 0 is a random batch."""
  ceiling: float = 0.98
  """The cosine from which on two pictures are taken for copies, which no bag holds both of."""
  keep: float = 1.0
  """The share of the captions that is kept, those that the start finds least perplexing."""
  tune: Literal["all", "prefix"] = "all"
  """Projector and decoder, or the projector alone."""
  prefix_length: int = 10
  longest: int = 40
  """Tokens of a caption."""
  steps: int = 14000
  batch_size: int = 40
  learning_rate: float = 2e-5
  """The sources have 2e-5 by likelihood and 1e-7 by reward."""
  warmup: float = 0.05
  distractors: int = 99
  save_every: int = 500
  cache: Path | None = None
  """Keeps the vectors of pictures; the usual place is jaxft's cache folder."""
  seed: int = 0


class Told:
  """Batches by the step: rows of pictures, each with one of its captions."""

  def __init__(self, known: Pictures, writer: Writer, rows: Int[np.ndarray, "steps batch"], seed: int):
    self.known, self.writer, self.rows_of, self.seed = known, writer, rows, seed

  def __len__(self) -> int:
    return len(self.rows_of)

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    rows, rng = self.rows_of[step], np.random.default_rng([self.seed, step])
    said = [self.known.captions[row] for row in rows]
    ids, mask = self.writer.rows([texts[rng.integers(len(texts))] for texts in said])
    return {"features": self.known.features[rows], "judged": self.known.judged[rows], "ids": ids, "mask": mask}


def chosen_rows(options: Captions, known: Pictures) -> Int[np.ndarray, "steps batch"]:
  """Which pictures meet in each step.

  Raises:
    ValueError: a batch is no multiple of a bag, or there are too few bags for one.
  """
  parts, out = len(options.bags), []
  for i, size in enumerate(options.bags):
    steps = options.steps // parts if i + 1 < parts else options.steps - options.steps // parts * (parts - 1)
    if size == 0:
      out.append(batches(np.random.default_rng([options.seed, i]), range(len(known.features)), steps=steps,
                         size=options.batch_size))
      continue
    if options.batch_size % size:
      raise ValueError(f"batch_size must be a multiple of each of bags; got {options.batch_size} and {size}")
    bags = similar_bags(known.judged, size=size, seed=options.seed, ceiling=options.ceiling)
    if len(bags) * size < options.batch_size:
      raise ValueError(f"bags must be of sizes of which the pictures fill a batch of {options.batch_size}; {len(bags)} "
                       f"bags of {size} were found")
    out.append(bag_batches(bags, bags_per_batch=options.batch_size // size, steps=steps, seed=options.seed + i))
  return np.concatenate(out)


def likely(options: Captions, known: Pictures, params: Any, writer: Writer) -> Pictures:
  """The pictures with the captions that the captioner finds least perplexing; pictures without one are left out."""
  flat = [(at, text) for at, texts in enumerate(known.captions) for text in texts]
  nll = jax.jit(lambda params, features, ids, mask: captioner.token_nll(
      params, writer.config, features, ids, mask=mask))
  scores = []
  for start in range(0, len(flat), 64):
    part = [*flat[start: start + 64], *[flat[start]] * max(0, start + 64 - len(flat))]
    ids, mask = writer.rows([text for _, text in part])
    values, weights = nll(params, known.features[[at for at, _ in part]], ids, mask)
    scores.append(np.asarray((values * weights).sum(1) / weights.sum(1)))
  kept = select_band(np.concatenate(scores)[: len(flat)], high=options.keep)
  captions: dict[int, list[str]] = {}
  for i in kept:
    captions.setdefault(flat[i][0], []).append(flat[i][1])
  at = sorted(captions)
  return Pictures(known.features[at], known.judged[at], [captions[i] for i in at])


def measured(options: Captions, params: Any, writer: Writer, known: Pictures, judge: Model) -> dict[str, Any]:
  """The likeliest captions of held-out pictures, and what they are worth.

  Raises:
    ValueError: there are not as many pictures as distractors ask for.
  """
  in_range("distractors", options.distractors, f"[1, {len(known.features)})")
  said: list[str] = []
  for start in range(0, len(known.features), 64):
    part = known.features[start: start + 64]
    said += writer(params, np.concatenate([part, np.repeat(part[:1], 64 - len(part), axis=0)]))[2][: len(part)]
  found = random_distractor_recall(jax.random.key(0), judge.encode(said), known.judged, distractors=options.distractors)
  return {
      "found": float(np.mean(found)), "f1": float(np.mean(token_f1(said, known.captions))),
      "faithful": float(np.mean(caption_faithfulness(said, known.captions))), "captions": said}


def rewarded(step: Any, join: Callable[[Any], Any], writer: Writer, judge: Model, seed: int) -> Callable[..., Any]:
  """A step that first samples a caption of each picture, and has the judge reward it."""
  scale = float(jnp.exp(jnp.minimum(judge.params["logit_scale"], jnp.log(100.0))))

  def run(state: Any, frozen: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    ids, mask, texts = writer(join((frozen, state.trainable)), batch["features"], key)
    rewards = retrieval_reward(judge.encode(texts), batch["judged"], scale=scale)
    own = {"features": batch["features"], "ids": ids, "mask": mask, "advantages": np.asarray(whiten(rewards))}
    state, metrics = step(state, frozen, own)
    return state, {**metrics, "reward": rewards.mean()}

  return run


def run(options: Captions) -> dict[str, Any]:
  """The result, which is also written to `out`."""
  in_range("keep", options.keep, "(0, 1]")
  vision, judge = load(options.vision), load(options.judge)
  if judge.kind != "dual encoder" or judge.tokenizer is None:
    raise ValueError(f"judge must be a CLIP with its tokenizer; got {options.judge}, of the kind {judge.kind}")
  read = lambda split: pictures(
      options.data, split, vision=vision, judge=judge, captions=options.captions, fields=options.fields,
      limit=options.limit, cache=options.cache)
  known, held = read(options.train_split), read(options.held_out)
  params, model = begin(options.start, options.decoder, width=known.features.shape[1], length=options.prefix_length,
                        seed=options.seed)
  writer = Writer(model, options.longest)
  before = measured(options, params, writer, held, judge)
  if options.keep < 1:
    known = likely(options, known, params, writer)
  by_reward = options.by == "reward"

  def objective(params: Any, batch: dict[str, Any], key: Any) -> tuple[Mean, dict[str, Any]]:
    values, weights = captioner.token_nll(params, writer.config, batch["features"], batch["ids"], mask=batch["mask"])
    if not by_reward:
      return Mean.of(values, weights), {}
    return Mean.of(*reinforce(-(values * weights).sum(1) / weights.sum(1), batch["advantages"])), {}

  rate = optax.schedules.warmup_cosine_decay_schedule(
      0.0, options.learning_rate, max(1, round(options.warmup * options.steps)), max(2, options.steps))
  mesh = make_mesh() if jax.device_count() > 1 else None
  transform = full() if options.tune == "all" else train("prefix/**")
  recipe = Recipe(objective, transform, optax.adamw(rate), mesh=mesh, rules=RULES)
  state, frozen = init_state(jax.random.key(options.seed), params, recipe)
  step: Any = make_train_step(recipe)
  if by_reward:
    step = rewarded(step, lambda parts: transform.join(*parts), writer, judge, options.seed)
  own = ("out", "steps", "cache")
  defining = {name: str(value) for name, value in dataclasses.asdict(options).items() if name not in own}
  rows = chosen_rows(options, known)
  state = fit(
      step, state, frozen, Told(known, writer, rows, options.seed), steps=options.steps, save_every=options.save_every,
      checkpoints=Checkpoints(options.out / "checkpoints", fingerprint=defining))
  tuned = materialize(transform.join(frozen, state.trainable))
  after = measured(options, tuned, writer, held, judge)
  if not (folder := options.out / "captioner").exists():
    save(tuned, writer, folder)
  lines = [json.dumps({"references": references, "before": one, "after": other}, ensure_ascii=False)
           for references, one, other in zip(held.captions, before.pop("captions"), after.pop("captions"), strict=True)]
  write_text(options.out / "captions.jsonl", "\n".join(lines) + "\n")
  result = {"pictures": len(known.features), "held out": len(held.features), "before": before, "after": after}
  write_text(options.out / "result.json", json.dumps(result, indent=1) + "\n")
  return result


def main(args: Sequence[str]) -> int:
  """The program; its exit status."""
  return enter(Captions, run, args, "captions")


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
