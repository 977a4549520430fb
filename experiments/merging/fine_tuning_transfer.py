"""Fine-tuning transfer: does the update of an old base model fit the next version of the base?

    jaxft run fine-tuning-transfer            two minutes on one core
    jaxft run fine-tuning-transfer --smoke    seconds

Version 1 of a base, an MLP, reads 8x8 images of digits in five views; version 2 is version 1 trained on for a quarter
as long. Version 1 is fine-tuned on ten inverted images of each digit, which neither has seen, and its update (the
difference to version 1) is added to version 2. Arms:

- version 2 as it is (the baseline), version 1 fine-tuned, and version 2 fine-tuned at full cost;
- version 2 with the update (the method), with the update of another task (mirrored images), and with the update's
  entries shuffled inside each leaf: what matters is where they point, not that weights moved;
- a base apart: a version 2 that was trained from a start of its own, with the update of version 1;
- a tenth of the steps from version 2, and from version 2 with the update.

Each arm has a learning rate of its own, that of the fine-tuning it rests on. A seed draws the start, the labelled
images and the batches of every stage.
"""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.tasks.digits_views import Images, Params, few_shot, finetune, load_images, logits, pretrain, seen
from experiments.tasks.view_experts import rows
from jaxft.studies.study import Arm, Bars, Claim, Grid, Premise, Score, Study, higher, not_lower
from jaxft.tree import apply_task_vector, task_vector


@dataclasses.dataclass(frozen=True)
class Config:
  views: tuple[str, ...] = ("upright", "turned", "turned twice", "flipped", "transposed")
  task: str = "inverted"
  other: str = "mirrored"
  first_steps: int = 800
  later_steps: int = 200
  base_rates: tuple[float, float] = (2e-3, 1e-3)
  shots: int = 10
  steps: int = 200
  short: int = 20
  rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
  seeds: tuple[int, ...] = tuple(range(16))
  tuning_seeds: tuple[int, ...] = (100, 101, 102, 103)


SMOKE = Config(first_steps=30, later_steps=5, shots=2, steps=10, short=2, rates=(1e-3, 3e-3), seeds=(0, 1),
               tuning_seeds=(100,))


class Made(NamedTuple):
  """What a seed makes once: bases, and the labelled images of both tasks."""

  key: jax.Array
  first: Params
  second: Params
  apart: Params
  task: Images
  other: Images


@jax.jit
def shuffled(key: jax.Array, delta: Params) -> Params:
  """The same entries of each leaf in random order: of the same size, and pointing nowhere."""
  leaves, tree = jax.tree.flatten(delta)
  keys = jax.random.split(key, len(leaves))
  return tree.unflatten([jax.random.permutation(k, x.ravel()).reshape(x.shape)
                         for k, x in zip(keys, leaves, strict=True)])


class World:
  """The bases of each seed, the fine-tunings from them, and what is measured."""

  def __init__(self, config: Config):
    self.config = config
    images = load_images("train")
    self._of_base, self._of_task = seen(rows(images, 0), *config.views), rows(images, 1)
    first_rate, later_rate = config.base_rates
    self._first = jax.jit(lambda key: pretrain(key, self._of_base, steps=config.first_steps, rate=first_rate))
    self._later = jax.jit(lambda key, params: finetune(
        key, params, self._of_base, steps=config.later_steps, rate=later_rate))
    fit = lambda steps: jax.jit(lambda key, params, images, rate: finetune(
        key, params, images, steps=steps, rate=rate, batch_size=16))
    self._tune, self._tune_short = fit(config.steps), fit(config.short)
    self._right = jax.jit(lambda params, images: jnp.argmax(logits(params, images.pixels), axis=-1) == images.digits)
    self._held = cache(lambda split, *views: seen(load_images(split), *views))
    self.made = cache(self._make)
    self.update = cache(self._update)

  def _make(self, seed: int) -> Made:
    key = jax.random.key(seed)
    first, later, apart, later_apart, of_task, of_other, of_tuning = jax.random.split(key, 7)
    base, other_base = self._first(first), self._first(apart)
    few = lambda key, view: seen(few_shot(key, self._of_task, self.config.shots), view)
    return Made(of_tuning, base, self._later(later, base), self._later(later_apart, other_base),
                few(of_task, self.config.task), few(of_other, self.config.other))

  def _update(self, seed: int, rate: float, task: str) -> Params:
    made = self.made(seed)
    return task_vector(made.first, self._tune(made.key, made.first, getattr(made, task), rate))

  def run(self, make: Callable[[Any, Any, float, int], Params], rate: Any, seed: int, split: str) -> dict[str, Any]:
    """The scores of what an arm makes."""
    params, config = make(self, self.made(seed), rate, seed), self.config
    return {"task": self._right(params, self._held(split, config.task)),
            "base": self._right(params, self._held(split, *config.views))}

  def tuned(self, params: Params, made: Made, rate: float) -> Params:
    return self._tune(made.key, params, made.task, rate)

  def tuned_short(self, params: Params, made: Made, rate: float) -> Params:
    return self._tune_short(made.key, params, made.task, rate)


# name -> (world, made, rate, seed) -> params
UNTUNED: dict[str, Callable[..., Params]] = {
    "version 1": lambda world, made, rate, seed: made.first,
    "version 2": lambda world, made, rate, seed: made.second,
}
TUNED: dict[str, Callable[..., Params]] = {
    "version 1, fine-tuned": lambda world, made, rate, seed: world.tuned(made.first, made, rate),
    "version 2, fine-tuned": lambda world, made, rate, seed: world.tuned(made.second, made, rate),
    "version 2 + update": lambda world, made, rate, seed: apply_task_vector(
        made.second, world.update(seed, rate, "task")),
    "version 2 + update of another task": lambda world, made, rate, seed: apply_task_vector(
        made.second, world.update(seed, rate, "other")),
    "version 2 + update, shuffled": lambda world, made, rate, seed: apply_task_vector(
        made.second, shuffled(made.key, world.update(seed, rate, "task"))),
    "base apart + update": lambda world, made, rate, seed: apply_task_vector(
        made.apart, world.update(seed, rate, "task")),
    "version 2, a tenth of the steps": lambda world, made, rate, seed: world.tuned_short(made.second, made, rate),
}
SHORT = "version 2 + update, a tenth of the steps"


def short_from_update(world: World, made: Made, rates: dict[str, float], seed: int) -> Params:
  """The update at the first rate, then a short fine-tuning at the second."""
  start = apply_task_vector(made.second, world.update(seed, rates["update"], "task"))
  return world.tuned_short(start, made, rates["rate"])


def arms(config: Config) -> dict[str, Arm]:
  """Arms without a rate, with one, and one with two."""
  world, grid = World(config), Grid(config.rates)
  return {
      **{name: Arm(partial(world.run, make)) for name, make in UNTUNED.items()},
      **{name: Arm(partial(world.run, make), grid) for name, make in TUNED.items()},
      SHORT: Arm(partial(world.run, short_from_update), {"update": grid, "rate": grid})}


STUDY = Study(
    slug="fine-tuning-transfer", title="Efficient Model Development through Fine-tuning Transfer", arxiv="2503.20110",
    question="merge", use_when="a base has a new version that lacks what the old one was fine-tuned for",
    setting="an MLP that reads digits in five views, trained on for version 2; ten inverted images of each digit",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("task", "accuracy on inverted images"),
        Score("base", "accuracy on the base's five views")),
    choose_by="task", baseline="version 2", method="version 2 + update", start="version 2",
    best="version 2, fine-tuned", kept="base",
    premises=(
        Premise("version 2 is far below its own fine-tuning",
                lambda s: s["version 2, fine-tuned"].task - s["version 2"].task, at_least=0.2),
        Premise("fine-tuning version 1 gains as much",
                lambda s: s["version 1, fine-tuned"].task - s["version 1"].task, at_least=0.2)),
    claims=(
        Claim("the old update raises version 2", higher("task"), smallest=0.1),
        Claim("it is not worse than fine-tuning version 2", not_lower("task", than="version 2, fine-tuned"),
              smallest=0.05),
        Claim("its shuffled entries do less", higher("task", than="version 2 + update, shuffled"), smallest=0.1),
        Claim("a tenth of the steps ends higher from the sum than from version 2",
              higher("task", SHORT, "version 2, a tenth of the steps"), smallest=0.02)),
    plot=Bars("task"))
