"""What a classifier or regressor learns: a label or a number of each record, as arrays of a batch."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from jaxft.recipes.tasks import Records, column


class Target(NamedTuple):
  """A field of the records, and what its contents are to a model.

  Attributes:
    field: of a record.
    classes: names of the labels, in the order of their numbers; empty where the field is a number.
    mean, std: of a number over the training records; the model learns `(number - mean) / std`.
  """

  field: str
  classes: tuple[str, ...] = ()
  mean: float = 0.0
  std: float = 1.0

  @property
  def outputs(self) -> int:
    """The width of the model's output."""
    return len(self.classes) or 1

  def of(self, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Labels `[batch]` int32, or standardized numbers `[batch]` float32.

    Raises:
      ValueError: a record lacks the field, or has a label that the training records lack.
    """
    found = column(records, self.field)
    if not self.classes:
      return ((np.asarray(found, np.float64) - self.mean) / self.std).astype(np.float32)
    return np.array([self._number(label) for label in found], np.int32)

  def _number(self, label: Any) -> int:
    if not isinstance(label, str):
      return int(label)  # a data set with named labels holds their numbers
    if label not in self.classes:
      raise ValueError(f"{self.field} must be one of the {len(self.classes)} of the training records, "
                       f"{', '.join(self.classes):.200}; got {label!r}")
    return self.classes.index(label)


def labels_of(records: Records, field: str) -> Target:
  """The labels of the training records: those that the data set names, else all that occur, sorted.

  Raises:
    ValueError: the records lack the field, it is no label, or all have the same.
  """
  features = getattr(records, "features", {})
  feature = features[field] if field in features else None
  if isinstance(feature, tfds.features.ClassLabel):
    return Target(field, tuple(feature.names))
  first = column([records[0]], field)
  if not isinstance(first[0], str):
    raise ValueError(f"{field} must be a label, as text or as a class of the data set; got {first[0]!r:.60}")
  classes = tuple(sorted(set(column(records, field))))
  if len(classes) < 2:
    raise ValueError(f"{field} must have two labels or more; all {len(records)} records have {first[0]!r}")
  return Target(field, classes)


def numbers_of(records: Records, field: str) -> Target:
  """The mean and the standard deviation of a number over the training records.

  Raises:
    ValueError: the records lack the field, it is no finite number, or all have the same.
  """
  found = column(records, field)
  try:
    values = np.array(found, np.float64)
  except (TypeError, ValueError):
    raise ValueError(f"{field} must be a number; got {found[0]!r:.60}") from None
  if values.ndim != 1 or not np.isfinite(values).all():
    raise ValueError(f"{field} must be one finite number a record; got {found[0]!r:.60} first, or one that is not")
  if not (std := float(values.std())):
    raise ValueError(f"{field} must differ between records; all {len(found)} have {found[0]!r:.60}")
  return Target(field, mean=float(values.mean()), std=std)
