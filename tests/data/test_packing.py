"""Packing loses nothing, cuts nothing and keeps sequences apart."""

import grain
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxft import data


def examples(lengths):
  ends = np.cumsum(lengths)
  return [
    {"ids": np.arange(end - n + 1, end + 1, dtype=np.int32), "loss_mask": np.ones(n, np.int32)}
    for n, end in zip(lengths, ends, strict=True)
  ]


def segments(rows):
  for row in rows:
    for segment in range(1, row["segment_ids"].max() + 1):
      where = row["segment_ids"] == segment
      yield row["ids"][where], row["positions"][where], row["loss_mask"][where]


@hypothesis.given(
  lengths=st.lists(st.integers(1, 16), min_size=1, max_size=30), algorithm=st.sampled_from(["first_fit", "best_fit"]),
  bins=st.integers(1, 5),
)
@hypothesis.settings(max_examples=30, deadline=None)
def test_segments_are_the_inputs(lengths, algorithm, bins):
  inputs = examples(lengths)
  rows = list(data.pack(grain.MapDataset.source(inputs), 16, algorithm=algorithm, bins=bins))
  assert sorted(tuple(ids) for ids, _, _ in segments(rows)) == sorted(tuple(e["ids"]) for e in inputs)
  for ids, positions, loss_mask in segments(rows):
    assert positions.tolist() == list(range(len(ids)))
    assert loss_mask.tolist() == [0] + [1] * (len(ids) - 1)
  for row in rows:
    assert row.keys() == {"ids", "loss_mask", "segment_ids", "positions"}
    assert all(value.shape == (16,) for value in row.values())
    assert not row["ids"][row["segment_ids"] == 0].any()


def test_packing_an_endless_stream_resumes_exactly():
  stream = data.stream(examples([3, 9, 5, 7, 2, 8, 6]), seed=0)
  packed = data.pack(stream.slice(slice(0, 40)), 16, bins=3).batch(2, drop_remainder=True)
  grain.experimental.assert_equal_output_after_checkpoint(packed)


def test_a_sequence_longer_than_a_row_raises():
  with pytest.raises(ValueError, match="at most 16 under all keys; got {'ids': 17, 'loss_mask': 17}"):
    list(data.pack(grain.MapDataset.source(examples([17])), 16))


@pytest.mark.parametrize(("kwargs", "message"), [
  ({"algorithm": "worst_fit"}, "algorithm must be one of first_fit, best_fit"),
  ({"keys": ("loss_mask",)}, "keys must hold 'ids'"),
  ({"bins": 0}, "length and bins must be at least 1"),
])
def test_errors(kwargs, message):
  with pytest.raises(ValueError, match=message):
    data.pack(grain.MapDataset.source(examples([3])), 16, **kwargs)


@hypothesis.given(st.lists(st.integers(1, 16), min_size=1, max_size=40), st.integers(1, 4), st.integers(0, 3),
                  st.none() | st.integers(1, 3))
@hypothesis.settings(max_examples=50, deadline=None)
def test_pack_texts_keeps_every_text_whole(sizes, multiple, start, slots):
  texts = [list(range(100 * i + 1, 100 * i + 1 + size)) for i, size in enumerate(sizes)]
  packed = data.pack_texts(texts, 16, multiple=multiple, start=start, slots=slots)
  assert slots is None or max(len(set(row) - {0}) for row in packed["segment_ids"].tolist()) <= slots
  assert len(packed["ids"]) % multiple == 0
  assert (packed["ids"][packed["segment_ids"] == 0] == 0).all()
  for i, text in enumerate(texts):
    rows, at = np.nonzero(packed["segment_ids"] == start + i + 1)
    assert len(set(rows)) == 1 and (np.diff(at) == 1).all()
    assert packed["ids"][rows, at].tolist() == text


def test_pack_texts_wastes_little():
  rng = np.random.default_rng(0)
  texts = [[1] * n for n in rng.integers(4, 40, 500)]
  rows = len(data.pack_texts(texts, 128)["ids"])
  assert rows <= 1.02 * sum(map(len, texts)) / 128 + 1


@pytest.mark.parametrize(("texts", "kwargs", "message"), [
  ([], {}, "texts must have 1 to 8 tokens"),
  ([[1], []], {}, "texts must have 1 to 8 tokens"),
  ([[1] * 9], {}, r"length=8.*got \[9\]"),
  ([[1] * 8] * 3, {"rows": 2}, "rows must be at least 3"),
  ([[1]], {"start": -1}, "start must be at least 0, .*; got -1"),
  ([[1]], {"start": 2**31 - 1}, "start must be at least 0, and start . 1 texts fit int32; got 2147483647"),
  ([[1]], {"slots": 0}, "slots must be None or at least 1; got 0"),
  ([[1]], {"multiple": 0}, "multiple must be at least 1; got 0"),
  ([[1], [1.7, 2]], {}, r"texts\[1\] must hold token ids, .*; got \[1.7 2. \]"),
  ([[1, -1]], {}, r"texts\[0\] must hold token ids, .*; got \[ 1 -1\]"),
  ([[2**32 + 1]], {}, r"texts\[0\] must hold token ids, .*; got \[4294967297\]"),
])
def test_pack_texts_errors(texts, kwargs, message):
  with pytest.raises(ValueError, match=message):
    data.pack_texts(texts, 8, **kwargs)


def test_steps_of_few_tokens_and_a_fixed_number_of_samples():
  lengths = np.random.default_rng(0).integers(1, 30, 103)
  for devices in (1, 3):
    steps = data.token_budget_batches(lengths, max_tokens=40, samples_per_step=20, devices=devices, seed=1)
    assert len(steps) == 5 and all(len(step) == devices for step in steps)
    seen = np.concatenate([micro for step in steps for device in step for micro in device])
    assert len(set(seen.tolist())) == 100 == len(seen)  # once each, and three are left over
    for step in steps:
      assert sum(len(micro) for device in step for micro in device) == 20
      counts = {len(device) for device in step}
      loads = [int(lengths[micro].sum()) for device in step for micro in device]
      assert len(counts) == 1 and max(loads) <= 40
      assert len(loads) <= -(-sum(loads) // (40 * devices)) * devices + devices  # the least number, or the next one
    again = data.token_budget_batches(lengths, max_tokens=40, samples_per_step=20, devices=devices, seed=2)
    assert any((a[0][0].tolist() != b[0][0].tolist()) for a, b in zip(steps, again, strict=True))
  (alone, _) = data.token_budget_batches([40, 40], max_tokens=40, samples_per_step=1, devices=2)
  assert [len(micro) for device in alone for micro in device] == [1, 0]  # the second device has nothing to do
  for message, sizes, most, samples, devices in (
      (r"lengths must lie in \[1, max_tokens = 9\]; got 10 to 10", [10], 9, 1, 1),
      ("of at least the 2 samples", [1], 9, 2, 1), ("must be at least 1; got 9, 1 and 0", [1], 9, 1, 0),
      ("got 0 to 0", [0], 9, 1, 1)):
    with pytest.raises(ValueError, match=message):
      data.token_budget_batches(sizes, max_tokens=most, samples_per_step=samples, devices=devices)
