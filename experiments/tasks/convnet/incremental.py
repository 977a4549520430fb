"""Classes that come in sessions: what a seed brings in which, and what is told of each session's after each."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxft.data import few_shot, sessions
from jaxft.data.class_splits import Session
from jaxft.signatures import AnyArray


@dataclasses.dataclass(frozen=True)
class Settings:
  """What these studies have alike.

  Attributes:
    model: a preset of `load_convnet`.
    size: of the squares that the ConvNet reads.
    first, each: classes of the first session, and of each later one.
    shots: pictures of each class.
    steps, batch_size: of training, in a session.
    rates: that each arm chooses from.
    seeds, tuning_seeds: of the runs.
  """

  model: str = "efficientnet-lite0"
  size: int = 64
  first: int = 12
  each: int = 10
  shots: int = 10
  steps: int = 60
  batch_size: int = 48
  rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
  seeds: tuple[int, ...] = tuple(range(10))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


# Of smoke runs.
SMALL: dict[str, Any] = {"model": "efficientnet-lite0:tiny", "steps": 4, "seeds": (0, 1), "tuning_seeds": (100,)}


def draw_sessions(
    labels: Int[np.ndarray, " n"], settings: Settings, seed: int
) -> tuple[Int[np.ndarray, " drawn"], list[Session]]:
  """The rows that a seed draws, `shots` of each class, and the sessions in which they come, by their rows."""
  rows = few_shot(labels, settings.shots, seed=seed)
  brought = sessions(labels[rows], first=settings.first, each=settings.each, seed=seed)
  return rows, [one._replace(records=rows[one.records]) for one in brought]


def brings(brought: Sequence[Session], classes: int) -> Bool[np.ndarray, "sessions classes"]:
  """Which classes each session brings; `np.logical_or.accumulate` of it says which have come."""
  return np.stack([np.isin(np.arange(classes), one.classes) for one in brought])


def told_by_session(
    right: Float[AnyArray, "models n"], labels: Int[AnyArray, " n"], brought: Sequence[Session]
) -> Float[np.ndarray, "models sessions"]:
  """Each model's accuracy on the classes that each session brought, `right` being which pictures it told right."""
  return np.stack([np.asarray(right)[:, np.isin(labels, one.classes)].mean(axis=1) for one in brought], axis=1)
