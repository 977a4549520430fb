"""Several short sequences in one row, and the mask that keeps them apart."""

from collections.abc import Sequence
from typing import Literal

import grain
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

_PACKERS = {
  "first_fit": grain.experimental.FirstFitPackIterDataset,
  "best_fit": grain.experimental.BestFitPackIterDataset,
}


def pack(
    examples: grain.MapDataset | grain.IterDataset, length: int, *, keys: Sequence[str] = ("ids", "loss_mask"),
    algorithm: Literal["first_fit", "best_fit"] = "first_fit", bins: int = 32, seed: int = 0,
) -> grain.IterDataset:
  """Rows of `length` filled with whole sequences; a sequence is never cut.

  Packing reads ahead by as many rows as `bins`, so its position is no step: save the iterator's own state. It comes
  after sharding (each process packs its part of a stream) and before `.batch`.

  Args:
    examples: of dicts whose `keys` are 1-D arrays of one length, at most `length` (tokenize to it).
    length: of a row.
    keys: to pack; the others are dropped. `ids` must be among them.
    algorithm: into the first row with room, or into the one with least room to spare.
    bins: rows that are filled at the same time; more of them waste less.
    seed: of the order in which a group of full rows comes out.

  Returns:
    Dicts of int32 (or the key's dtype) arrays [length]: the keys, `segment_ids` (1, 2, ...; 0 for padding) and
    `positions` (from 0 in each segment). In `loss_mask` the first token of each segment is 0: nothing before it in
    its own sequence predicts it.

  Raises:
    ValueError: arguments are out of range; or, while iterating, a sequence is longer than a row.
  """
  if algorithm not in _PACKERS:
    raise ValueError(f"algorithm must be one of {', '.join(_PACKERS)}; got {algorithm!r}")
  if length < 1 or bins < 1:
    raise ValueError(f"length and bins must be at least 1; got {length} and {bins}")
  if "ids" not in keys:
    raise ValueError(f"keys must hold 'ids'; got {list(keys)}")

  def check(example):
    sizes = {key: len(example[key]) for key in keys}
    if len(set(sizes.values())) > 1 or sizes["ids"] > length:
      raise ValueError(f"a sequence to pack must have one length of at most {length} under all keys; got {sizes}")
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


def segment_mask(segment_ids: Int[Array, "batch length"]) -> Bool[Array, "batch 1 length length"]:
  """Where a query (third axis) may attend to a key (last): in its own segment, not after itself, not to padding."""
  same = segment_ids[:, :, None] == segment_ids[:, None, :]
  causal = jnp.tril(jnp.ones((segment_ids.shape[1],) * 2, bool))
  return (same & causal & (segment_ids != 0)[:, :, None])[:, None]
