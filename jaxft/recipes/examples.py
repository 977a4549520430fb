"""From a data set's records to the batches of a run: which records, tokenized how, in which order."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import grain
import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from jaxft.data import (
  batches,
  builder,
  pack,
  stream,
  tokenize_chats,
  tokenize_completions,
  tokenize_pairs,
  tokenize_texts,
)
from jaxft.data.images import read_image
from jaxft.data.packed_pairs import PairPacking, tokenize_packed_pairs
from jaxft.data.sources import open_split
from jaxft.evaluation.embed import embed_texts
from jaxft.formats.pretrained import Pretrained
from jaxft.models.efficientnet import EfficientNetConfig
from jaxft.models.vision import VisionConfig
from jaxft.recipes.forms.labels import Target
from jaxft.recipes.options import Examples, Optimization
from jaxft.recipes.tasks import Embed, column
from jaxft.together import is_first
from jaxft.training.mesh import rows_of_process

Records = Sequence[Mapping[str, Any]]
Collate = Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]
BUCKETS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class Subset(Sequence):
  """Some of the records of a sequence."""

  def __init__(self, records: Records, indices: Iterable[int]):
    self._records, self._indices = records, [int(i) for i in indices]

  @property
  def features(self) -> Any:
    """What TFDS says of the fields; empty where the records are not its own."""
    return getattr(self._records, "features", {})

  def __len__(self) -> int:
    return len(self._indices)

  # No slices, as of the records themselves.
  def __getitem__(self, i: int) -> Mapping[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
    return self._records[self._indices[i]]


class Splits(NamedTuple):
  """The records of a run.

  Attributes:
    train: to train on.
    validation: to validate on; None: none.
    version: of the data set that holds them.
    control: of another, by which one sees what is forgotten; None: none.
  """

  train: Records
  validation: Records | None
  version: str
  control: Records | None = None


def read_splits(name: str, options: Examples, *, others: bool = False) -> Splits:
  """The records of a run; `others` as of `jaxft.data.builder`.

  Raises:
    ValueError: no such data set or split, a broken file, or nothing left to train on.
  """
  if not 0 <= options.holdout < 1:
    raise ValueError(f"holdout must lie in [0, 1); got {options.holdout}")
  made = builder(name, fields=options.fields, others=others)
  version, control = made.info.full_name, None if options.control is None else _control(options.control, others)
  records = open_split(made, options.split)
  if options.validation is not None:
    return Splits(records, open_split(made, options.validation), version, control)
  if "validation" in made.info.splits:
    return Splits(records, open_split(made, "validation"), version, control)
  held = max(1, round(options.holdout * len(records))) if options.holdout and len(records) > 1 else 0
  if not held:
    return Splits(records, None, version, control)
  # At random, because files are often sorted; by a fixed seed, so that no run validates on what another was tuned on.
  order = np.random.default_rng(0).permutation(len(records))
  return Splits(Subset(records, np.sort(order[held:])), Subset(records, np.sort(order[:held])), version, control)


def _control(name: str, others: bool) -> Records:
  """All records of a data set's test split, or of the first that there is of validation and train."""
  made = builder(name, others=others)
  split = next((split for split in ("test", "validation") if split in made.info.splits), "train")
  return open_split(made, split)


class Renamed(Sequence):
  """Records with other names of their fields; those without one are left out."""

  def __init__(self, records: Records, fields: Mapping[str, str]):
    self._records, self._fields = records, fields

  def __len__(self) -> int:
    return len(self._records)

  # No slices, as of the records themselves.
  def __getitem__(self, i: int) -> Mapping[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
    record = self._records[i]
    return {own: record[theirs] for theirs, own in self._fields.items()}


def as_pairs(records: Records) -> Records:
  """Questions and answers as the pairs that an encoder learns from; other records as they are."""
  if {"question", "answer"} <= {*records[0]} and "anchor" not in records[0]:
    return Renamed(records, {"question": "anchor", "answer": "positive"})
  return records


class Guided(Sequence):
  """Records with the guide's vector of each of their texts beside it, as `guide/<key>`; embedded once, here."""

  def __init__(self, records: Records, tokenizer: Tokenizer, embed: Embed, *, max_length: int):
    self._records = records
    self._vectors = {
        key: embed_texts(embed, column(records, key), tokenizer, max_length=max_length,
                         progress=f"guide: {key}" if is_first() else None)
        for key in keys_of(records)
    }

  def __len__(self) -> int:
    return len(self._records)

  # No slices, as of the records themselves.
  def __getitem__(self, i: int) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
    return {**self._records[i], **{f"guide/{key}": vectors[i] for key, vectors in self._vectors.items()}}


def keys_of(records: Records) -> tuple[str, ...]:
  """The texts of pairs or triples.

  Raises:
    ValueError: the records are neither.
  """
  first = records[0]
  if "anchor" not in first or "positive" not in first:
    raise ValueError("an encoder learns from pairs (fields anchor, positive and perhaps negative), or from text and a "
                     "label or value by --loss cross_entropy, supcon or mse; got the fields " + ", ".join(first))
  return ("anchor", "positive", "negative") if "negative" in first else ("anchor", "positive")


def scored_keys(records: Records) -> tuple[str, ...]:
  """The texts of scored pairs.

  Raises:
    ValueError: the records are none.
  """
  if missing := [name for name in ("sentence1", "sentence2", "score") if name not in records[0]]:
    raise ValueError(f"loss cosent learns from pairs with a score (fields sentence1, sentence2, score); there is no "
                     f"{', '.join(missing)} among {', '.join(records[0])}")
  return ("sentence1", "sentence2")


def lengths_up_to(longest: int, one: bool = False) -> list[int]:
  """The lengths that batches are padded to: a step is compiled once for each of them; `one` takes the longest alone."""
  if longest < 2:
    raise ValueError(f"max_length must be at least 2; got {longest}")
  return [longest] if one else [*(n for n in BUCKETS if n < longest), longest]


def pair_collate(
    model: Pretrained, keys: Sequence[str], *, max_length: int, one_length: bool = False,
    packing: PairPacking | None = None,
) -> Collate:
  """Records of pairs to `{key: {ids, mask}}`, and their `guide` vectors where they have them.

  Batches are padded to one of a few lengths, or all to `max_length`, as where processes pad parts of the same batch; or
  texts share rows by a `packing`.
  """
  _, tokenizer = model.text_encoder()
  lengths, pad = lengths_up_to(max_length, one_length), tokenizer.token_to_id("[PAD]") or 0

  def collate(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = (
        tokenize_pairs(records, tokenizer, lengths=lengths, keys=tuple(keys), pad_id=pad) if packing is None else
        tokenize_packed_pairs(records, tokenizer, packing))
    if "score" in records[0]:
      out["score"] = np.array([r["score"] for r in records], np.float32)
    for key in keys:
      if f"guide/{key}" in records[0]:
        out[key] = {**out[key], "guide": np.stack([r[f"guide/{key}"] for r in records])}
    return out

  return collate


def target_collate(
    model: Pretrained, target: Target, *, max_length: int, one_length: bool = False
) -> Collate:
  """Records of a `text` or `image` and a target to `ids` and `mask`, or `images`, and `target`.

  `one_length` as of `pair_collate`.
  """
  read = input_collate(model, max_length=max_length, one_length=one_length)
  return lambda records: {**read(records), "target": target.of(records)}


def input_collate(model: Pretrained, *, max_length: int, one_length: bool = False) -> Collate:
  """Records of a `text` or `image` to `ids` and `mask`, or `images`; `one_length` as of `pair_collate`."""
  if model.kind == "vision":
    config = cast(VisionConfig | EfficientNetConfig, model.config)
    read = lambda image: read_image(image, config.image_size, config.framing)
    return lambda records: {"images": np.stack([read(image) for image in column(records, "image")])}
  _, tokenizer = model.text_encoder()
  lengths, pad = lengths_up_to(max_length, one_length), tokenizer.token_to_id("[PAD]") or 0
  return lambda records: dict(tokenize_texts(column(records, "text"), tokenizer, lengths=lengths, pad_id=pad))


def language_collate(
    model: Pretrained, first: Mapping[str, Any], *, max_length: int, one_length: bool = False
) -> Collate:
  """Records to `ids`, `mask` and `loss_mask`; the fields of the first record say what kind they are.

  - `messages`: a chat; the loss is on the assistant's turns.
  - `prompt`, `completion`: the loss is on the completion.
  - `question`, `answer`: a chat of two turns where the model has a chat template, otherwise prompt and completion.
  - `text`: the loss is on all of it.

  `one_length` as of `pair_collate`.

  Raises:
    ValueError: none of these, a chat for a model without a chat template, or texts longer than the model's context.
  """
  (config, tokenizer), template, fields = model.text_decoder(), model.chat_template, dict(first)
  if max_length > model.max_length:
    raise ValueError(f"max_length may be at most the context of {model.name}, {model.max_length}; got {max_length}")
  shared = {"lengths": lengths_up_to(max_length, one_length), "pad_id": config.pad_id or 0}
  completions = lambda records: tokenize_completions(records, tokenizer, eos_id=config.eos_id, **shared)
  chats = lambda records, template: tokenize_chats(records, tokenizer, template, **special_tokens(model), **shared)
  if "messages" in fields:
    if template is None:
      raise ValueError(f"{model.name} has no chat template, and the data are chats")
    return lambda records: chats([{"messages": turns_of(r["messages"])} for r in records], template)
  if "prompt" in fields and "completion" in fields:
    return completions
  if "question" in fields and "answer" in fields:
    if template is None:
      return lambda records: completions([{"prompt": r["question"], "completion": r["answer"]} for r in records])
    turns = lambda r: [{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["answer"]}]
    return lambda records: chats([{"messages": turns(r)} for r in records], template)
  if "text" in fields:
    return lambda records: completions([{"prompt": "", "completion": r["text"]} for r in records])
  raise ValueError("a decoder learns from chats (field messages), from prompt and completion, question and answer, or "
                   f"text; got the fields {', '.join(fields)}")


def turns_of(messages: Any) -> list[dict[str, Any]]:
  """A chat as a list of turns, from a list of them or, as TFDS gives it, from a dict of columns."""
  if isinstance(messages, Mapping):
    return [dict(zip(messages, turn, strict=True)) for turn in zip(*messages.values(), strict=True)]
  return [dict(turn) for turn in messages]


def special_tokens(model: Pretrained) -> dict[str, str]:
  """The special tokens by the names that chat templates use, such as `bos_token`."""
  config, tokenizer = model.text_decoder()
  ids = {"bos_token": config.bos_id, "eos_token": config.eos_id}
  tokens = {name: tokenizer.id_to_token(i) for name, i in ids.items() if i is not None}
  return {name: token for name, token in tokens.items() if token is not None}


def training_batches(
    records: Records, collate: Collate, examples: Examples, optimization: Optimization, mesh: Mesh | None = None
) -> grain.MapDataset | grain.DatasetIterator:
  """Endless batches for `jaxft.training.fit`: by the step, or an iterator where rows are packed.

  With several processes each reads its own rows of every batch, as the mesh says.
  """
  size, seed = optimization.batch_size, optimization.seed
  if not examples.pack:
    shard = grain.sharding.ShardOptions(*rows_of_process(mesh))
    return batches(records, batch_size=size, seed=seed, collate=collate, shard=shard)

  def unpadded(record: Mapping[str, Any]) -> dict[str, Any]:
    row = collate([record])
    length = int(row["mask"].sum())
    return {key: row[key][0, :length] for key in ("ids", "loss_mask")}

  rows = pack(stream(records, seed=seed, map=unpadded), examples.max_length, seed=seed)
  return iter(rows.map(lambda row: {k: row[k] for k in ("ids", "loss_mask", "segment_ids")}).batch(size))
