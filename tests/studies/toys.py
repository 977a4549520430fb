"""A study of arithmetic: scores are drawn, so that what should be found is known, and a run takes microseconds."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxft.studies.study import Arm, Claim, Grid, Premise, Score, Study, equal, higher


@dataclasses.dataclass(frozen=True)
class Config:
  """Of a run: `effect` is what the method has above the baseline, `skew` draws from an exponential distribution."""

  seeds: tuple[int, ...] = tuple(range(10))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)
  items: int = 60
  effect: float = 0.0
  gain: float = 1.0
  skew: bool = False
  world: int = 0
  best_rate: float = 1e-3
  diverges_above: float = np.inf


GRID = (1e-4, 3e-4, 1e-3, 3e-3)


def arms(config: Config) -> dict[str, Arm]:
  """`start` has the items' own difficulty; `full` and `method` add a gain that falls off around the best rate."""
  noise = (lambda rng, *shape: rng.exponential(size=shape) - 1) if config.skew else (
      lambda rng, *shape: rng.normal(size=shape))
  difficulty = noise(np.random.default_rng([config.world, 7]), config.items)

  def trained(number: int, effect: float) -> Callable[[Any, int, str], dict[str, Any]]:
    def run(rate: float, seed: int, split: str) -> dict[str, Any]:
      rng = np.random.default_rng([config.world, number, seed, split == "test"])
      off = np.log10(rate / config.best_rate) ** 2
      scores = difficulty + config.gain + effect - off + 0.2 * noise(rng, 1) + 0.5 * noise(rng, config.items)
      return {"score": scores if rate <= config.diverges_above else np.full(config.items, np.nan)}

    return run

  start = lambda rate, seed, split: {"score": difficulty}
  return {
      "start": Arm(start), "full": Arm(trained(1, 0.0), Grid(GRID)),
      "method": Arm(trained(2, config.effect), Grid(GRID), cost=lambda: {"trained share": 0.5}),
  }


def study(**changes: Any) -> Study:
  """The study, with other fields where a test needs them."""
  fields: dict[str, Any] = dict(
      slug="toy", title="A study of arithmetic", arxiv="0000.00000", question="few labels", use_when="never",
      setting="numbers drawn", config=Config, smoke=Config(items=5), arms=arms,
      scores=(Score("score", "points over the items"),), choose_by="score", baseline="full", method="method",
      start="start", best="full",
      premises=(Premise("training helps", lambda s: s["full"].score - s["start"].score, at_least=0.1),),
      claims=(Claim("the method is better", higher("score"), smallest=0.0),))
  return Study(**fields | changes)


EQUAL = Claim("the method is as good", equal("score"), smallest=0.5)
