"""What premises and contrasts read: `s["full"].op`, the scores of an arm by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxft.checks import nearest
from jaxft.evaluation import influences, jackknife_ratio
from jaxft.evaluation.crossed import FEWEST_TO_TELL
from jaxft.studies.study import Score

# How far `smoothness` may be from 1, as a factor, in three of five runs: in nearly all it is within a tenth where a
# statistic is smooth, and in half of them off by a quarter where it is a quantile.
MOST_OFF = 1.25


class Scored:
  """Arms by name; each is what `look` gives for it, with its scores as attributes. `asked` tells which were read."""

  def __init__(self, arms: Mapping[str, Any], look: Callable[[str], Mapping[str, Any]]):
    self._arms = tuple(arms)
    self._look = look
    self.asked: list[str] = []

  def __getitem__(self, arm: str) -> "ScoresOfArm":
    if arm not in self._arms:
      raise KeyError(f"the study has no arm {arm!r}; {nearest(arm, self._arms)}")
    if arm not in self.asked:
      self.asked.append(arm)
    return ScoresOfArm(arm, self._look(arm))


class ScoresOfArm(NamedTuple):
  """The scores of one arm as attributes."""

  arm: str
  scores: Mapping[str, Any]

  def __getattr__(self, name: str) -> Any:
    if name not in self.scores:
      raise AttributeError(f"{self.arm} has no score {name!r}; it has {', '.join(self.scores)}")
    return self.scores[name]


def per_item(items: Any, score: Score, *, mean_alone: bool = False) -> Float[np.ndarray, " items"]:
  """What a run returned of a score, as numbers whose mean is the score: one for each item, or one in all.

  A statistic is one number where its mean alone is read, as on validation data: its influences are one call for each
  item.

  Raises:
    ValueError: no numbers, or an array of a shape that the score does not take.
  """
  items = np.asarray(items)
  if items.dtype != bool and not np.issubdtype(items.dtype, np.number) or not items.size:
    raise ValueError(f"{score.name} must be numbers, at least one; got {items.dtype} {list(items.shape)}")
  items = items.astype(np.float64)  # what is right or wrong too, as 1 and 0
  if items.ndim == 0:
    return items[None]
  if score.of is not None:
    each = score.shared_items and not mean_alone
    # A run that diverged has no statistic; its rate is rejected for that.
    if not np.isfinite(items).all():
      return np.full(len(items) if each else 1, np.nan)
    return influences(items, score.of) if each else np.array([float(score.of(items))])
  if items.ndim != 1:
    raise ValueError(f"{score.name} must be one number for each item, as it is their mean; got {list(items.shape)}")
  return items if score.shared_items else np.array([items.mean()])


def smoothness(items: Any, score: Score) -> float | None:
  """The `jackknife_ratio` of a statistic on what a run returned; None of a mean and of few items."""
  items = np.asarray(items)
  if score.of is None or not score.shared_items or not items.ndim or len(items) < FEWEST_TO_TELL:
    return None
  try:
    return jackknife_ratio(items.astype(np.float64), score.of)
  except ValueError:
    return None  # there is no statistic of what diverged


def check_smooth(score: Score, ratios: Sequence[float]) -> None:
  """ValueError where a statistic jumps, by the `smoothness` of a study's runs: of one that does some pass by chance."""
  with np.errstate(divide="ignore"):
    off = float(np.exp(np.quantile(np.abs(np.log(ratios)), 0.6, method="lower"))) if ratios else 1.0
  if off > MOST_OFF:
    raise ValueError(
        f"{score.name} must have an `of` that moves a little with each item, as a mean, a ratio, a correlation or an "
        f"area under a curve does; without a tenth of its items it moves {off:.2g} times as far, or as little, as "
        "leaving them out one by one says, or more so, in two of five runs, as a median or a threshold does; with "
        "shared_items=False a seed's statistic is one number, and may be any")
