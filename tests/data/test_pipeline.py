"""Batches are a pure function of the step: same records on any number of processes, each once an epoch."""

import contextlib
import itertools

import grain
import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxft import data

Shard = grain.sharding.ShardOptions


def ids_of(order, batch_size, step, shard=data.pipeline.ONE_PROCESS, **kwargs):
  return data.batches(order, batch_size=batch_size, shard=shard, **kwargs)[step].tolist()


@hypothesis.given(n=st.integers(1, 40), batch=st.integers(1, 12), seed=st.integers(0, 5))
@hypothesis.settings(max_examples=30, deadline=None)
def test_every_epoch_is_a_permutation_though_batches_cross_epochs(n, batch, seed):
  order = data.stream(range(n), seed=seed)
  batches = data.batches(order, batch_size=batch)
  read = [i for step in range(-(-3 * n // batch)) for i in batches[step]]
  for epoch in range(3):
    assert sorted(read[epoch * n:(epoch + 1) * n]) == list(range(n))


def test_epochs_differ_and_seeds_differ():
  first, second = (ids_of(range(100), 100, step, seed=0) for step in (0, 1))
  assert first != second
  assert first != ids_of(range(100), 100, 0, seed=1)
  assert first != list(range(100))
  assert ids_of(range(100), 100, 1, seed=0, shuffle=False) == list(range(100))


@pytest.mark.parametrize("n", [10, 24, 37])
def test_any_number_of_processes_gives_the_same_global_batches(n):
  for step in range(8):
    whole = ids_of(range(n), 8, step, seed=3)
    for count in (2, 4, 8):
      parts = [ids_of(range(n), 8, step, seed=3, shard=Shard(index, count)) for index in range(count)]
      assert all(len(part) == 8 // count for part in parts)
      assert list(itertools.chain(*parts)) == whole


def test_batch_indices_are_what_batches_read():
  records = [{"id": i} for i in range(23)]
  for shard in (Shard(0, 1), Shard(1, 2)):
    batches = data.batches(records, batch_size=6, seed=4, shard=shard)
    for step in (0, 3, 11):
      ids = data.batch_indices(step, 23, batch_size=6, seed=4, shard=shard)
      np.testing.assert_array_equal(batches[step]["id"], ids)


def test_random_map_depends_on_seed_and_place_alone():
  noisy = lambda x, rng: x + rng.random()
  make = lambda shard: data.batches(range(10), batch_size=4, seed=0, random_map=noisy, shard=shard)
  one = make(Shard(0, 1))
  assert one[7].tolist() == one[7].tolist()
  assert sorted(one[0] % 1) != sorted(one[5] % 1)  # new noise in a later epoch
  np.testing.assert_array_equal(one[3], np.concatenate([make(Shard(0, 2))[3], make(Shard(1, 2))[3]]))


def test_finite_epochs_drop_what_fills_no_batch():
  assert len(data.batches(range(10), batch_size=4, seed=0, epochs=1)) == 2
  assert len(data.batches(range(10), batch_size=4, seed=0, epochs=2)) == 5
  with pytest.raises(ValueError, match="batch_size must be at most the stream's 10 records; got 11"):
    data.batches(range(10), batch_size=11, seed=0, epochs=1)


def test_resumes_from_its_state_which_is_the_step():
  make = lambda: data.sharded(range(50), 8, seed=1, num_threads=2, buffer_size=4)
  with contextlib.closing(iter(make())) as unbroken:
    read = [next(unbroken) for _ in range(13)]
  with contextlib.closing(iter(make())) as it:
    for _ in range(10):
      next(it)
    state = it.get_state()
  assert state == {"next_index": 10}
  with contextlib.closing(iter(make())) as it:
    it.set_state(state)
    np.testing.assert_array_equal(np.stack([next(it) for _ in range(3)]), np.stack(read[10:]))


def test_grain_finds_the_same_output_after_every_checkpoint():
  streams = [data.stream(range(20), seed=1, map=lambda x: x + 100), data.stream(range(9), seed=2)]
  batches = data.batches(data.mix(streams, weights=[2, 1]), batch_size=4)
  grain.experimental.assert_equal_output_after_checkpoint(batches.slice(slice(0, 12)).to_iter_dataset())


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 7, 8, 9])
def test_evaluation_sees_every_record_once(n, count):
  seen = []
  for index in range(count):
    for batch in data.evaluation_batches([{"id": i} for i in range(n)], batch_size=4, shard=Shard(index, count)):
      assert batch["id"].shape == batch["where"].shape == (4 // count,)
      seen += batch["id"][batch["where"]].tolist()
  assert sorted(seen) == list(range(n))


@hypothesis.given(st.lists(st.floats(0.05, 1), min_size=1, max_size=5))
@hypothesis.settings(max_examples=15, deadline=None)
def test_mix_keeps_its_proportions(weights):
  streams = [data.stream([i] * 1000, seed=i) for i in range(len(weights))]
  mixed = data.mix(streams, weights=weights)
  counts = np.bincount([mixed[i] for i in range(1000)], minlength=len(weights))
  # Grain cuts the weights to hundredths of the smallest one; counting to 1,000 adds a record per stream.
  tolerance = len(weights) * (1 / 1000 + 0.01 * min(weights) / sum(weights))
  assert np.abs(counts / 1000 - np.asarray(weights) / sum(weights)).max() <= tolerance


def test_mix_is_within_one_record_of_its_weights():
  mixed = data.mix([data.stream([0] * 1700, seed=0), data.stream([1] * 1300, seed=1)], weights=[0.7, 0.3])
  assert abs(sum(mixed.slice(slice(0, 4000))) - 1200) <= 1


def test_mix_by_temperature():
  streams = [data.stream([0] * 1000, seed=0), data.stream([1] * 1000, seed=1)]
  share = lambda t: np.mean([data.mix(streams, sizes=[900, 100], temperature=t)[i] for i in range(2000)])
  assert share(1.0) == pytest.approx(0.1, abs=1e-3)
  assert share(2.0) == pytest.approx(0.25, abs=1e-3)
  assert share(1e6) == pytest.approx(0.5, abs=1e-3)


def test_collate_gives_dtypes_of_the_device():
  batch = data.collate([{"label": 3, "rating": 0.5, "flag": True, "text": "a", "x": np.zeros(2)} for _ in range(2)])
  assert {key: value.dtype.name for key, value in batch.items()} == {
    "label": "int32", "rating": "float32", "flag": "bool", "text": "object", "x": "float32"}


@pytest.mark.parametrize(("call", "message"), [
  (lambda: data.batches(range(9), batch_size=6, seed=0, shard=Shard(0, 4)), "a positive multiple of the 4 proc"),
  (lambda: data.batches(range(9), batch_size=3), "seed must be given"),
  (lambda: data.batches(data.stream(range(9), seed=0), batch_size=3, seed=0), "seed must be given to the stream"),
  (lambda: data.batches([], batch_size=3, seed=0), "source must hold at least one record"),
  (lambda: data.batches(data.stream(range(9), seed=0).filter(lambda x: x > 5), batch_size=9)[0], "filter left a hole"),
  (lambda: data.stream(range(9), seed=0, epochs=0), "epochs must be at least 1"),
  (lambda: data.evaluation_batches(range(9), batch_size=0), "batch_size must be a positive"),
  (lambda: data.batch_indices(-1, 9, batch_size=3, seed=0), "step must be at least 0"),
  (lambda: data.mix([data.stream(range(9), seed=0)], weights=[0.0]), "weights must be positive"),
  (lambda: data.mix([data.stream(range(9), seed=0)], weights=[1, 2]), "one number per stream; got 2 for 1"),
  (lambda: data.mix([data.stream(range(9), seed=0, epochs=1)], weights=[1]), "streams must be endless"),
  (lambda: data.mix([data.stream(range(9), seed=0)], weights=[1], temperature=2), "either weights, or sizes"),
  (lambda: data.collate([{"x": np.zeros(2)}, {"x": np.zeros(3)}]), r"x: .* one shape; got \(2,\), \(3,\); pad"),
  (lambda: data.collate([{"x": 1}, {"y": 1}]), "one structure; got 2"),
  (lambda: data.collate([{"x": 2**40}]), "x: integers must fit int32"),
  (lambda: data.collate([{"x": 1.0}, {"x": 1e300}]), r"x: numbers must fit float32; got 1e\+300"),
  (lambda: data.collate([{"x": "a"}, {"x": 1}]), "x: records of a batch must have one kind .* got numbers and text"),
  (lambda: data.collate([{"x": 1}, {"x": True}]), "x: records .* must have one kind .* got booleans and numbers"),
])
def test_errors_name_the_argument(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_to_global_puts_rows_in_order_and_names_what_does_not_fit():
  sharding = NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec("data"))
  batch = {"x": np.arange(32, dtype=np.float32).reshape(16, 2), "y": np.arange(16, dtype=np.int32)}
  out = data.to_global(batch, sharding)
  assert out["x"].sharding == sharding
  jax.tree.map(np.testing.assert_array_equal, out, batch)
  with pytest.raises(ValueError, match=r"y: the global batch \(12,\) does not divide"):
    data.to_global({"y": np.arange(12)}, sharding)
  with pytest.raises(ValueError, match="y must hold integers that fit int32; got 4294967296 to 4294967303"):
    data.to_global({"y": 2**32 + np.arange(8)}, sharding)
  with pytest.raises(ValueError, match="a/text: only numbers go to devices"):
    data.to_global({"a": {"text": np.asarray(["x"] * 8, object)}}, sharding)
