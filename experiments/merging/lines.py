"""LiNeS: does scaling an update with depth keep the target and give back the old skill better than scaling it evenly?

    jaxft run lines            three minutes on one core
    jaxft run lines --smoke    seconds

A network of six residual layers that reads 8x8 digits in three views is tuned to tell parity and half of upright ones
by a head of its own (`tasks/labelings.py`). The update of its layers is then scaled by three schedules: evenly by c, by
LiNeS from c in the first layer to 1 in the last, and in reverse from 1 to c. For each, c is chosen on validation images
by the source's trade-off with the weight 2 for the target,

    2 * target / target_tuned + control / control_base,

where the control is the reading of digits in the old views. Two arms set the update of one half of the layers to 0, by
which the premise is measured. A seed draws base, head and batches.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.tasks.labelings import Params, Recipe, Trunks
from jaxft.merging import depth_schedule, lines, scale_by_depth
from jaxft.studies.study import Arm, Claim, Front, Grid, Premise, Score, Study, higher
from jaxft.tree import apply_task_vector, task_vector


@dataclasses.dataclass(frozen=True)
class Config:
  recipe: Recipe = Recipe()
  task: str = "parity and half"
  coefficients: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
  target_weight: float = 2.0
  seeds: tuple[int, ...] = tuple(range(20))
  tuning_seeds: tuple[int, ...] = (100, 101, 102, 103, 104, 105)


SMOKE = Config(
    recipe=Recipe(layers=2, dim=16, base_steps=30, steps=20), coefficients=(0.0, 0.5), target_weight=0.1,
    seeds=(0, 1), tuning_seeds=(100,))


def half(delta: Params, first: float, second: float) -> Params:
  """The update with one factor for the first half of the layers and one for the second."""
  depth = len(jax.tree.leaves(delta["layers"])[0])
  return scale_by_depth(delta, np.repeat([first, second], [depth // 2, depth - depth // 2]), outside=1.0)


# (delta, c) -> the scaled update; everything outside the layers has none.
SCHEDULES = {
    "even": lambda delta, c: scale_by_depth(
        delta, depth_schedule(len(jax.tree.leaves(delta["layers"])[0]), first=c, last=c), outside=c),
    "LiNeS": lambda delta, c: lines(delta, alpha=c, beta=1.0 - c),
    "reversed": lambda delta, c: lines(delta, alpha=1.0, beta=c - 1.0),
}
FIXED = {
    "base": lambda delta, c: half(delta, 0.0, 0.0), "tuned": lambda delta, c: delta,
    "first half of the layers reset": lambda delta, c: half(delta, 0.0, 1.0),
    "second half of the layers reset": lambda delta, c: half(delta, 1.0, 0.0),
}


class World:
  """A base, its tuning, and what a scaled update keeps of both."""

  def __init__(self, config: Config):
    self.config, self.trunks = config, Trunks(config.recipe)

  def run(self, schedule: Any, c: Any, seed: int, split: str) -> dict[str, np.ndarray]:
    """The scores of a seed's update after a schedule."""
    task, trunks = self.config.task, self.trunks
    base, tuned = trunks.base(seed), trunks.tuned(seed, task)
    params = apply_task_vector(base, schedule(task_vector(base, tuned), c and c["c"]))
    target, before = trunks.right(seed, params, split, task), trunks.right_before(params, split)
    whole = trunks.right(seed, tuned, split, task).mean(), trunks.right_before(base, split).mean()
    trade_off = self.config.target_weight * target / whole[0] + before.mean(axis=0) / whole[1]
    return {"trade_off": trade_off, "target": target, "control": before.mean(axis=0)}


def arms(config: Config) -> dict[str, Arm]:
  """Schedules with a coefficient, and what has none."""
  world, grid = World(config), {"c": Grid(config.coefficients, high=1.0)}
  return {name: Arm(partial(world.run, schedule)) for name, schedule in FIXED.items()} | {
      name: Arm(partial(world.run, schedule), grid) for name, schedule in SCHEDULES.items()}


FIRST, SECOND = "first half of the layers reset", "second half of the layers reset"
STUDY = Study(
    slug="lines", title="LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging",
    arxiv="2410.17146", question="keep old skills",
    use_when="a tuning has forgotten something, and its first layers are to blame more than they are of use",
    setting="six residual layers that read digits in three views, tuned to tell parity and half by a head of their own",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("trade_off", "2 target + control, each over what tuned and base have; 3 is both kept whole"),
        Score("target", "accuracy of parity and half"),
        Score("control", "accuracy of digits in the old views")),
    choose_by="trade_off", baseline="even", method="LiNeS", start="base", best="tuned", gain="target",
    kept="control",
    premises=(
        Premise("tuning forgets", lambda s: s["base"].control - s["tuned"].control, at_least=0.1),
        Premise("resetting the first half gives more back than resetting the second",
                lambda s: s[FIRST].control - s[SECOND].control, at_least=0.05),
        Premise("and leaves most of the target",
                lambda s: (s[FIRST].target - s["base"].target) / (s["tuned"].target - s["base"].target), at_least=0.8)),
    claims=(
        Claim("LiNeS has a better trade-off than one factor", higher("trade_off"), smallest=0.01),
        Claim("and than the reversed schedule", higher("trade_off", than="reversed"), smallest=0.01),
        Claim("LiNeS has a better trade-off than no scaling", higher("trade_off", than="tuned"), smallest=0.01)),
    plot=Front("control", "target"))
