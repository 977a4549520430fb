"""Conducting a study: premises first, then every choice on validation data, and test data once, at the end."""

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxft.seal import sealed
from jaxft.studies.findings import Findings, FoundArm, FoundPremise
from jaxft.studies.ledger import Ledger
from jaxft.studies.scored import Scored, per_item
from jaxft.studies.study import Arm, Score, Study
from jaxft.studies.tuning import Chosen, Setting, Tuning, as_argument, number_names


def conduct(study: Study, config: Any, ledger: Ledger | None = None, *, whole: bool = False) -> Findings:
  """Runs a study to its end, or to its premises where one of them fails.

  Args:
    study: what to run.
    config: an instance of `study.config`.
    ledger: keeps finished runs, so that a killed study goes on; None keeps nothing.
    whole: run the arms though a premise fails, as a smoke run does to try all of the path; the verdict is the same.

  Raises:
    SealedSplitError: the study opens test data before every choice is made.
    ValueError: the seeds overlap; the arms lack the baseline or the method; a run returns what its scores do not take,
      or a test run is not finite.
  """
  seeds, tuning_seeds = tuple(config.seeds), tuple(config.tuning_seeds)
  if not seeds or not tuning_seeds or len({*seeds, *tuning_seeds}) != len(seeds) + len(tuning_seeds):
    raise ValueError(
        f"seeds and tuning_seeds must be different numbers, at least one each; got {seeds} and {tuning_seeds}")
  with tqdm(desc=study.slug, unit=" runs") as bar:
    with sealed("test"):
      arms = study.arms(config)
      missing = {study.baseline, study.method, *filter(None, (study.start, study.best))} - set(arms)
      if missing:
        raise ValueError(f"arms must have the study's own {sorted(missing)}; got {list(arms)}")
      runs = _Runs(study, arms, ledger, bar)
      chooser = study.score(study.choose_by)
      sign = 1.0 if chooser.higher_is_better else -1.0
      tuning = Tuning(arms, lambda arm, setting, seed: sign * runs.mean(arm, setting, seed, chooser.name), tuning_seeds)

      def tuned(arm: str) -> Mapping[str, float]:
        setting = tuning.choose(arm).setting
        mean = lambda score: float(np.mean([runs.mean(arm, setting, seed, score) for seed in tuning_seeds]))
        return {score.name: mean(score.name) for score in study.scores}

      def measured() -> tuple[FoundPremise, ...]:
        return tuple(
            FoundPremise(premise.text, float(premise.measure(Scored(arms, tuned))), premise.at_least)
            for premise in study.premises)

      premises, chosen = measured(), None
      if whole or all(premise.holds for premise in premises):
        chosen = tuning.choose_all()
        premises = measured()  # again: a grid that arms share may have grown since, and one of them chosen otherwise
      if chosen is None or not (whole or all(premise.holds for premise in premises)):
        return Findings.of(study, config, premises=premises, arms={}, seconds=runs.seconds)
    # From here on nothing is chosen any more.
    found = {name: _found(study, arm, chosen[name], runs, name, seeds, sign) for name, arm in arms.items()}
    _check_items(study, found)
  return Findings.of(study, config, premises=premises, arms=found, seconds=runs.seconds)


class _Runs:
  """Every run of a study once: the scores of an arm at a setting, for a seed, on a split."""

  def __init__(self, study: Study, arms: Mapping[str, Arm], ledger: Ledger | None, bar: tqdm):
    self._study, self._arms, self._bar = study, arms, bar
    self._kept: dict[str, dict[str, np.ndarray]] = {}
    self._ledger = ledger or (lambda name, compute: compute())
    self.seconds = 0.0

  def __call__(self, arm: str, setting: Setting, seed: int, split: str) -> dict[str, np.ndarray]:
    name = f"{arm}, {' '.join(f'{v:.6g}' for v in setting)}, seed {seed}, {split}"
    if name not in self._kept:
      self._bar.set_postfix_str(name, refresh=False)
      run = self._ledger(name, lambda: self._run(arm, setting, seed, split))
      self.seconds += run["seconds"]
      self._kept[name] = {score: np.asarray(items, np.float64) for score, items in run["scores"].items()}
      self._bar.update()
    return self._kept[name]

  def mean(self, arm: str, setting: Setting, seed: int, score: str) -> float:
    """A score on validation data."""
    return float(self(arm, setting, seed, "validation")[score].mean())

  def _run(self, arm: str, setting: Setting, seed: int, split: str) -> dict[str, Any]:
    start = time.perf_counter()
    returned = dict(self._arms[arm].run(as_argument(self._arms[arm], setting), seed, split))
    wanted = [score.name for score in self._study.scores]
    if sorted(returned) != sorted(wanted):
      raise ValueError(f"{arm} must return the scores {wanted}; got {list(returned)}")
    scores = {
        score.name: self._items(arm, returned[score.name], score, split != "test") for score in self._study.scores}
    return {"seconds": time.perf_counter() - start, "scores": scores}

  def _items(self, arm: str, items: Any, score: Score, mean_alone: bool) -> list[float]:
    try:
      return per_item(items, score, mean_alone=mean_alone).tolist()
    except ValueError as e:
      raise ValueError(f"{arm} returned what its score does not take: {e}") from None


def _check_items(study: Study, found: Mapping[str, FoundArm]) -> None:
  """ValueError where arms score different numbers of items, which a difference would pair all with all."""
  for score in study.scores:
    items = {name: arm.scores[score.name].shape[1] for name, arm in found.items()}
    if len(set(items.values())) > 1:
      raise ValueError(f"arms must return {score.name} for the same items; got {items}")


def _found(
    study: Study, arm: Arm, chosen: Chosen, runs: _Runs, name: str, seeds: tuple[int, ...], sign: float
) -> FoundArm:
  tests = [runs(name, chosen.setting, seed, "test") for seed in seeds]
  scores = {}
  for score in study.scores:
    rows = [test[score.name] for test in tests]
    if len({len(row) for row in rows}) > 1:
      raise ValueError(
          f"{name} scores {score.name} on {sorted({len(row) for row in rows})} items; seeds that draw their own items "
          "need shared_items=False")
    scores[score.name] = np.stack(rows).astype(np.float32)
    if not np.isfinite(scores[score.name]).all():
      bad = [seed for seed, row in zip(seeds, rows, strict=True) if not np.isfinite(row).all()]
      raise ValueError(f"{name} gives a {score.name} that is not finite on test data, at the seeds {bad}")
  names = number_names(arm)
  curve = tuple(
      {"setting": dict(zip(names, setting, strict=True)),
       "scores": [sign * value if math.isfinite(value) else None for value in values]}
      for setting, values in chosen.curve.items()) if names else ()
  cost = {} if arm.cost is None else {what: float(number) for what, number in arm.cost().items()}
  return FoundArm(dict(zip(names, chosen.setting, strict=True)), curve, chosen.at_edge, cost, scores)
