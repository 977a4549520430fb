"""Numbers that are computed once for each record and then belong to it: log-probabilities of a reference, scores."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from jaxft.data.position import fingerprint
from jaxft.files import write_atomically
from jaxft.signatures import explain_errors

Compute = Callable[[list[Mapping[str, Any]]], Mapping[str, Any]]
_MADE_OF = "made of"


class WithComputed(Sequence):
  """Records with further fields, read at random like the records themselves; see `with_computed`."""

  def __init__(self, records: Sequence[Mapping[str, Any]], columns: Mapping[str, np.ndarray]):
    self._records, self.columns = records, dict(columns)

  def __len__(self) -> int:
    return len(self._records)

  # No slices, as of `Records`: a record is read when it is asked for.
  def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
    i = int(index)
    return {**self._records[i], **{name: column[i] for name, column in self.columns.items()}}

  def __repr__(self) -> str:
    return f"WithComputed({len(self)} records, {', '.join(self.columns)} beside {self._records!r:.80})"


class OfOthers(ValueError):
  """A cache that belongs to other records, or to another identity."""


@explain_errors
def with_computed(
    records: Sequence[Mapping[str, Any]], compute: Compute, *, batch_size: int = 64,
    cache: str | os.PathLike | None = None, identity: Any = None,
) -> WithComputed:
  """Records with what a function of them gives: the log-probabilities of DPO's reference are computed once, not a step.

  >>> records = [{"text": "a"}, {"text": "abc"}, {"text": "ab"}]
  >>> lengths = lambda batch: {"length": np.array([len(record["text"]) for record in batch])}
  >>> with_computed(records, lengths, batch_size=2)[1]
  {'text': 'abc', 'length': np.int64(3)}

  Args:
    records: read at random, such as `source` gives them.
    compute: `records -> {name: array}`, of as many rows as records. It always gets `batch_size` of them, of which the
      last batch repeats its last, so that what it compiles is compiled once. Its rows may not depend on each other.
    batch_size: >= 1.
    cache: a `.npz` file, written after computing and read in its place from then on. It belongs to the records'
      content and to `identity`.
    identity: with a cache, what the numbers come from, as of `fingerprint`: the reference model's name and revision,
      the length that texts are cut to, the template.

  Returns:
    The records with the new fields. Only these are held in memory.

  Raises:
    ValueError: no records; a cache without identity, or one that belongs to other records or another identity
      (`OfOthers`); arrays of another number of rows, with NaN or infinity in them, or under the name of a field that
      there is.
    OSError: the cache cannot be read or written.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size must be at least 1; got {batch_size}")
  if not len(records):
    raise ValueError("records must not be empty")
  if cache is None:
    return WithComputed(records, _columns(records, compute, batch_size))
  if identity is None:
    raise ValueError("identity must be given with a cache: it says which model and settings the numbers come from")
  path = Path(cache)
  if path.suffix != ".npz":
    raise ValueError(f"cache must be a .npz file; got {path}")
  made_of = f"{_content(records)}-{fingerprint(identity)}"
  if path.exists():
    with np.load(path, allow_pickle=False) as file:
      found = {name: file[name] for name in file.files}
    of = str(found.pop(_MADE_OF, ""))
    if of != made_of:
      what = "another identity" if of.split("-")[0] == made_of.split("-")[0] else "other records"
      raise OfOthers(f"cache {path} belongs to {what}; delete it, or name another")
    return WithComputed(records, found)
  columns = _columns(records, compute, batch_size)
  path.parent.mkdir(parents=True, exist_ok=True)

  def write(part: Path) -> None:
    with open(part, "wb") as file:
      np.savez(file, allow_pickle=False, **columns, **{_MADE_OF: np.array(made_of)})

  write_atomically(path, write)
  return WithComputed(records, columns)


def _columns(records: Sequence[Mapping[str, Any]], compute: Compute, batch_size: int) -> dict[str, np.ndarray]:
  parts: dict[str, list[np.ndarray]] = {}
  for start in range(0, len(records), batch_size):
    batch = [records[i] for i in range(start, min(start + batch_size, len(records)))]
    size = len(batch)
    given = compute(batch + [batch[-1]] * (batch_size - size))
    taken = sorted(set(given) & set(batch[0]))
    if taken or not given:
      raise ValueError(f"compute must give arrays under new names; got {taken or 'none'}, which the records have")
    for name, values in given.items():
      values = np.asarray(values)
      if values.shape[:1] != (batch_size,):
        raise ValueError(f"compute must give one row for each of {batch_size} records; {name} has {values.shape}")
      values = values[:size]
      if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = start + int(np.argmin(np.isfinite(values.reshape(size, -1)).all(axis=1)))
        raise ValueError(f"compute must give finite numbers; {name} of record {bad} is {values[bad - start]}")
      parts.setdefault(name, []).append(values)
  return {name: np.concatenate(rows) for name, rows in parts.items()}


def _content(records: Sequence[Mapping[str, Any]]) -> str:
  """A hash of all fields of all records, in their order."""
  digest = hashlib.sha256()
  for i in range(len(records)):
    for name, value in sorted(records[i].items()):
      if isinstance(value, (np.ndarray, np.generic)):
        body = f"{value.dtype}{value.shape}".encode() + value.tobytes()
      else:
        body = repr(value).encode()
      digest.update(f"{name}:{len(body)}:".encode() + body)
    digest.update(b"\n")
  return digest.hexdigest()[:32]
