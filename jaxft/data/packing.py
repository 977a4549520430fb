"""Several short sequences in one row."""

from collections.abc import Sequence
from typing import Literal

import grain
import numpy as np
from jaxtyping import Int

from jaxft.checks import one_of
from jaxft.signatures import AnyArray, explain_errors, token_ids

_PACKERS = {
  "first_fit": grain.experimental.FirstFitPackIterDataset,
  "best_fit": grain.experimental.BestFitPackIterDataset,
}


@explain_errors
def pack(
    examples: grain.MapDataset | grain.IterDataset, length: int, *, keys: Sequence[str] = ("ids", "loss_mask"),
    algorithm: Literal["first_fit", "best_fit"] = "first_fit", bins: int = 32, seed: int = 0,
) -> grain.IterDataset:
  """Rows of `length` filled with whole sequences; a sequence is never cut.

  Packing reads ahead by as many rows as `bins`, so its position is no step: save the iterator's own state. It comes
  after sharding (each process packs its part of a stream) and before `.batch`.

  >>> examples = [{"ids": np.arange(1, n + 1), "loss_mask": np.ones(n, int)} for n in (3, 2, 2)]
  >>> for row in pack(grain.MapDataset.source(examples), 5):
  ...   print(row["ids"], row["segment_ids"], row["positions"], row["loss_mask"])
  [1 2 3 1 2] [1 1 1 2 2] [0 1 2 0 1] [0 1 1 0 1]
  [1 2 0 0 0] [1 1 0 0 0] [0 1 0 0 0] [0 1 0 0 0]

  Args:
    examples: of dicts whose `keys` are 1-D arrays of one length, at most `length` (tokenize to it).
    length: of a row.
    keys: to pack; the others are dropped. `ids` must be among them.
    algorithm: into the first row with room, or into the one with least room to spare.
    bins: rows that are filled at the same time; more of them waste less.
    seed: of the order in which a group of full rows comes out.

  Returns:
    Dicts of int32 (or the key's dtype) arrays [length]: the keys, `segment_ids` (1, 2, ...; 0 for padding; an empty
    sequence uses one up) and `positions` (from 0 in each segment). In `loss_mask` the first token of each segment is 0:
    nothing before it in its own sequence predicts it.

  Raises:
    ValueError: arguments are out of range; or, while iterating, a sequence is longer than a row or holds an id that is
      none.
  """
  one_of("algorithm", algorithm, _PACKERS)
  if length < 1 or bins < 1:
    raise ValueError(f"length and bins must be at least 1; got {length} and {bins}")
  if "ids" not in keys:
    raise ValueError(f"keys must hold 'ids'; got {list(keys)}")

  def check(example):
    sizes = {key: len(example[key]) for key in keys}
    if len(set(sizes.values())) > 1 or sizes["ids"] > length:
      raise ValueError(f"a sequence to pack must have one length of at most {length} under all keys; got {sizes}")
    token_ids("ids", example["ids"])
    return {key: np.asarray(example[key]) for key in keys}

  def name(row):
    out = {key: row[key] for key in keys}
    for part in ("segment_ids", "positions"):
      out[part] = row[f"ids_{part}"].astype(np.int32)
    if "loss_mask" in out:
      out["loss_mask"] = np.where(out["positions"] == 0, 0, out["loss_mask"]).astype(out["loss_mask"].dtype)
    return out

  examples = examples.map(check)
  if isinstance(examples, grain.MapDataset):
    examples = examples.to_iter_dataset()
  packed = _PACKERS[algorithm](
    examples, length_struct={key: length for key in keys}, num_packing_bins=bins, seed=seed, shuffle_bins=True
  )
  return packed.map(name)


@explain_errors
def pack_texts(
    texts: Sequence[Sequence[int]], length: int, *, rows: int | None = None, multiple: int = 1, start: int = 0,
    slots: int | None = None,
) -> dict[str, Int[np.ndarray, "rows length"]]:
  """The texts of one batch in as few rows as best fit finds, the longest first; every text stays whole.

  A batch of pairs padded to its longest text is mostly padding; packed, it costs what its tokens cost. The texts keep
  their numbers, so that `jaxft.models.encoder.embed_packed` gives their vectors in the given order.

  >>> rows = pack_texts([[1, 2], [3, 4, 5], [6]], 4)
  >>> rows["ids"].tolist(), rows["segment_ids"].tolist()
  ([[3, 4, 5, 6], [1, 2, 0, 0]], [[2, 2, 2, 3], [1, 1, 0, 0]])

  Args:
    texts: the token ids of each, with special tokens; anchors, positives and negatives may follow one another.
    length: of a row; at least that of the longest text.
    rows: how many there are; None takes as many as are needed.
    multiple: without `rows`, round their number up to a multiple of this: a step is compiled for each number anew, and
      a mesh's data axis must divide it.
    start: the number of the first text; of several processes that pack one batch, each gives its own.
    slots: the most texts of a row, as `jaxft.models.encoder.embed_segments` needs them; None lets any number in.

  Returns:
    `ids` (0 at padding) and `segment_ids` (text i is segment start + i + 1; 0 at padding), int32.

  Raises:
    ValueError: a text is empty, longer than a row or holds what is no token id, the rows do not suffice, or multiple,
      start or slots is out of range.
  """
  if multiple < 1:
    raise ValueError(f"multiple must be at least 1; got {multiple}")
  if slots is not None and slots < 1:
    raise ValueError(f"slots must be None or at least 1; got {slots}")
  if not 0 <= start <= np.iinfo(np.int32).max - len(texts):  # segment 0 is padding
    raise ValueError(f"start must be at least 0, and start + {len(texts)} texts fit int32; got {start}")
  sizes = [len(text) for text in texts]
  if not sizes or min(sizes) < 1 or max(sizes) > length:
    raise ValueError(f"texts must have 1 to {length} tokens each (length={length}); got {sorted(set(sizes))}")
  checked = [token_ids(f"texts[{i}]", text) for i, text in enumerate(texts)]
  filled: list[list[int]] = []
  with_room: list[list[int]] = [[] for _ in range(length + 1)]  # numbers of rows, by how many tokens still fit
  for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
    room = next((room for room in range(sizes[i], length + 1) if with_room[room]), None)
    row = len(filled) if room is None else with_room[room].pop()
    if room is None:
      room = length
      filled.append([])
    filled[row].append(i)
    if slots is None or len(filled[row]) < slots:
      with_room[room - sizes[i]].append(row)
  if rows is None:
    rows = -(-len(filled) // multiple) * multiple
  if len(filled) > rows:
    raise ValueError(f"rows must be at least {len(filled)} for these texts in rows of {length}; got {rows}")
  ids, segment_ids = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int32)
  for row, members in enumerate(filled):
    at = 0
    for i in members:
      here = slice(at, at + sizes[i])
      ids[row, here], segment_ids[row, here] = checked[i], start + i + 1
      at += sizes[i]
  return {"ids": ids, "segment_ids": segment_ids}


@explain_errors
def token_budget_batches(
    lengths: Sequence[int] | Int[AnyArray, " examples"], *, max_tokens: int, samples_per_step: int, devices: int = 1,
    seed: int = 0,
) -> list[list[list[Int[np.ndarray, " _"]]]]:
  """Steps of a fixed number of samples, cut into micro-batches of few tokens that weigh alike on every device.

  A step's samples are put, the longest first, into the micro-batch with the fewest tokens. All devices have the same
  number of micro-batches, the least with which none holds more than `max_tokens`. Accumulate them as sums and weights
  (`Mean`), for they differ in tokens.

  >>> for step in token_budget_batches([5, 3, 2, 4, 1, 1], max_tokens=6, samples_per_step=3, devices=1):
  ...   print([micro.tolist() for micro in step[0]])
  [[3], [2, 5]]
  [[0], [1, 4]]

  Args:
    lengths: tokens of each example.
    max_tokens: of a micro-batch.
    samples_per_step: of every step; examples that are left over at the end are dropped.
    devices: which share a step.
    seed: of the order of the examples.

  Returns:
    `steps[step][device][micro]`, the numbers of the examples; a micro-batch may be empty.

  Raises:
    ValueError: a length below 1 or above max_tokens, fewer examples than a step takes, or a number below 1.

  Source: the sampler of InstructLab's training, of Pareja et al. 2024 (arXiv 2412.13337).
  """
  sizes = np.asarray(lengths)
  if max_tokens < 1 or samples_per_step < 1 or devices < 1:
    raise ValueError("max_tokens, samples_per_step and devices must be at least 1; "
                     f"got {max_tokens}, {samples_per_step} and {devices}")
  if sizes.size < samples_per_step:
    raise ValueError(f"lengths must be of at least the {samples_per_step} samples of a step; got {sizes.size}")
  if sizes.min() < 1 or sizes.max() > max_tokens:
    raise ValueError(f"lengths must lie in [1, max_tokens = {max_tokens}]; got {sizes.min()} to {sizes.max()}")
  order = np.random.default_rng(seed).permutation(sizes.size)
  steps = []
  for start in range(0, sizes.size - samples_per_step + 1, samples_per_step):
    samples = order[start : start + samples_per_step]
    samples = samples[np.argsort(-sizes[samples], kind="stable")]
    micros = max(-(-int(sizes[samples].sum()) // (max_tokens * devices)), 1)
    while (bins := _spread(sizes, samples, micros * devices, max_tokens)) is None:
      micros += 1
    steps.append([[np.array(b, np.int64) for b in bins[device::devices]] for device in range(devices)])
  return steps


def _spread(sizes: np.ndarray, samples: np.ndarray, bins: int, most: int) -> list[list[int]] | None:
  """The samples in so many bins; None where one would hold more than `most` tokens."""
  filled, loads = [[] for _ in range(bins)], np.zeros(bins, np.int64)
  for i in samples:
    at = int(loads.argmin())
    loads[at] += sizes[i]
    filled[at].append(int(i))
  return filled if loads.max() <= most else None
