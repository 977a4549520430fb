"""Choosing the numbers of an arm on validation data, with grids that grow where the best lies at an end."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxft.studies.study import Arm, Grid

FACTOR = 3.0  # between the end of a grid and the value tried beyond it
MOST_EXTENSIONS = 3

T = TypeVar("T")
Setting = tuple[float, ...]  # one value for each number that is chosen


class Chosen(NamedTuple):
  """What validation chose for an arm.

  Attributes:
    setting: the values.
    curve: of each setting tried the score of each tuning seed; not finite where a run diverged.
    at_edge: names of the numbers whose best is still at an end of the grid.
  """

  setting: Setting
  curve: dict[Setting, list[float]]
  at_edge: tuple[str, ...]


class Tuning:
  """The grids of a study's arms, those that are equal shared.

  Args:
    arms: by name.
    evaluate: `(arm, setting, seed) -> score` on validation data; higher is better, not finite where the run diverged.
    seeds: the tuning seeds. A setting at which any of them diverges is rejected; of the others the best mean wins.
    prepare: called with the `(arm, setting, seed)` that will be evaluated next, so that they can be made together.
  """

  def __init__(
      self, arms: Mapping[str, Arm], evaluate: Callable[[str, Setting, int], float], seeds: Sequence[int],
      prepare: Callable[[Sequence[tuple[str, Setting, int]]], Any] = lambda asked: None):
    self._evaluate, self._seeds, self._prepare = evaluate, tuple(seeds), prepare
    grids = {name: _grids(name, arm) for name, arm in arms.items()}
    self._names = {name: number_names(arm) for name, arm in arms.items()}
    # Equal grids are one object: what one arm adds, all have.
    shared: dict[Any, _Growing] = {}
    self._grids = {name: shared.setdefault((self._names[name], grids[name]), _Growing(grids[name])) for name in arms}

  def settings(self, arm: str) -> int:
    """How many settings an arm is chosen from at the least."""
    return len(self._grids[arm].settings())

  def choose(self, arm: str) -> Chosen:
    """The best setting of an arm, its grid widened where that lies at an end and no other is as good.

    Raises:
      ValueError: every setting diverges.
    """
    grid = self._grids[arm]
    while True:
      self._prepare([(arm, setting, seed) for setting in grid.settings() for seed in self._seeds])
      curve = {setting: [self._evaluate(arm, setting, seed) for seed in self._seeds] for setting in grid.settings()}
      sound = {setting: float(np.mean(scores)) for setting, scores in curve.items() if np.isfinite(scores).all()}
      if not sound:
        raise ValueError(f"{arm} diverges at every setting tried: {', '.join(map(str, curve))}")
      # Of equal ones the lowest that lies at no end: where the next value inside is as good, nothing points beyond.
      edges_of = {setting: grid.edges(setting, rejected=set(curve) - set(sound)) for setting in ties(sound)}
      best, edges = min(edges_of.items(), key=lambda found: len(found[1]))
      if not edges or not grid.extend(edges):
        return Chosen(best, curve, tuple(self._names[arm][axis] for axis, _ in edges))

  def choose_all(self) -> dict[str, Chosen]:
    """All arms, again until no grid has grown under an arm that had chosen before."""
    while True:
      before = [len(list(grid.settings())) for grid in self._grids.values()]
      self._prepare([(arm, setting, seed) for arm, grid in self._grids.items() for setting in grid.settings()
                     for seed in self._seeds])
      chosen = {arm: self.choose(arm) for arm in self._grids}
      if before == [len(list(grid.settings())) for grid in self._grids.values()]:
        return chosen


def ties(means: Mapping[T, float]) -> list[T]:
  """The settings whose mean is the highest, but for the rounding of a sum."""
  top = max(means.values())
  return [setting for setting, mean in means.items() if math.isclose(mean, top, rel_tol=1e-9)]


class _Growing:
  """A grid for each number; all combinations are settings."""

  def __init__(self, grids: tuple[Grid, ...]):
    self.values = [sorted(grid.values) for grid in grids]
    self.limits = [(grid.low, grid.high) for grid in grids]
    self.extensions = 0

  def settings(self) -> list[Setting]:
    return list(itertools.product(*self.values))

  def edges(self, best: Setting, rejected: set[Setting]) -> list[tuple[int, int]]:
    """`(axis, -1 or 1)` of each end at which the best lies, unless the number ends there or what is beyond diverges."""
    found = []
    for axis, values in enumerate(self.values):
      for direction in (-1, 1):
        end = values[0] if direction < 0 else values[-1]
        limit = self.limits[axis][direction > 0]
        # Beyond an end that was rejected lies nothing to find: the last sound value is the end of what trains.
        inside = [v for v in values if not self._rejected(best, axis, v, rejected)]
        if len(values) > 1 and best[axis] == end and end in inside and end != limit:
          found.append((axis, direction))
    return found

  def _rejected(self, best: Setting, axis: int, value: float, rejected: set[Setting]) -> bool:
    return (*best[:axis], value, *best[axis + 1 :]) in rejected

  def extend(self, edges: list[tuple[int, int]]) -> bool:
    """Adds a value beyond each end; False where the grid has grown as often as it may."""
    if self.extensions == MOST_EXTENSIONS:
      return False
    self.extensions += 1
    for axis, direction in edges:
      low, high = self.limits[axis]
      if direction > 0:
        self.values[axis].append(min(_rounded(self.values[axis][-1] * FACTOR), high))
      else:
        self.values[axis].insert(0, max(_rounded(self.values[axis][0] / FACTOR), low))
    return True


def _rounded(value: float) -> float:
  return float(f"{value:.6g}")


def number_names(arm: Arm) -> tuple[str, ...]:
  """The names of the numbers that an arm chooses."""
  return tuple(arm.rates) if isinstance(arm.rates, Mapping) else ("rate",) if len(arm.rates) else ()


def as_argument(arm: Arm, setting: Setting) -> Any:
  """A setting as the arm's `run` takes it."""
  if isinstance(arm.rates, Mapping):
    return dict(zip(arm.rates, setting, strict=True))
  return setting[0] if setting else None


def _grids(name: str, arm: Arm) -> tuple[Grid, ...]:
  try:
    grids = list(arm.rates.values()) if isinstance(arm.rates, Mapping) else [arm.rates] if len(arm.rates) else []
    return tuple(_checked(grid if isinstance(grid, Grid) else Grid(tuple(grid))) for grid in grids)
  except TypeError:
    raise ValueError(f"{name} must have rates that are several numbers, a Grid, or a mapping of names to either; got "
                     f"{arm.rates!r}") from None


def _checked(grid: Grid) -> Grid:
  if isinstance(grid.values, str) or any(isinstance(v, str) for v in grid.values):
    raise TypeError
  values = tuple(float(v) for v in grid.values)
  if not values or len(set(values)) != len(values) or not all(math.isfinite(v) for v in values):
    raise ValueError(f"rates must be different finite numbers, at least one; got {grid.values}")
  if min(values) < 0:
    raise ValueError(f"rates must be >= 0, as a grid grows by a factor; got {grid.values}; in place of exponents give "
                     "the numbers themselves")
  if not (grid.low <= min(values) and max(values) <= grid.high):
    raise ValueError(f"rates must lie in [{grid.low}, {grid.high}]; got {grid.values}")
  return Grid(tuple(sorted(values)), grid.low, grid.high)
