"""Four experts merged by every method: does any of them keep more of what the experts learned than their sum does?

    jaxft run merging-baselines            three minutes on one core
    jaxft run merging-baselines --smoke    seconds

The experts of `tasks/view_experts.py`, each an MLP tuned on one view of 8x8 images and, half the time, on the others'
views, so that they interfere without having forgotten each other. A method merges the four of a seed; its scale, its
density or its shrinkage is chosen on validation images, as an update's scale is what all of them share. The score is
the share of the experts' gain over the base that the merged model keeps, the mean over the views.

A seed draws the base, the batches of all experts, and the entries that random methods drop.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import numpy as np

from experiments.tasks.digits_views import Params, logits, seen
from experiments.tasks.view_experts import Experts, Recipe
from jaxft import merging
from jaxft.studies.study import Arm, Bars, Claim, Grid, Premise, Score, Study, equal, higher


@dataclasses.dataclass(frozen=True)
class Config:
  recipe: Recipe = Recipe()
  scales: tuple[float, ...] = (0.1, 0.2, 0.3, 0.45, 0.7, 1.0, 1.5, 2.2)
  densities: tuple[float, ...] = (0.1, 0.2, 0.4, 0.7)
  dare_density: float = 0.2
  measured: int = 256  # images of an expert that RegMean and Fisher merging see of its data
  shrinkages: tuple[float, ...] = (0.1, 0.3, 0.6, 0.9, 1.0)
  seeds: tuple[int, ...] = tuple(range(16))
  tuning_seeds: tuple[int, ...] = (100, 101, 102, 103)


SMOKE = Config(
    recipe=Recipe(views=("mirrored", "inverted"), base_steps=30, steps=20), scales=(0.3, 1.0), densities=(0.5,),
    shrinkages=(0.9,), measured=8, seeds=(0, 1), tuning_seeds=(100,))

ROWS = -2  # kernels are [in, out]: what one output reads, torch's row, runs along the axis before the last


def input_grams(params: Params, pixels: jax.Array) -> dict[str, dict[str, Any]]:
  """Of each kernel, `X^T X / n` of its inputs; None for the biases."""
  grams, x = {}, pixels.reshape(-1, 64)
  for name in [n for n in params if n != "head"] + ["head"]:
    grams[name] = {"kernel": merging.gram(x), "bias": None}
    x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
  return grams


def log_probs(params: Params, pixels: jax.Array) -> jax.Array:
  """Of one image."""
  return jax.nn.log_softmax(logits(params, pixels[None])[0])


class World:
  """The experts, what they measure of their own data, and every way to merge them."""

  def __init__(self, config: Config):
    self.config, self.experts = config, Experts(config.recipe)
    self._grams = jax.jit(input_grams)
    self._fisher = jax.jit(lambda params, pixels: merging.diagonal_fisher(log_probs, params, pixels, chunk=8))
    self.grams, self.fishers = (cache(partial(self._of_own_data, f)) for f in (self._grams, self._fisher))

  def _of_own_data(self, measure: Any, seed: int) -> list[Any]:
    _, tuned = self.experts(seed)
    own = [seen(self.experts.of_experts, view).pixels[: self.config.measured] for view in self.experts.recipe.views]
    return [jax.device_get(measure(t, pixels)) for t, pixels in zip(tuned, own, strict=True)]

  def merge(self, method: str, setting: dict[str, float] | None, seed: int) -> Params:
    """The experts of a seed, merged."""
    base, tuned = self.experts(seed)
    key = jax.random.key(seed)
    match method:
      case "base": return base
      case "average": return merging.average(tuned)
      case "model stock": return merging.model_stock(tuned, base)
      case "Karcher mean": return merging.karcher_mean(tuned)
      case "task arithmetic": return merging.task_arithmetic(tuned, base, **setting)
      case "TIES": return merging.ties(tuned, base, **setting)
      case "DARE": return merging.dare(tuned, base, key=key, density=self.config.dare_density, **setting)
      case "DELLA": return merging.della(tuned, base, key=key, axis=ROWS, epsilon=0.05, **setting)
      case "breadcrumbs": return merging.breadcrumbs(tuned, base, axis=ROWS, **setting)
      case "SCE": return merging.sce(tuned, base, **setting)
      case "RegMean": return merging.regmean(tuned, self.grams(seed), **setting)
      case "Fisher": return merging.fisher_average(tuned, self.fishers(seed))
      case _: raise ValueError(f"no merge is called {method!r}")

  def run(self, method: str, setting: Any, seed: int, split: str) -> dict[str, np.ndarray]:
    """What a merge keeps, and what it still reads of the base's views."""
    merged = self.merge(method, setting, seed)
    return self._scores(self.experts.right(merged, split), self._on_base(merged, split), seed, split)

  def each(self, setting: None, seed: int, split: str) -> dict[str, np.ndarray]:
    """The experts, each on its own view, and on the base's in their mean."""
    _, tuned = self.experts(seed)
    on_base = np.mean([self._on_base(t, split) for t in tuned], axis=0)
    return self._scores(self.experts.own(tuned, split), on_base, seed, split)

  def _on_base(self, params: Params, split: str) -> np.ndarray:
    return self.experts.right(params, split, *self.experts.recipe.seen)

  def _scores(self, right: np.ndarray, on_base: np.ndarray, seed: int, split: str) -> dict[str, np.ndarray]:
    base, _ = self.experts(seed)
    return {"kept": self.experts.share_of_gain(seed, split, right),
            "gain": (right - self.experts.right(base, split)).ravel(), "base": on_base.ravel()}


def arms(config: Config) -> dict[str, Arm]:
  """Every merge, with what it has to choose."""
  world, scales = World(config), Grid(config.scales)
  density = {"density": Grid(config.densities, high=1.0)}
  densities = density | {"scale": scales}
  rates = {
      "base": (), "average": (), "model stock": (), "Karcher mean": (), "Fisher": (),
      "task arithmetic": {"scale": scales}, "TIES": densities,
      # At density 1 both are task arithmetic.
      "DARE": {"scale": scales}, "breadcrumbs": densities | {"density": Grid(config.densities, high=0.9)},
      # Its probabilities to keep an entry lie between `density - epsilon` and `density + epsilon`.
      "DELLA": densities | {"density": Grid(config.densities, low=0.06, high=0.94)},
      "SCE": density, "RegMean": {"alpha": Grid(config.shrinkages, high=1.0)}}
  return {"experts": Arm(world.each)} | {
      method: Arm(partial(world.run, method), grid) for method, grid in rates.items()}


STUDY = Study(
    slug="merging-baselines", title="TIES-Merging: Resolving Interference When Merging Models", arxiv="2306.01708",
    question="merge", use_when="experts of one base interfere: their average loses a good part of what they learned",
    setting="an MLP that reads digits in two views, four experts for another view each, half of their images shared",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("kept", "share of the experts' gain over the base, mean of four views"),
        Score("gain", "the gain in accuracy"),
        Score("base", "accuracy on the base's two views")),
    choose_by="kept", baseline="task arithmetic", method="TIES", start="base", best="experts", kept="base",
    premises=(
        Premise("an expert gains on its own view", lambda s: s["experts"].gain, at_least=0.2),
        Premise("the average loses a part of the gain", lambda s: 1 - s["average"].kept, at_least=0.2),
        Premise("the average keeps a part of the gain", lambda s: s["average"].kept, at_least=0.3)),
    claims=(
        Claim("TIES keeps more of the gain than task arithmetic", higher("kept"), smallest=0.02),
        Claim("DARE keeps with a fifth of the entries what task arithmetic does", equal("kept", "DARE"), smallest=0.05),
        Claim("RegMean keeps more than task arithmetic", higher("kept", "RegMean"), smallest=0.02),
        Claim("task arithmetic keeps more than the average",
              higher("kept", "task arithmetic", "average"), smallest=0.02)),
    plot=Bars("kept"))
