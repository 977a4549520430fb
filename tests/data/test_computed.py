"""Numbers computed once for each record, and the file that holds them."""

import numpy as np
import pytest

from jaxft.data import with_computed

RECORDS = [{"text": "x" * n, "ids": np.arange(n)} for n in (3, 1, 4, 1, 5)]


def counting():
  calls = []

  def compute(batch):
    calls.append(len(batch))
    return {"length": np.array([len(record["text"]) for record in batch]),
            "two": np.array([[len(record["text"]), 0.5] for record in batch])}

  return compute, calls


def test_batches_have_one_size_and_records_keep_their_order():
  compute, calls = counting()
  records = with_computed(RECORDS, compute, batch_size=2)
  assert calls == [2, 2, 2] and len(records) == 5
  assert [record["length"] for record in records] == [3, 1, 4, 1, 5]
  assert records[-1]["text"] == "xxxxx" and records[-1]["two"].tolist() == [5, 0.5]
  with pytest.raises(IndexError):
    records[5]


def test_a_cache_is_read_and_belongs_to_its_records_and_its_model(tmp_path):
  compute, calls = counting()
  options = {"batch_size": 4, "cache": tmp_path / "new" / "reference.npz", "identity": {"model": "a", "length": 128}}
  first, second = (with_computed(RECORDS, compute, **options) for _ in range(2))
  assert calls == [4, 4] and [r["length"] for r in second] == [r["length"] for r in first]
  assert list((tmp_path / "new").iterdir()) == [options["cache"]]
  with pytest.raises(ValueError, match="reference.npz belongs to another identity; delete it"):
    with_computed(RECORDS, compute, **options | {"identity": {"model": "b", "length": 128}})
  changed = [*RECORDS[:4], {"text": "y" * 5, "ids": np.arange(5)}]
  for other in (changed, RECORDS[::-1], RECORDS[:4], [{**RECORDS[0], "ids": np.arange(3) + 1}, *RECORDS[1:]]):
    with pytest.raises(ValueError, match="reference.npz belongs to other records"):
      with_computed(other, compute, **options)


def test_what_is_refused(tmp_path):
  compute, _ = counting()
  with pytest.raises(ValueError, match="records must not be empty"):
    with_computed([], compute)
  with pytest.raises(ValueError, match="identity must be given with a cache"):
    with_computed(RECORDS, compute, cache=tmp_path / "a.npz")
  with pytest.raises(ValueError, match=r"compute must give one row for each of 2 records; x has \(1,\)"):
    with_computed(RECORDS, lambda batch: {"x": np.zeros(1)}, batch_size=2)
  with pytest.raises(ValueError, match=r"got \['text'\], which the records have"):
    with_computed(RECORDS, lambda batch: {"text": np.zeros(len(batch))})
  late = lambda batch: {"x": np.array([np.nan if len(r["text"]) == 5 else 0.0 for r in batch])}
  with pytest.raises(ValueError, match="x of record 4 is nan"):
    with_computed(RECORDS, late, batch_size=3)
  with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
    with_computed(RECORDS, compute, batch_size=0)
