"""From records to batches: step t of a run is a pure function of the seed, on any number of processes.

A stream is an endless shuffled order of records, the same on every process. Batch t is its records
[t * batch_size, (t + 1) * batch_size), of which process p of P takes the p-th part. So a run resumes from its step
alone, on any process count that divides the batch, and its batches are the same ones.
"""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import jax
import numpy as np
from jaxtyping import Int

from jaxft.data.collate import collate as stack
from jaxft.signatures import check_integers, explain_errors

Record = dict[str, Any]
ONE_PROCESS = grain.sharding.ShardOptions(shard_index=0, shard_count=1)


@runtime_checkable
class RandomAccess(Protocol):
  """Records by their index."""

  def __len__(self) -> int: ...
  def __getitem__(self, index: int) -> Any: ...


Source = Sequence[Any] | RandomAccess  # records at random: what `jaxft.data.source` gives; a list is one too


@explain_errors
def stream(
    source: Source, *, seed: int, shuffle: bool = True, epochs: int | None = None,
    map: Callable[[Any], Any] | None = None, random_map: Callable[[Any, np.random.Generator], Any] | None = None,
) -> grain.MapDataset:
  """The records of a source in an order of their own for every epoch, each once an epoch.

  >>> order = stream(["a", "b", "c"], seed=0)  # without an end
  >>> ["".join(order[epoch * 3 + i] for i in range(3)) for epoch in range(2)]
  ['bca', 'acb']
  >>> "".join(stream("abc", seed=0, shuffle=False, epochs=2, map=str.upper))
  'ABCABC'

  Args:
    source: any random-access sequence.
    seed: of the order and of `random_map`. Streams to be mixed want different seeds.
    shuffle: False keeps the source's order.
    epochs: passes over the source; None never ends.
    map: applied to each record when it is read.
    random_map: the same with a generator that depends on the seed and the place in the stream alone, so that an
      augmentation is new in every epoch and the same after a resume.

  Raises:
    ValueError: the source is empty, or `epochs` is no positive number.
  """
  if len(source) == 0:
    raise ValueError("source must hold at least one record; got an empty one")
  if epochs is not None and epochs < 1:
    raise ValueError(f"epochs must be at least 1, or None for no end; got {epochs}")
  order = grain.MapDataset.source(source).seed(seed)
  if shuffle:
    order = order.shuffle()
  # Before anything is cut: a slice or batch of the endless stream may then cross from one epoch into the next.
  order = order.repeat(epochs)
  if map is not None:
    order = order.map(map)
  return order if random_map is None else order.random_map(random_map)


class _Part:
  """One process's share of a stream: of each block of `batch_size` records the `shard_index`-th part, in order."""

  def __init__(self, order: grain.MapDataset, batch_size: int, shard: grain.sharding.ShardOptions):
    self._order, self._batch_size, self._index = order, batch_size, shard.shard_index
    self._local = batch_size // shard.shard_count

  def __len__(self) -> int:
    return min(len(self._order) // self._batch_size * self._local, sys.maxsize)

  def __getitem__(self, index: int) -> Any:
    block, offset = divmod(index, self._local)
    record = self._order[block * self._batch_size + self._index * self._local + offset]
    if record is None:
      raise ValueError("batches need a record at every place of the stream; a filter left a hole. Filter the source "
                       "before it becomes a stream: source = [r for r in source if keep(r)]")
    return record


@explain_errors
def batches(
    source: Source | grain.MapDataset, *, batch_size: int, seed: int | None = None, shuffle: bool = True,
    epochs: int | None = None, map: Callable[[Any], Any] | None = None,
    random_map: Callable[[Any, np.random.Generator], Any] | None = None,
    collate: Callable[[Sequence[Any]], Any] = stack,
    shard: grain.sharding.ShardOptions = ONE_PROCESS,
) -> grain.MapDataset:
  """Batches by step: `batches(...)[t]` is this process's part of the batch of step t.

  A batch may hold the end of one epoch and the start of the next; with `epochs` set, what is left over at the end
  and fills no batch is dropped.

  >>> [batch.tolist() for batch in batches(range(5), batch_size=2, seed=0, shuffle=False, epochs=2)]
  [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4]]

  Args:
    source: a random-access sequence, or a stream (from `stream` or `mix`), which is taken in its own order: `seed`,
      `shuffle`, `epochs`, `map` and `random_map` then belong to the stream.
    batch_size: of the global batch, over all processes.
    seed, shuffle, epochs, map, random_map: as in `stream`.
    collate: a list of this process's records to a batch; by default leaf by leaf into arrays. Tokenization goes here
      (`lambda records: tokenize_pairs(records, tokenizer, lengths=64)`). With several processes it must give the same
      shapes on all, so give it one length, not several to choose from.
    shard: which process this is, of how many; `grain.sharding.ShardByJaxProcess()` asks JAX.

  Returns:
    A Grain MapDataset. Iterate over `.to_iter_dataset()` to read ahead in threads; its state is the step.

  Raises:
    ValueError: the batch does not divide among the processes or is larger than a finite stream, or arguments of
      `stream` come with a stream.
  """
  _check_batch(batch_size, shard)
  if isinstance(source, grain.MapDataset):
    given = {"seed": seed, "epochs": epochs, "map": map, "random_map": random_map}
    if wrong := [name for name, value in given.items() if value is not None]:
      raise ValueError(f"{', '.join(wrong)} must be given to the stream; got it beside a stream that is made already")
    order = source
  else:
    if seed is None:
      raise ValueError("seed must be given for a source; got None (only a stream has its own)")
    order = stream(source, seed=seed, shuffle=shuffle, epochs=epochs, map=map, random_map=random_map)
  if len(order) < batch_size:
    raise ValueError(f"batch_size must be at most the stream's {len(order)} records; got {batch_size}")
  part = grain.MapDataset.source(_Part(order, batch_size, shard))
  return part.batch(batch_size // shard.shard_count, drop_remainder=True, batch_fn=collate)


@explain_errors
def sharded(
    source: Source | grain.MapDataset, batch_size: int, shard: grain.sharding.ShardOptions = ONE_PROCESS, *,
    num_threads: int = 16, buffer_size: int = 64, **kwargs: Any,
) -> grain.IterDataset:
  """`batches` as a stream that reads ahead in threads: for sources whose records take long to read or make.

  The iterator's state, `{"next_index": t}`, is the step, on any number of processes.

  >>> steps = iter(sharded(range(100), 4, seed=0, shuffle=False, num_threads=1, buffer_size=1))
  >>> next(steps).tolist(), next(steps).tolist(), steps.get_state()
  ([0, 1, 2, 3], [4, 5, 6, 7], {'next_index': 2})

  Args:
    source, batch_size, shard: as in `batches`.
    num_threads: that read.
    buffer_size: batches to hold ready.
    **kwargs: others of `batches`.
  """
  options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=buffer_size)
  return batches(source, batch_size=batch_size, shard=shard, **kwargs).to_iter_dataset(options)


@explain_errors
def batch_indices(
    step: int, n: int, *, batch_size: int, seed: int, shard: grain.sharding.ShardOptions = ONE_PROCESS
) -> Int[np.ndarray, " local"]:
  """Which of a source's n records a shuffled run reads in its batch of a step: those of `batches`, without reading.

  >>> whole = batches(range(10), batch_size=4, seed=0)[1]  # the records are their own numbers
  >>> parts = [batch_indices(1, 10, batch_size=4, seed=0, shard=grain.sharding.ShardOptions(i, 2)) for i in (0, 1)]
  >>> np.concatenate(parts).tolist() == whole.tolist()
  True

  Args:
    step: from 0.
    n: the source's length.
    batch_size, seed, shard: as in `batches`.

  Raises:
    ValueError: step is below 0; see `batches`.
  """
  if step < 0:
    raise ValueError(f"step must be at least 0; got {step}")
  if n < 1:
    raise ValueError(f"n must be at least 1; got {n}")
  return np.asarray(batches(range(n), batch_size=batch_size, seed=seed, shard=shard, collate=np.asarray)[step])


@explain_errors
def evaluation_batches(
    source: Source, *, batch_size: int, map: Callable[[Any], Any] | None = None,
    collate: Callable[[Sequence[Any]], Record] = stack, shard: grain.sharding.ShardOptions = ONE_PROCESS,
) -> grain.MapDataset:
  """Every record once, in the source's order: the last batch is filled up with the last record, masked.

  >>> for batch in evaluation_batches([{"x": i} for i in range(5)], batch_size=3):
  ...   print(batch["x"], batch["where"])
  [0 1 2] [ True  True  True]
  [3 4 4] [ True  True False]

  Args:
    source, batch_size, map, collate, shard: as in `batches`.

  Returns:
    A Grain MapDataset of ceil(n / batch_size) dicts: the batch, and `where` [local batch], True for the records that
    count.

  Raises:
    ValueError: the batch does not divide among the processes, or the source is empty.
  """
  _check_batch(batch_size, shard)
  if len(source) == 0:
    raise ValueError("source must hold at least one record; got an empty one")
  n, local = len(source), batch_size // shard.shard_count

  def read(batch: int) -> Record:
    start = batch * batch_size + shard.shard_index * local
    records = [source[min(i, n - 1)] for i in range(start, start + local)]
    out = collate(records if map is None else [map(record) for record in records])
    return {**out, "where": np.arange(start, start + local) < n}

  return grain.MapDataset.range(math.ceil(n / batch_size)).map(read)


def _check_batch(batch_size: int, shard: grain.sharding.ShardOptions) -> None:
  if batch_size < 1 or batch_size % shard.shard_count:
    raise ValueError(f"batch_size must be a positive multiple of the {shard.shard_count} processes; got {batch_size}")


@explain_errors
def mix(
    streams: Sequence[grain.MapDataset], *, weights: Sequence[float] | None = None,
    sizes: Sequence[int] | None = None, temperature: float | None = None,
) -> grain.MapDataset:
  """Streams interleaved in fixed proportions, without chance: 2:1 gives a a b a a b.

  >>> a, b = (stream([name], seed=seed) for seed, name in enumerate("ab"))
  >>> mixed = mix([a, b], weights=[2, 1])
  >>> "".join(mixed[i] for i in range(9))
  'aabaabaab'

  Args:
    streams: endless ones, made with different seeds.
    weights: of each stream, positive; they need not sum to 1 (Grain keeps them to a hundredth of the smallest). Or
    sizes: how many records the source of each stream has, for weights proportional to size ** (1 / temperature):
    temperature: 1 mixes by size, and the larger it is, the more evenly.

  Raises:
    ValueError: neither or both ways are given, the numbers do not fit the streams, or a stream ends.
  """
  if weights is None and sizes is not None and temperature is not None:
    if not temperature > 0:
      raise ValueError(f"temperature must be positive; got {temperature}")
    if any(size <= 0 for size in sizes):
      raise ValueError(f"sizes must be positive; got {list(sizes)}")
    # Relative to the largest, as size ** (1 / temperature) itself overflows at low temperatures.
    weights = [(size / max(sizes)) ** (1 / temperature) for size in sizes]
  elif weights is None or sizes is not None or temperature is not None:
    raise ValueError("mix takes either weights, or sizes and temperature")
  if len(weights) != len(streams) or not streams:
    raise ValueError(f"mix takes one number per stream; got {len(weights)} for {len(streams)} streams")
  if not all(math.isfinite(weight) and weight > 0 for weight in weights):
    raise ValueError(
      f"weights must be positive and finite (leave a stream out in place of weight 0); got {list(weights)}"
    )
  if finite := [i for i, part in enumerate(streams) if len(part) < sys.maxsize]:
    raise ValueError(f"streams must be endless (epochs=None), or the mix would end with the first; {finite} are not")
  return grain.MapDataset.mix(streams, weights=[weight / sum(weights) for weight in weights])


@explain_errors
def to_global(batch: Any, sharding: jax.sharding.Sharding) -> Any:
  """This process's part of a batch as arrays over the whole mesh.

  >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
  >>> batch = to_global({"ids": np.zeros((16, 4), np.int64)}, jax.NamedSharding(mesh, jax.P("data")))
  >>> batch["ids"].shape, tuple(batch["ids"].sharding.spec)
  ((16, 4), ('data',))

  Args:
    batch: a tree of arrays [local batch, ...].
    sharding: of the global arrays; the leading axis is the batch.

  Returns:
    The tree of `jax.Array` [global batch, ...], process p's rows before those of p + 1.

  Raises:
    ValueError: a leaf is no number (its path is named) or an integer that int32 does not hold, or its global batch does
      not divide among the devices.
  """

  def put(path: tuple[Any, ...], leaf: Any) -> jax.Array:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    leaf = np.asarray(leaf)
    if leaf.dtype.kind in "OUSV" and leaf.dtype.name not in ("bfloat16",):
      raise ValueError(f"{name}: only numbers go to devices; got {leaf.dtype} (drop it from the batch first)")
    check_integers(name, leaf)
    shape = (leaf.shape[0] * jax.process_count(), *leaf.shape[1:]) if leaf.ndim else ()
    try:
      sharding.shard_shape(shape)
    except ValueError as e:
      raise ValueError(
        f"{name}: the global batch {shape} does not divide among the devices of {sharding}: {e}"
      ) from None
    return jax.make_array_from_process_local_data(sharding, leaf, shape)

  return jax.tree_util.tree_map_with_path(put, batch)
