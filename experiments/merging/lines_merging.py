"""LiNeS on merged models: does scaling a merged update with depth cut the interference of the tasks?

    jaxft run lines-merging            two minutes on one core
    jaxft run lines-merging --smoke    seconds

Six residual layers that read 8x8 digits are tuned on four tasks of other views and labels, each with a head of its own
(`tasks/labelings.py`); they are narrow, as those of `lines.py` have room for all four: there the average keeps 88% of
the gain, here two thirds. The four updates are merged, by their sum (task arithmetic) and by TIES. Each merged update
is scaled in three ways: by one factor for all layers, as those methods do it; by LiNeS, whose first factor is the
source's heuristic and whose slope is searched, or both of them; and by the reversed schedule, which shrinks the last
layers as LiNeS shrinks the first. All numbers are chosen on validation images by the share that the merged model keeps
of the experts' gains over the base, the mean over the tasks. `lines.py` has the setting of one task.
"""

import dataclasses
from functools import cache, partial

import numpy as np

from experiments.tasks.labelings import TASKS, Params, Recipe, Trunks
from jaxft.merging import average, depth_schedule, lines, lines_alpha, scale_by_depth, task_arithmetic, ties
from jaxft.studies.study import Arm, Bars, Claim, Grid, Premise, Score, Study, higher
from jaxft.tree import apply_task_vector, num_layers, task_vector


@dataclasses.dataclass(frozen=True)
class Config:
  recipe: Recipe = Recipe(dim=32, rate=6e-3)
  density: float = 0.2  # of TIES
  factors: tuple[float, ...] = (0.1, 0.2, 0.25, 0.3, 0.35, 0.45, 0.7, 1.0)
  seeds: tuple[int, ...] = tuple(range(16))
  tuning_seeds: tuple[int, ...] = tuple(range(100, 108))


SMOKE = Config(
    recipe=Recipe(layers=2, dim=16, base_steps=30, steps=20), factors=(0.3, 0.7), seeds=(0, 1), tuning_seeds=(100,))


def scaled(schedule: str, update: Params, alpha: float, chosen: dict[str, float]) -> Params:
  """A merged update after a schedule, of which `alpha` is the source's first factor."""
  if schedule == "LiNeS":
    return lines(update, alpha=alpha, beta=chosen["slope"])
  if schedule == "LiNeS, both searched":
    return lines(update, alpha=chosen["first"], beta=chosen["slope"])
  first, last = (alpha + chosen["slope"], alpha) if schedule == "reversed" else (chosen["factor"],) * 2
  return scale_by_depth(update, depth_schedule(num_layers(update), first=first, last=last), outside=last)


class World:
  """Bases, experts and merged updates."""

  def __init__(self, config: Config):
    self.config, self.trunks = config, Trunks(config.recipe)
    self.update = cache(self._update)

  def experts(self, seed: int) -> list[Params]:
    return [self.trunks.tuned(seed, task) for task in TASKS]

  def _update(self, seed: int, merge: str) -> tuple[Params, float]:
    """A merged update, and the source's first factor for it."""
    base, tuned = self.trunks.base(seed), self.experts(seed)
    summed = task_vector(base, task_arithmetic(tuned, base))
    update = summed if merge == "task arithmetic" else task_vector(base, ties(tuned, base, density=self.config.density))
    update = {"layers": update["layers"]}  # nothing else was trained
    return update, float(lines_alpha({"layers": summed["layers"]}, update, num_models=len(tuned)))

  def merged(self, merge: str, schedule: str, chosen: dict[str, float], seed: int, split: str) -> dict[str, np.ndarray]:
    """A merged update, scaled."""
    update, alpha = self.update(seed, merge)
    base = self.trunks.base(seed)
    layers = apply_task_vector({"layers": base["layers"]}, scaled(schedule, update, alpha, chosen))
    return self.scores([base | layers] * len(TASKS), seed, split)

  def fixed(self, which: str, chosen: None, seed: int, split: str) -> dict[str, np.ndarray]:
    """The base, the experts each on its own task, or their average."""
    tuned = self.experts(seed)
    models = {"base": [self.trunks.base(seed)] * len(tuned), "experts": tuned, "average": [average(tuned)] * len(tuned)}
    return self.scores(models[which], seed, split)

  def scores(self, models: list[Params], seed: int, split: str) -> dict[str, np.ndarray]:
    """An item each image and task; of the old views, of the first model."""
    right = lambda models: np.stack([
        self.trunks.right(seed, model, split, task) for model, task in zip(models, TASKS, strict=True)])
    start, own, got = (right(m) for m in ([self.trunks.base(seed)] * len(TASKS), self.experts(seed), models))
    gain = (own - start).mean(axis=1, keepdims=True)
    return {"kept": ((got - start) / gain).ravel(), "gain": (got - start).ravel(),
            "control": self.trunks.right_before(models[0], split).ravel()}


def arms(config: Config) -> dict[str, Arm]:
  """Both merges by every schedule."""
  world, grid, slopes = World(config), Grid(config.factors), Grid((0.0, *config.factors))
  numbers = {"even": {"factor": grid}, "LiNeS": {"slope": slopes}, "reversed": {"slope": slopes},
             "LiNeS, both searched": {"first": grid, "slope": slopes}}
  return {which: Arm(partial(world.fixed, which)) for which in ("base", "experts", "average")} | {
      f"{merge}, {schedule}": Arm(partial(world.merged, merge, schedule), rates)
      for merge in ("task arithmetic", "TIES") for schedule, rates in numbers.items()}


STUDY = Study(
    slug="lines-merging", title="LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging",
    arxiv="2410.17146", question="merge", use_when="experts with heads of their own interfere in a shared trunk",
    setting="six residual layers that read digits in three views, four experts for other views and labels",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("kept", "share of the experts' gain over the base, mean of four tasks"),
        Score("gain", "the gain in accuracy"),
        Score("control", "accuracy of digits in the old views")),
    choose_by="kept", baseline="task arithmetic, even", method="task arithmetic, LiNeS", start="base", best="experts",
    kept="control",
    premises=(
        Premise("an expert gains on its own task", lambda s: s["experts"].gain, at_least=0.2),
        Premise("the average loses a part of the gain", lambda s: 1 - s["average"].kept, at_least=0.2),
        Premise("the average keeps a part of the gain", lambda s: s["average"].kept, at_least=0.2)),
    claims=(
        Claim("LiNeS keeps more than one factor, of the sum", higher("kept"), smallest=0.02),
        Claim("and of TIES", higher("kept", "TIES, LiNeS", "TIES, even"), smallest=0.02),
        Claim("LiNeS keeps more than the reversed schedule",
              higher("kept", than="task arithmetic, reversed"), smallest=0.02)),
    plot=Bars("kept"))
