"""aTLAS: are few labels of a new task better spent on a coefficient per task vector and block than on one per vector?

    jaxft run atlas            two minutes on one core
    jaxft run atlas --smoke    seconds

An MLP that reads 8x8 images of digits in two views (`tasks/view_experts.py`) has a bank of five task vectors, one for
each of five other views; the task is a view that neither the base nor the bank has seen. All arms start from the mean
of the bank's experts and train on the same few labelled images of it:

    isotropic       one coefficient for each task vector: 5 numbers
    aTLAS           one for each task vector, matrix and bias: 30 numbers
    random bases    as many, of Gaussian directions with the norm that each task vector has in each block
    full            all weights

Among the rates is 0, the start itself, so that no arm is chosen that validation images show to be worse than it. A seed
draws the base, the experts, the labelled images and their batches.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.digits_views import Images, Params, few_shot, fit, seen
from experiments.tasks.view_experts import Experts, Recipe
from jaxft import merging
from jaxft.leaves import materialize
from jaxft.studies.study import Arm, Bars, Claim, Grid, Premise, Score, Study, higher
from jaxft.transforms import ParamTransform, full, linear_combination
from jaxft.tree import count, task_vector

VIEWS = ("mirrored", "flipped", "transposed", "inverted", "turned twice")


@dataclasses.dataclass(frozen=True)
class Config:
  recipe: Recipe = Recipe(views=VIEWS, own=0)
  target: str = "turned back"
  few: int = 2  # labelled images of a digit
  many: int = 50
  steps: int = 100
  batch_size: int = 20
  coefficient_rates: tuple[float, ...] = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)
  weight_rates: tuple[float, ...] = (0.0, 1e-3, 3e-3, 1e-2, 3e-2)
  seeds: tuple[int, ...] = tuple(range(16))
  tuning_seeds: tuple[int, ...] = (100, 101, 102, 103)


SMOKE = Config(
    recipe=Recipe(views=VIEWS[:2], own=0, base_steps=10, steps=5), many=4, steps=10, batch_size=4,
    coefficient_rates=(1.0, 3.0), weight_rates=(1e-3, 3e-3), seeds=(0, 1), tuning_seeds=(100,))


def random_like(key: jax.Array, delta: Params) -> Params:
  """Gaussian directions with the norm that the task vector has in each block."""
  leaves, tree = jax.tree.flatten(delta)

  def draw(key: jax.Array, x: jax.Array) -> jax.Array:
    noise = jax.random.normal(key, x.shape)
    return noise * (jnp.linalg.norm(x.ravel()) / jnp.linalg.norm(noise.ravel()))

  keys = jax.random.split(key, len(leaves))
  return tree.unflatten([draw(k, x) for k, x in zip(keys, leaves, strict=True)])


def transform_of(arm: str, bank: list[Params]) -> ParamTransform:
  """What an arm trains, as an update of the bank's mean: all coefficients start at 0."""
  if arm == "full":
    return full()
  return linear_combination(bank, granularity="model" if arm == "isotropic" else "leaf")


class World:
  """Bases with their banks, labelled images of the target, and training."""

  def __init__(self, config: Config):
    self.config, self.experts = config, Experts(config.recipe)
    self.made = cache(self._make)
    self._train = {arm: jax.jit(partial(self._fit, arm)) for arm in ("isotropic", "aTLAS", "full")}
    self._random = jax.jit(lambda key, bank: [
        random_like(k, d) for k, d in zip(jax.random.split(key, len(bank)), bank, strict=True)])

  def _make(self, seed: int) -> tuple[Params, list[Params]]:
    """The mean of the bank's experts, and the bank."""
    base, tuned = self.experts(seed)
    return merging.average(tuned), [task_vector(base, t) for t in tuned]

  def _fit(self, arm: str, key: jax.Array, start: Params, bank: list[Params], images: Images, rate: Any) -> Params:
    transform = transform_of(arm, bank)
    options = {"steps": self.config.steps, "batch_size": self.config.batch_size}
    return materialize(transform.join(*fit(key, start, images, rate=rate, transform=transform, **options)))

  def train(self, arm: str, shots: int, rate: float, seed: int, split: str) -> dict[str, np.ndarray]:
    """An arm on labelled images of the target."""
    start, bank = self.made(seed)
    of_images, of_bank, of_fit = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1000), 3)
    images = seen(few_shot(of_images, self.experts.of_experts, shots), self.config.target)
    trees = self._random(of_bank, bank) if arm == "random bases" else bank
    program = self._train["aTLAS" if arm == "random bases" else arm]
    return self.scores(program(of_fit, start, trees, images, rate), split)

  def untuned(self, which: str, rate: None, seed: int, split: str) -> dict[str, np.ndarray]:
    """The base, or the bank's mean."""
    return self.scores(self.experts(seed)[0] if which == "base" else self.made(seed)[0], split)

  def scores(self, params: Params, split: str) -> dict[str, np.ndarray]:
    """On the target, and on what the base and the bank read."""
    before = (*self.config.recipe.seen, *self.config.recipe.views)
    return {"target": self.experts.right(params, split, self.config.target)[0],
            "before": self.experts.right(params, split, *before).ravel()}

  def trained(self, arm: str) -> dict[str, float]:
    """How many numbers train."""
    start, bank = self.made(self.config.tuning_seeds[0])
    return {"trained numbers": count(transform_of(arm, bank).split(jax.random.key(0), start)[1])}


MANY = "many labels"


def arms(config: Config) -> dict[str, Arm]:
  """Each way of training on few labels; the coefficients and all weights on many too."""
  world = World(config)
  rates = lambda arm: Grid(config.weight_rates if arm == "full" else config.coefficient_rates)
  tuned = lambda arm, shots: Arm(partial(world.train, arm, shots), rates(arm), partial(world.trained, arm))
  return {
      "base": Arm(partial(world.untuned, "base")), "mean of the bank": Arm(partial(world.untuned, "mean")),
      **{arm: tuned(arm, config.few) for arm in ("isotropic", "aTLAS", "random bases", "full")},
      **{f"{arm}, {MANY}": tuned(arm, config.many) for arm in ("isotropic", "aTLAS", "full")}}


STUDY = Study(
    slug="atlas", title="Knowledge Composition using Task Vectors with Learned Anisotropic Scaling", arxiv="2407.02880",
    question="few labels", use_when="fine-tunes of one base lie around and a new task has a handful of labels",
    setting="an MLP on digits, task vectors of five views, two labelled images of each digit in a sixth view",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("target", "accuracy on the new view"),
        Score("before", "accuracy on the views of base and bank")),
    choose_by="target", baseline="isotropic", method="aTLAS", start="mean of the bank", best="full", kept="before",
    premises=(
        Premise("the new view is not solved without labels",
                lambda s: s[f"full, {MANY}"].target - s["mean of the bank"].target, at_least=0.2),
        Premise("coefficients of the bank fitted on many labels beat its mean",
                lambda s: s[f"aTLAS, {MANY}"].target - s["mean of the bank"].target, at_least=0.05)),
    claims=(
        Claim("aTLAS reaches more than one coefficient per task vector", higher("target"), smallest=0.01),
        Claim("task vectors are better directions than random ones",
              higher("target", than="random bases"), smallest=0.01),
        Claim("on few labels aTLAS reaches more than training all weights",
              higher("target", than="full"), smallest=0.01)),
    plot=Bars("target"))
