"""S2FT: does training a few whole channels keep more of what a model could than LoRA with as many numbers?

    jaxft run s2ft            four minutes on one core
    jaxft run s2ft --smoke    seconds

A network of six residual layers that reads 8x8 digits in three views learns to tell parity and half of upright ones by
a head of its own (`tasks/labelings.py`); outside of that task lies the reading of digits in the old views. Arms, with
13,824 trained numbers each but for the last:

    LoRA             rank 4 on both matrices of all layers, alpha = 2r
    S2FT             24 of 192 channels of each layer: their rows of the matrix that leads back into the stream
    random entries   as many entries of that matrix, wherever they lie
    full             both matrices of all layers

Rates are chosen by the task. A seed draws the base, the head, channels and factors, and the batches.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.tasks.labelings import TASKS, Recipe, Trunks, learn, of_task
from jaxft.choices import s2ft_units
from jaxft.leaves import materialize
from jaxft.studies.study import Arm, Claim, Front, Grid, Premise, Score, Study, higher, not_lower
from jaxft.transforms import ParamTransform, lora, random_indices, sparse_delta, submatrix, train
from jaxft.tree import Coupled, Member, count


@dataclasses.dataclass(frozen=True)
class Config:
  recipe: Recipe = Recipe()
  task: str = "parity and half"
  steps: int = 150
  rank: int = 4
  channels: int = 24
  rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
  full_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
  seeds: tuple[int, ...] = tuple(range(20))
  tuning_seeds: tuple[int, ...] = (100, 101, 102, 103)


SMOKE = Config(
    recipe=Recipe(layers=2, dim=16, base_steps=30), steps=20, rank=2, channels=4, rates=(1e-2, 3e-2),
    full_rates=(1e-2, 3e-2), seeds=(0, 1), tuning_seeds=(100,))

LORA, METHOD, RANDOM, FULL = "LoRA", "S2FT", "random entries", "full"
DOWN = "layers/down/kernel"
CHANNELS = Coupled((Member("layers/up/*", -1), Member(DOWN, -2)))


def transform_of(config: Config, arm: str, seed: int) -> ParamTransform:
  """What trains; of two seeds, S2FT's differ in `split` alone."""
  recipe = config.recipe
  if arm == FULL:
    return train("layers/**")
  if arm == LORA:
    return lora("layers/**/kernel", rank=config.rank, alpha=2.0 * config.rank)
  if arm == RANDOM:
    return sparse_delta(indices=random_indices(DOWN, lambda path, leaf: config.channels * recipe.dim))
  return submatrix(partial(
      s2ft_units, jax.random.key(seed), units=[CHANNELS], heads=0.0, channels=config.channels / (2 * recipe.dim),
      scope="layer"))


class World:
  """Bases, and their tunings by each arm."""

  def __init__(self, config: Config):
    self.config, self.trunks = config, Trunks(config.recipe)
    self._images = of_task(self.trunks.of_tasks, TASKS[config.task])
    # The split happens outside: which channels train is known to it alone.
    self._learn = {arm: jax.jit(partial(self._tune, transform_of(config, arm, 0).join))
                   for arm in (LORA, METHOD, RANDOM, FULL)}

  def _tune(self, join: Any, key: Any, frozen: Any, trainable: Any, head: Any, images: Any, rate: Any) -> Any:
    learnt = learn(key, join, frozen, trainable, head, images, steps=self.config.steps, rate=rate)
    return materialize(join(frozen, learnt))

  def run(self, arm: str, rate: float, seed: int, split: str) -> dict[str, np.ndarray]:
    """The scores of an arm's tuning."""
    of_split, of_batches = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1000))
    frozen, trainable = transform_of(self.config, arm, seed).split(of_split, self.trunks.base(seed))
    head = self.trunks.head(seed, self.config.task)
    return self.scores(self._learn[arm](of_batches, frozen, trainable, head, self._images, rate), seed, split)

  def start(self, rate: None, seed: int, split: str) -> dict[str, np.ndarray]:
    return self.scores(self.trunks.base(seed), seed, split)

  def scores(self, params: Any, seed: int, split: str) -> dict[str, np.ndarray]:
    return {"task": self.trunks.right(seed, params, split, self.config.task),
            "outside": self.trunks.right_before(params, split).ravel()}

  def trained(self, arm: str) -> dict[str, float]:
    base = self.trunks.base(self.config.tuning_seeds[0])
    return {"trained numbers": count(transform_of(self.config, arm, 0).split(jax.random.key(0), base)[1])}


def arms(config: Config) -> dict[str, Arm]:
  """The base and four tunings."""
  world = World(config)
  rates = lambda arm: Grid(config.full_rates if arm == FULL else config.rates)
  return {"base": Arm(world.start)} | {
      arm: Arm(partial(world.run, arm), rates(arm), partial(world.trained, arm))
      for arm in (LORA, METHOD, RANDOM, FULL)}


STUDY = Study(
    slug="s2ft", title="S2FT: Efficient, Scalable and Generalizable LLM Fine-tuning by Structured Sparsity",
    arxiv="2412.06289", question="keep old skills",
    use_when="an adapter learns its task and loses what the model could outside of it",
    setting="six residual layers that read digits in three views, tuned to tell parity and half by a head of their own",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("task", "accuracy of parity and half"),
        Score("outside", "accuracy of digits in the old views")),
    choose_by="task", baseline=LORA, method=METHOD, start="base", best=FULL, kept="outside",
    premises=(
        Premise("LoRA learns the task", lambda s: s[LORA].task - s["base"].task, at_least=0.3),
        Premise("LoRA loses outside of it", lambda s: s["base"].outside - s[LORA].outside, at_least=0.03)),
    claims=(
        Claim("S2FT keeps more outside than LoRA", higher("outside"), smallest=0.02),
        Claim("it learns the task no worse", not_lower("task"), smallest=0.01),
        Claim("whole channels keep more than as many entries at random",
              higher("outside", than=RANDOM), smallest=0.02)),
    plot=Front("outside", "task"))
