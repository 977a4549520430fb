"""Splits by class: base and novel classes, a few examples of each, and sessions in which classes come in turn.

All take the labels of a split and give indices into it: `records[i] for i in few_shot(labels, 4, seed=0)`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxft.checks import in_range
from jaxft.signatures import explain_errors

Labels = Sequence[int] | Int[np.ndarray, " records"]


class BaseNovel(NamedTuple):
  """Indices of the records of base and of novel classes, and these classes."""

  base: Int[np.ndarray, " base"]
  novel: Int[np.ndarray, " novel"]
  base_classes: Int[np.ndarray, " base_classes"]
  novel_classes: Int[np.ndarray, " novel_classes"]


@explain_errors
def base_to_novel(labels: Labels, *, share: float = 0.5, seed: int | None = None) -> BaseNovel:
  """Cuts the classes in two: what is tuned on the base classes is tested on both.

  >>> base_to_novel([0, 0, 1, 2, 3, 2])
  BaseNovel(base=array([0, 1, 2]), novel=array([3, 4, 5]), base_classes=array([0, 1]), novel_classes=array([2, 3]))

  Args:
    labels: the class of each record.
    share: of the classes that are base, rounded up; at least one class is on either side.
    seed: draws which are base; None takes the first, as the field's protocol does.

  Raises:
    ValueError: share outside (0, 1), or fewer than two classes.

  Source: the protocol of Zhou et al. 2022 (arXiv 2203.05557), whose base classes are the first half.
  """
  in_range("share", share, "(0, 1)")
  labels, classes = _labels(labels)
  if len(classes) < 2:
    raise ValueError(f"labels must have at least two classes; got {classes.tolist()}")
  order = classes if seed is None else np.random.default_rng(seed).permutation(classes)
  count = min(int(np.ceil(share * len(classes))), len(classes) - 1)
  base, novel = np.sort(order[:count]), np.sort(order[count:])
  return BaseNovel(
      np.flatnonzero(np.isin(labels, base)), np.flatnonzero(np.isin(labels, novel)), base, novel)


@explain_errors
def few_shot(labels: Labels, shots: int, *, seed: int) -> Int[np.ndarray, " chosen"]:
  """Indices of `shots` records of each class, drawn without replacement; all of a class that has no more. Sorted.

  >>> few_shot([0, 0, 0, 1], 1, seed=0)
  array([2, 3])

  Args:
    labels: the class of each record.
    shots: records of each class.
    seed: of the draw.

  Raises:
    ValueError: shots below 1.
  """
  in_range("shots", shots, "[1, inf)")
  labels, classes = _labels(labels)
  rng = np.random.default_rng(seed)
  drawn = [rng.permutation(np.flatnonzero(labels == one))[:shots] for one in classes]
  return np.sort(np.concatenate(drawn)) if drawn else np.zeros(0, np.int64)


class Session(NamedTuple):
  """The classes that a session brings, and the indices of its records."""

  classes: Int[np.ndarray, " classes"]
  records: Int[np.ndarray, " records"]


@explain_errors
def sessions(
    labels: Labels, *, first: int, each: int, shots: int | None = None, seed: int | None = None
) -> list[Session]:
  """Class-incremental sessions: the first has `first` classes with all of their records, each later one `each` more.

  >>> [one.records.tolist() for one in sessions([0, 1, 2, 2, 1], first=1, each=1, shots=1, seed=0)]
  [[2, 3], [0], [1]]

  Args:
    labels: the class of each record.
    first: classes of the first session.
    each: classes of each later one; the last has what is left.
    shots: records of each class in all but the first session, see `few_shot`; None takes all.
    seed: of the order of classes and of the draw; None takes the classes in their order, and needs shots None.

  Raises:
    ValueError: first or each below 1, more classes asked for in the first session than there are, or shots without a
      seed.
  """
  in_range("each", each, "[1, inf)")
  labels, classes = _labels(labels)
  in_range("first", first, f"[1, {len(classes)}]")
  if shots is not None and seed is None:
    raise ValueError("seed must be given with shots, which are drawn; got None")
  if seed is not None:
    classes = np.random.default_rng(seed).permutation(classes)
  bounds = [0, first, *range(first + each, len(classes), each), len(classes)]
  bounds = sorted(set(bounds))
  out = []
  for number, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
    own = np.sort(classes[start:stop])
    records = np.flatnonzero(np.isin(labels, own))
    if number and shots is not None and seed is not None:
      records = records[few_shot(labels[records], shots, seed=seed + number)]
    out.append(Session(own, records))
  return out


def _labels(labels: Labels) -> tuple[np.ndarray, np.ndarray]:
  array = np.asarray(labels)
  if array.ndim != 1 or array.dtype.kind not in "iu":
    raise ValueError(f"labels must be a vector of integers; got shape {array.shape} and dtype {array.dtype}")
  return array, np.unique(array)
