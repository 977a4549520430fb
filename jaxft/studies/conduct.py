"""Conducting a study: premises first, then every choice on validation data, and test data once, at the end."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxft.seal import sealed
from jaxft.studies.findings import Findings, FoundArm, FoundPremise
from jaxft.studies.ledger import Ledger
from jaxft.studies.scored import Scored, check_smooth, per_item, smoothness
from jaxft.studies.study import Arm, Premise, Score, Study
from jaxft.studies.tuning import Chosen, Setting, Tuning, as_argument, number_names
from jaxft.studies.verdict import check_claims
from jaxft.together import from_first, is_first, share

FEWEST_SEEDS, FEWEST_TUNING_SEEDS, FEWEST_SETTINGS = 5, 3, 4  # of a study that is to say something


def conduct(study: Study, config: Any, ledger: Ledger | None = None, *, smoke: bool = False) -> Findings:
  """Runs a study to its end, or to its premises where one of them fails.

  Args:
    study: what to run.
    config: an instance of `study.config`.
    ledger: keeps finished runs, so that a killed study goes on; None keeps nothing.
    smoke: try all of the path: run the arms though a premise fails, on as few seeds and rates as there are. The verdict
      is computed as always.

  Raises:
    SealedSplitError: the study opens test data before every choice is made.
    ValueError: the seeds overlap or are too few; the arms lack the baseline or the method, or choose from too few
      rates; a claim or premise reads what is not there; a premise or a cost is not finite; a run returns what its
      scores do not take; a statistic jumps; or a test run is not finite.
  """
  seeds, tuning_seeds = _seeds(config, "seeds"), _seeds(config, "tuning_seeds")
  if not seeds or not tuning_seeds or len({*seeds, *tuning_seeds}) != len(seeds) + len(tuning_seeds):
    raise ValueError(
        f"seeds and tuning_seeds must be different numbers, at least one each; got {seeds} and {tuning_seeds}")
  if not smoke and (len(seeds) < FEWEST_SEEDS or len(tuning_seeds) < FEWEST_TUNING_SEEDS):
    raise ValueError(
        f"seeds must be at least {FEWEST_SEEDS} and tuning_seeds at least {FEWEST_TUNING_SEEDS}, since an interval of "
        f"fewer is too narrow; got {len(seeds)} and {len(tuning_seeds)}; a smoke run takes any")
  with tqdm(desc=study.slug, unit=" runs", disable=not is_first()) as bar:
    with sealed("test"):
      arms = _arms(study, config)
      check_claims(study, arms)
      runs = _Runs(study, arms, ledger, bar)
      chooser = study.score(study.choose_by)
      sign = 1.0 if chooser.higher_is_better else -1.0
      tuning = Tuning(
          arms, lambda arm, setting, seed: sign * runs.mean(arm, setting, seed, chooser.name), tuning_seeds,
          prepare=lambda asked: runs.prepare([(*run, "validation") for run in asked]))
      few = [arm for arm in arms if number_names(arms[arm]) and tuning.settings(arm) < FEWEST_SETTINGS]
      if few and not smoke:
        raise ValueError(f"rates must be at least {FEWEST_SETTINGS} to choose from; {few[0]} has "
                         f"{tuning.settings(few[0])}; a smoke run takes any")

      def tuned(arm: str) -> Mapping[str, float]:
        setting = tuning.choose(arm).setting
        mean = lambda score: float(np.mean([runs.mean(arm, setting, seed, score) for seed in tuning_seeds]))
        return {score.name: mean(score.name) for score in study.scores}

      def measured() -> tuple[FoundPremise, ...]:
        return tuple(FoundPremise(premise.text, _measure(premise, Scored(arms, tuned)), premise.at_least)
                     for premise in study.premises)

      premises, costs, chosen = measured(), {}, None
      if from_first(smoke or all(premise.holds for premise in premises))[0]:
        costs = {name: _cost(name, arm) for name, arm in arms.items()}
        chosen = tuning.choose_all()
        if not smoke:
          runs.check_statistics(chosen, tuning_seeds, "validation")
        premises = measured()  # again: a grid that arms share may have grown since, and one of them chosen otherwise
      if chosen is None or not from_first(smoke or all(premise.holds for premise in premises))[0]:
        return Findings.of(study, config, premises=premises, arms={}, seconds=runs.seconds)
    # From here on nothing is chosen any more.
    runs.prepare([(name, chosen[name].setting, seed, "test") for name in arms for seed in seeds])
    found = {name: _found(study, arm, chosen[name], costs[name], runs, name, seeds, sign) for name, arm in arms.items()}
    _check_items(study, found)
    if not smoke:
      runs.check_statistics(chosen, seeds, "test")
  return Findings.of(study, config, premises=premises, arms=found, seconds=runs.seconds)


def _seeds(config: Any, field: str) -> tuple[int, ...]:
  given = getattr(config, field, None)
  if not isinstance(given, tuple | list) or not all(isinstance(s, int) and not isinstance(s, bool) for s in given):
    raise ValueError(f"{field} must be a tuple of whole numbers; got {given!r}")
  return tuple(given)


def _arms(study: Study, config: Any) -> dict[str, Arm]:
  arms = study.arms(config)
  if not isinstance(arms, Mapping) or not all(isinstance(arm, Arm) and callable(arm.run) for arm in arms.values()):
    raise ValueError(f"arms must give an Arm for each name; got {arms!r:.100}")
  missing = {study.baseline, study.method, *filter(None, (study.start, study.best))} - set(arms)
  if missing:
    raise ValueError(f"arms must have the study's own {sorted(missing)}; got {list(arms)}")
  return dict(arms)


def _measure(premise: Premise, view: Scored) -> float:
  try:
    measured = float(premise.measure(view))
  except (KeyError, AttributeError, TypeError) as e:
    raise ValueError(f"the premise {premise.text!r} must measure one number of the study's scores: {e}") from None
  if not math.isfinite(measured):
    raise ValueError(f"the premise {premise.text!r} must measure a finite number; got {measured}")
  return measured


def _cost(name: str, arm: Arm) -> dict[str, float]:
  found = {} if arm.cost is None else arm.cost()
  try:
    cost = {str(what): float(number) for what, number in found.items()}
  except (AttributeError, TypeError, ValueError):
    raise ValueError(f"the cost of {name} must be numbers by name; got {found!r:.100}") from None
  if bad := [what for what, number in cost.items() if not math.isfinite(number)]:
    raise ValueError(f"the cost of {name} must be finite; got {bad[0]} = {cost[bad[0]]}")
  return cost


Asked = tuple[str, Setting, int, str]  # arm, setting, seed, split


class _Unmade(Exception):
  """The ledger does not hold a run."""


class _Runs:
  """Every run of a study once: the scores of an arm at a setting, for a seed, on a split.

  Of several processes each makes its share of the runs, on its own devices, and the first keeps them all.
  """

  def __init__(self, study: Study, arms: Mapping[str, Arm], ledger: Ledger | None, bar: tqdm):
    self._study, self._arms, self._bar = study, arms, bar
    self._kept: dict[str, dict[str, np.ndarray]] = {}
    self._ledger = ledger if ledger is not None and is_first() else (lambda name, compute: compute())
    self._made: dict[str, Any] = {}
    self._smoothness: dict[str, dict[str, float]] = {}
    self.seconds = 0.0

  def __call__(self, arm: str, setting: Setting, seed: int, split: str) -> dict[str, np.ndarray]:
    name = self._name(arm, setting, seed, split)
    if name not in self._kept:
      self._bar.set_postfix_str(name, refresh=False)
      self.prepare([(arm, setting, seed, split)])
      run = self._made.pop(name, None) or self._ledger(name, lambda: self._run(arm, setting, seed, split))
      self.seconds += run["seconds"]
      self._smoothness[name] = run["smoothness"]
      self._kept[name] = {score: np.asarray(items, np.float64) for score, items in run["scores"].items()}
      self._bar.update()
    return self._kept[name]

  def prepare(self, asked: Sequence[Asked]) -> None:
    """Makes runs that will be asked for, each by one of the processes; with one process they wait until asked for."""
    if jax.process_count() == 1:
      return
    names = {self._name(*run): run for run in asked}
    names = {name: run for name, run in names.items() if name not in self._kept and name not in self._made}
    self._made |= share({name: found for name in names if is_first() and (found := self._known(name)) is not None})
    left = [name for name in names if name not in self._made]
    own = left[jax.process_index()::jax.process_count()]
    made = share({name: self._run(*names[name]) for name in own})
    self._made |= {name: self._ledger(name, lambda name=name: made[name]) for name in left}

  def _known(self, name: str) -> Any:
    def unmade() -> Any:
      raise _Unmade

    try:
      return self._ledger(name, unmade)
    except _Unmade:
      return None

  def mean(self, arm: str, setting: Setting, seed: int, score: str) -> float:
    """A score on validation data."""
    return float(self(arm, setting, seed, "validation")[score].mean())

  def check_statistics(self, chosen: Mapping[str, Chosen], seeds: tuple[int, ...], split: str) -> None:
    """ValueError where a score is a statistic that jumps: its influences would say too little or too much."""
    names = [self._name(arm, chosen[arm].setting, seed, split) for arm in self._arms for seed in seeds]
    for score in self._study.scores:
      check_smooth(score, [run[score.name] for run in map(self._smoothness.get, names) if run and score.name in run])

  @staticmethod
  def _name(arm: str, setting: Setting, seed: int, split: str) -> str:
    return f"{arm}, {' '.join(map(repr, setting))}, seed {seed}, {split}"

  def _run(self, arm: str, setting: Setting, seed: int, split: str) -> dict[str, Any]:
    start = time.perf_counter()
    returned = self._arms[arm].run(as_argument(self._arms[arm], setting), seed, split)
    wanted = [score.name for score in self._study.scores]
    if not isinstance(returned, Mapping):
      raise ValueError(f"{arm} must return the scores {wanted}, the items of each by its name; got {returned!r:.60}")
    if sorted(returned) != sorted(wanted):
      raise ValueError(f"{arm} must return the scores {wanted}; got {list(returned)}")
    scores = {
        score.name: self._items(arm, returned[score.name], score, split != "test") for score in self._study.scores}
    smooth = {score.name: smoothness(returned[score.name], score) for score in self._study.scores}
    return {"seconds": time.perf_counter() - start, "scores": scores,
            "smoothness": {name: found for name, found in smooth.items() if found is not None}}

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
    study: Study, arm: Arm, chosen: Chosen, cost: dict[str, float], runs: _Runs, name: str, seeds: tuple[int, ...],
    sign: float,
) -> FoundArm:
  tests = [runs(name, chosen.setting, seed, "test") for seed in seeds]
  scores = {}
  for score in study.scores:
    rows = [test[score.name] for test in tests]
    if len({len(row) for row in rows}) > 1:
      raise ValueError(
          f"{name} scores {score.name} on {sorted({len(row) for row in rows})} items; seeds that draw their own items "
          "need shared_items=False")
    scores[score.name] = np.stack(rows)
    if not np.isfinite(scores[score.name]).all():
      bad = [seed for seed, row in zip(seeds, rows, strict=True) if not np.isfinite(row).all()]
      raise ValueError(f"{name} gives a {score.name} that is not finite on test data, at the seeds {bad}")
  names = number_names(arm)
  curve = tuple(
      {"setting": dict(zip(names, setting, strict=True)),
       "scores": [sign * value if math.isfinite(value) else None for value in values]}
      for setting, values in chosen.curve.items()) if names else ()
  return FoundArm(dict(zip(names, chosen.setting, strict=True)), curve, chosen.at_edge, cost, scores)
