"""Scores of responses under models that do not train, computed once and kept: one model in memory while tuning."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tokenizers import Tokenizer

from jaxft.data import with_computed
from jaxft.data.computed import OfOthers, WithComputed
from jaxft.data.position import fingerprint
from jaxft.fetch import home
from jaxft.formats.pretrained import Pretrained, load
from jaxft.recipes.examples import Collate, Records
from jaxft.recipes.preference.losses import Preference
from jaxft.recipes.preference.objective import Scores, score_function
from jaxft.recipes.preference.records import collate_of
from jaxft.together import is_first
from jaxft.training.checksums import checksum
from jaxft.training.mesh import place_batch, rows_of_process, under_mesh

Score = Callable[[Any, Any], Scores]


def with_reference(
    records: Records, loss: Preference, score: Score, params: Any, collate: Collate, *, batch_size: int,
    mesh: Mesh | None = None, identity: Any = None,
) -> WithComputed:
  """Records with `reference`, the scores `[sides]` of their responses under the params.

  With an identity they are kept in jaxft's cache folder, and read from there by the next run with the same records and
  the same reference, whatever it learns.

  Args:
    records: as of `records_of`.
    loss: which says whether sums or averages are scored.
    score: as of `score_function`.
    params: of the reference: for adapters the model before its first step, which is the base.
    collate: records to batches.
    batch_size: rows a pass.
    mesh: where the params lie; with several processes each scores its rows, and nothing is kept.
    identity: what the scores come from besides the records, as of `fingerprint`; None keeps nothing.

  Raises:
    ValueError: a score is not finite; the cached file is broken.
    OSError: the cache folder cannot be written.
  """
  index, parts = rows_of_process(mesh)
  everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())

  def scored(params: Any, batch: Any) -> Any:
    with under_mesh(mesh):
      return score(params, batch).of(loss.score)

  compiled = jax.jit(scored, out_shardings=everywhere)

  def compute(batch: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    own = len(batch) // parts
    made = collate(batch[index * own:(index + 1) * own])
    inputs = {name: made[name] for name in ("ids", "mask", "loss_mask")}
    return {"reference": np.asarray(compiled(params, place_batch(inputs, mesh)), np.float32)}

  return kept_beside(records, compute, batch_size=batch_size, identity=identity if parts == 1 else None)


def kept_beside(records: Records, compute: Any, *, batch_size: int, identity: Any) -> WithComputed:
  """`with_computed`, kept in jaxft's cache folder where there is an identity and one process; see there.

  Raises:
    ValueError: a number is not finite; the cached file is broken.
    OSError: the cache folder cannot be written.
  """
  cache = None
  if identity is not None and jax.process_count() == 1:
    # In the name also how many: the content itself is compared when the file is read.
    key = fingerprint({"of": identity, "records": len(records), "first": repr(records[0]), "last": repr(records[-1])})
    cache = home() / "references" / f"{key}.npz"
  try:
    return with_computed(records, compute, batch_size=batch_size, cache=cache, identity=identity)
  except OfOthers:  # records that differ in the middle alone
    assert cache is not None
    cache.unlink()
    return with_computed(records, compute, batch_size=batch_size, cache=cache, identity=identity)


class Reference:
  """The models that responses are compared with, and what tells their scores from those of others."""

  def __init__(
      self, loss: Preference, score: Score, model: Pretrained, params: Any, made_of: Any, *, max_length: int,
      length_alpha: float = 1.0,
  ):
    self.loss, self.score, self.model, self.params = loss, score, model, params
    self.made_of, self.max_length, self.length_alpha = made_of, max_length, length_alpha

  def beside(self, records: Records, *, batch_size: int, mesh: Mesh | None, one_length: bool) -> WithComputed:
    """The records with their scores; see `with_reference`."""
    collate = collate_of(
        self.loss, self.model, records[0], max_length=self.max_length, one_length=one_length)
    identity = {"weights": self.made_of, "length": self.max_length, "score": self.loss.score, "form": 1,
                "tokenizer": digest(self.model.tokenizer), "template": self.model.chat_template}
    if self.length_alpha != 1:
      identity["length_alpha"] = self.length_alpha
    return with_reference(
        records, self.loss, self.score, self.params, collate, batch_size=batch_size, mesh=mesh, identity=identity)


def digest(tokenizer: Tokenizer | None) -> str | None:
  """What tells a tokenizer from others."""
  return None if tokenizer is None else fingerprint(tokenizer.to_str())


def named(
    name: str, loss: Preference, own: Pretrained, *, dtype: Any, mesh: Mesh | None, max_length: int,
    length_alpha: float = 1.0,
) -> Reference:
  """A reference of another name, on one device.

  Raises:
    ValueError: it is no decoder, or has another tokenizer than the model where sums are compared.
  """
  model = load(name)
  config, tokenizer = model.text_decoder()
  if loss.score == "sum" and digest(tokenizer) != digest(own.tokenizer):
    raise ValueError(f"reference must have the tokenizer of {own.name}, whose log-probabilities are compared with its "
                     f"own; {name} has another")
  params = model.params if mesh is None else jax.device_put(model.params, jax.local_devices()[0])
  score = score_function(config, length_alpha=length_alpha, dtype=dtype, remat="none")
  return Reference(loss, score, model, params, [checksum(model.params), np.dtype(dtype).name],
                   max_length=min(max_length, model.max_length), length_alpha=length_alpha)


def with_references(
    records: Records, references: Sequence[Reference], *, batch_size: int, mesh: Mesh | None, one_length: bool
) -> WithComputed:
  """Records with the mean of the scores of all references."""
  found = [reference.beside(records, batch_size=batch_size, mesh=mesh, one_length=one_length)
           for reference in references]
  scores = np.mean([x.columns["reference"] for x in found], axis=0)
  if is_first():
    print(f"jaxft: reference: {len(records):,} records scored once, by {len(references)} "
          f"{'model' if len(references) == 1 else 'models'}", file=sys.stderr)
  return WithComputed(records, {"reference": scores})
