"""One arm of an experiment from its grid to its results: a rate by validation data, then every seed on test data."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxft.studies.ledger import Ledger
from jaxft.studies.tuner import choose_rate


class Sweep(NamedTuple):
  """What an arm found.

  Attributes:
    rate: the learning rate that validation chose.
    validation: the score of each rate, mean over the tuning seeds.
    runs: what was measured on test data, one for each seed.
  """

  rate: float
  validation: dict[str, float]
  runs: list[Any]


def sweep(
    ledger: Ledger, arm: str, rates: Sequence[float], measure: Callable[[float, int, str], Any], *,
    tuning_seeds: Sequence[int], seeds: Sequence[int], score: Callable[[Any], float] = float,
    higher_is_better: bool = True,
) -> Sweep:
  """Chooses a learning rate by the tuning seeds, then measures all other seeds at it; the ledger keeps every run.

  Args:
    ledger: of the experiment.
    arm: its name.
    rates: the grid.
    measure: `(rate, seed, split) -> ` what JSON holds; split is `"validation"` or `"test"`.
    tuning_seeds: their mean decides; more than one where a rate that suits one seed fails in another.
    seeds: of the results.
    score: what `measure` returns -> the number to compare.
    higher_is_better: direction of the score.
  """

  def tuned(rate: float) -> float:
    run = lambda seed: ledger(f"{arm}, tune {rate:g}, seed {seed}", lambda: measure(rate, seed, "validation"))
    return float(np.mean([score(run(seed)) for seed in tuning_seeds]))

  rate, validation = choose_rate(rates, tuned, higher_is_better=higher_is_better)
  test = lambda seed: ledger(f"{arm}, seed {seed}", lambda: measure(rate, seed, "test"))
  return Sweep(rate, validation, [test(seed) for seed in seeds])
