"""ComPEFT: how much of a fine-tune survives as signs of its largest entries and one magnitude, and in how many bits?

    jaxft run compeft            two minutes on one core
    jaxft run compeft --smoke    seconds

The updates of an MLP that reads 8x8 images of digits in two views, fine-tuned on four others, an expert each that sees
its own view alone (`tasks/view_experts.py`), 85,000 entries, are compressed and added back to the base; the score is
the share that is kept of an expert's gain over the base on its own view, the mean over the four. At a density, the same
entries are kept by all arms:

    ComPEFT            signs of the kept, times alpha times the standard deviation of all entries
    pruned, rescaled   the kept entries themselves, times alpha
    pruned             the kept entries themselves
    STC                signs of the kept, times their mean magnitude

"16 bits" is the update in bfloat16, times alpha. All alphas are chosen on validation images from one grid. Sizes are
those of the signs' Golomb code with the scale, of 16 bits for each entry that pruning keeps with its Golomb-coded
place, and of 16 bits for each entry. A seed draws base and experts.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.view_experts import Experts, Recipe
from jaxft.merging import Ternary, compression_report, ternarize
from jaxft.studies.study import Arm, Bars, Claim, Grid, Premise, Score, Study, higher, not_lower
from jaxft.tree import apply_task_vector, task_vector

DENSITIES = (0.05, 0.2)
COMPEFT, RESCALED, PRUNED, STC, WHOLE = "ComPEFT", "pruned, rescaled", "pruned", "STC", "16 bits"


@dataclasses.dataclass(frozen=True)
class Config:
  recipe: Recipe = Recipe(own=0)
  alphas: tuple[float, ...] = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
  seeds: tuple[int, ...] = tuple(range(16))
  tuning_seeds: tuple[int, ...] = (100, 101, 102, 103)


SMOKE = Config(
    recipe=Recipe(own=0, views=("mirrored", "inverted"), base_steps=20, steps=20), alphas=(1.0, 2.0), seeds=(0, 1),
    tuning_seeds=(100,))


class World:
  """The experts' updates, compressed."""

  def __init__(self, config: Config):
    self.config, self.experts = config, Experts(config.recipe)
    self.signs = cache(self._signs)

  def deltas(self, seed: int) -> list[Any]:
    base, tuned = self.experts(seed)
    return [task_vector(base, t) for t in tuned]

  def _signs(self, seed: int, density: float) -> list[Ternary]:
    return [ternarize(delta, density=density) for delta in self.deltas(seed)]

  def compressed(self, arm: str, density: float, seed: int) -> list[Any]:
    """The updates of a seed as an arm keeps them, before alpha."""
    deltas = self.deltas(seed)
    if arm == WHOLE:
      return [jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16), delta) for delta in deltas]
    if arm == STC:
      return [ternarize(delta, density=density, scale="lstsq").dense() for delta in deltas]
    ternary = self.signs(seed, density)
    if arm == COMPEFT:
      return [t.dense() for t in ternary]
    return [jax.tree.map(lambda d, s: np.where(s != 0, d, 0), delta, t.signs)
            for delta, t in zip(deltas, ternary, strict=True)]

  def run(
      self, arm: str, density: float, chosen: dict[str, float] | None, seed: int, split: str
  ) -> dict[str, np.ndarray]:
    """What is kept of the gain, and the accuracy."""
    base, _ = self.experts(seed)
    scale = 1.0 if chosen is None else chosen["alpha"]
    models = [apply_task_vector(base, delta, scale=scale) for delta in self.compressed(arm, density, seed)]
    return self.scores(self.experts.own(models, split), seed, split)

  def start(self, chosen: None, seed: int, split: str) -> dict[str, np.ndarray]:
    return self.scores(self.experts.right(self.experts(seed)[0], split), seed, split)

  def scores(self, right: np.ndarray, seed: int, split: str) -> dict[str, np.ndarray]:
    return {"kept": self.experts.share_of_gain(seed, split, right), "accuracy": right.ravel()}

  def size(self, arm: str, density: float) -> dict[str, float]:
    """Bits for each entry of the update, the mean over the experts of a seed."""
    if arm == WHOLE:
      return {"bits an entry": 16.0}
    reports = [compression_report(t) for t in self.signs(self.config.tuning_seeds[0], density)]
    # A sign takes a bit of the code; in its place stands an entry of 16.
    more = 15 * density if arm in (RESCALED, PRUNED) else 0.0
    return {"bits an entry": float(np.mean([r["golomb_bits"] / r["size"] for r in reports])) + more}


def arms(config: Config) -> dict[str, Arm]:
  """Every way to keep an update at every density."""
  world, alphas = World(config), {"alpha": Grid(config.alphas)}
  made = {"base": Arm(world.start), WHOLE: Arm(partial(world.run, WHOLE, 1.0), alphas, partial(world.size, WHOLE, 1.0))}
  for density in DENSITIES:
    for arm in (COMPEFT, RESCALED, PRUNED, STC):
      grid = alphas if arm in (COMPEFT, RESCALED) else ()
      made[f"{arm}, {density:.0%}"] = Arm(partial(world.run, arm, density), grid, partial(world.size, arm, density))
  return made


STUDY = Study(
    slug="compeft", arxiv="2311.13171",
    title="ComPEFT: Compression for Communicating Parameter Efficient Updates via Sparsification and Quantization",
    question="compress", use_when="many fine-tunes of one base are to be sent or kept",
    setting="an MLP that reads digits in two views, fine-tuned on each of four others: 85,000 entries an update",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("kept", "share of an expert's gain over the base on its own view, mean of four"),
        Score("accuracy", "accuracy on the own view, mean of four")),
    choose_by="kept", baseline=WHOLE, method="ComPEFT, 20%", start="base", best=WHOLE,
    premises=(
        Premise("a fine-tune gains on its view", lambda s: s[WHOLE].accuracy - s["base"].accuracy, at_least=0.2),
        Premise("keeping a twentieth of the entries loses a part of it", lambda s: 1 - s["pruned, 5%"].kept,
                at_least=0.1)),
    claims=(
        Claim("signs of a fifth of the entries keep what 16 bits of all keep", not_lower("kept"), smallest=0.02),
        Claim("at a fifth they keep more than the entries themselves, rescaled",
              higher("kept", than="pruned, rescaled, 20%"), smallest=0.01),
        Claim("at a twentieth they keep more than the entries themselves, rescaled",
              higher("kept", "ComPEFT, 5%", "pruned, rescaled, 5%"), smallest=0.01),
        Claim("at a fifth a tuned alpha keeps more than STC's mean magnitude",
              higher("kept", than="STC, 20%"), smallest=0.01)),
    plot=Bars("kept"))
