"""Which of the records that measure a run are learnt from as well, so that what they say is no measure of others."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxft.recipes.examples import Records, Splits

LEARNT, MEASURED = 5000, 1000  # records that are looked at; of more, so many at equal distances
PICTURES = 300  # the same of records with pictures, which are slow to read


def overlaps(splits: Splits) -> list[str]:
  """A line for each two of training, validation and control that have records in common; equal in all their fields.

  Args:
    splits: of the run.
  """
  said = [
      _said(splits.validation, splits.train, "of the validation", "learnt from too, and no measure of what is new"),
      _said(splits.control, splits.train, "of --control", "learnt from, so that they do not tell what is forgotten"),
      _said(splits.control, splits.validation, "of --control", "validated on too")]
  return [line for line in said if line is not None]


def _said(records: Records | None, others: Records | None, whose: str, what: str) -> str | None:
  """The line of records of which some are among others; None where none is."""
  if records is None or others is None:
    return None
  keys, known = _keys(records, MEASURED), _keys(others, LEARNT)
  there = {*known}
  if not (both := sum(key in there for key in keys)):
    return None
  looked = "" if len(keys) == len(records) else f" ({len(keys):,} of {len(records):,} looked at)"
  least = "at least " if len(known) < len(others) else ""
  return f"note: {least}{both:,} of {len(keys):,} records {whose} are {what}{looked}"


def _keys(records: Records, most: int) -> list[bytes]:
  """What tells records apart, of those that are looked at."""
  if not len(records):
    return []
  most = PICTURES if any(isinstance(x, np.ndarray) and x.ndim > 2 for x in records[0].values()) else most
  looked = np.unique(np.linspace(0, len(records) - 1, min(most, len(records))).round().astype(int))
  texts = (repr(_plain(records[int(i)])) for i in looked)
  return [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]


def _plain(x: Any) -> Any:
  """A value whose `repr` is that of equal ones alone."""
  if isinstance(x, Mapping):
    return sorted((name, _plain(value)) for name, value in x.items())
  if isinstance(x, (list, tuple)):
    return [_plain(value) for value in x]
  if isinstance(x, np.ndarray):
    return x.tolist() if x.ndim < 3 else (x.shape, hashlib.sha256(x.tobytes()).hexdigest())
  return x.item() if isinstance(x, np.generic) else x
