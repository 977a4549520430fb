"""What premises and contrasts read: `s["full"].op`, the scores of an arm by name."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxft.checks import nearest
from jaxft.evaluation import influences
from jaxft.studies.study import Score


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
