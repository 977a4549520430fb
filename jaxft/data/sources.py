"""`source(name, split)`: any data set by name, as a sequence of records read at random."""

import json
import os
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from jaxft.checks import nearest
from jaxft.data.builders.avatars import Avatars
from jaxft.data.builders.bfcl import Bfcl
from jaxft.data.builders.causal import Causal
from jaxft.data.builders.clipart import Clipart
from jaxft.data.builders.digits import Digits
from jaxft.data.builders.docstrings import Docstrings
from jaxft.data.builders.emoji import EmojiImages
from jaxft.data.builders.emoji_names import EmojiNames
from jaxft.data.builders.fashion_mnist import FashionMnist
from jaxft.data.builders.humaneval import HumanEval
from jaxft.data.builders.image_folder import holds_pictures, image_folder_builder
from jaxft.data.builders.reasoning import reasoning_builder
from jaxft.data.builders.sentiment import Sentiment
from jaxft.data.builders.wordnet import WordNet
from jaxft.data.files.builder import files_builder
from jaxft.data.files.formats import parse_fields
from jaxft.data.files.rows import KINDS, holds_files
from jaxft.data.prepare import Records, UnknownDataset, prepare
from jaxft.hub import PREFIX, on_hub, snapshot
from jaxft.seal import check_open
from jaxft.signatures import explain_errors
from jaxft.stores.copies import local_copy
from jaxft.stores.store import is_url


def _configs(name: str, builder: type[tfds.core.GeneratorBasedBuilder]) -> dict[str, Any]:
  return {f"{name}/{config.name}": builder for config in builder.BUILDER_CONFIGS}


_BUILDERS: dict[str, type[tfds.core.GeneratorBasedBuilder]] = {
  "clipart": Clipart,
  "digits": Digits,
  "docstrings": Docstrings,
  "fashion-mnist": FashionMnist,
  "humaneval": HumanEval,
  "wordnet": WordNet,
  **_configs("avatars", Avatars),
  **_configs("bfcl", Bfcl),
  **_configs("causal", Causal),
  **_configs("emoji", EmojiImages),
  **_configs("emoji-names", EmojiNames),
  **_configs("sentiment", Sentiment),
}


def names() -> list[str]:
  """The names that `source` knows by itself; it takes `reasoning_gym/<task>`, `tfds:<name>` and paths as well.

  >>> [name for name in names() if "/" not in name]  # and sentiment/news, sentiment/tweets, ...
  ['clipart', 'digits', 'docstrings', 'fashion-mnist', 'humaneval', 'wordnet']
  """
  return sorted(_BUILDERS)


def is_place(name: str | os.PathLike) -> bool:
  """Whether `source` takes a name as the path of a file or folder.

  >>> is_place("data/chats.jsonl"), is_place("sentiment/news"), is_place("tfds:mnist")
  (True, False, False)
  """
  text = os.fspath(name)
  return text not in _BUILDERS and not text.startswith(("reasoning_gym/", "tfds:", PREFIX)) and not is_url(text)


@explain_errors
def source(
    name: str | os.PathLike, split: str, *, fields: str | None = None, data_dir: str | os.PathLike | None = None
) -> Records:
  """A split of a data set, prepared on the first call and opened from disk after that.

  >>> records = source("digits", "train[:10]")
  >>> len(records), records[0]["image"].shape, sorted(records[0])
  (10, (8, 8, 1), ['image', 'label'])

  Args:
    name: one of `names()` (`digits`, `docstrings`, `sentiment/news`, ...); `reasoning_gym/<task>`; `tfds:<name>` for
      any TFDS data set, as `tfds:mnist` or `tfds:glue/sst2`; `hf:org/name` for one of a hub (`jaxft.hub`); the path, or
      the URL in an object store (`s3://`, `gs://`), of a file of `jaxft.data.files`, or of a folder of them or that
      `datasets.save_to_disk` wrote, or that TFDS prepared, or of one with a folder of pictures for each class.
    split: a split's name or TFDS's arithmetic on them, as `train[:90%]`. A file is all `train`.
    fields: other names of a file's columns, as `query=anchor,answer=positive`.
    data_dir: the folder of prepared data sets; None takes `datasets` in jaxft's cache folder.

  Returns:
    A random-access sequence of records (dicts), with text as str.

  Raises:
    ValueError: no such data set or split (the nearest are named), or a file with a broken row.
    OSError: an archive cannot be fetched, or the folder not written.
    SealedSplitError: the split is sealed; see `jaxft.seal`.
  """
  return open_split(builder(name, fields=fields, data_dir=data_dir), split)


def open_split(made: tfds.core.DatasetBuilder, split: str) -> Records:
  """A split of a prepared builder; raises as `source` does."""
  check_open(split, list(made.info.splits))
  return Records(made, split)


@explain_errors
def builder(
    name: str | os.PathLike, *, fields: str | None = None, others: bool = False,
    data_dir: str | os.PathLike | None = None,
) -> tfds.core.DatasetBuilder:
  """The prepared builder of a data set (its `info` has features, splits and citation); `source` gives its arguments.

  >>> info = builder("digits").info
  >>> {name: split.num_examples for name, split in info.splits.items()}
  {'train': 1197, 'validation': 300, 'test': 300}

  Args:
    name, fields, data_dir: see `source`.
    others: of a file, keeps the columns that its format does not read, in a field `others`, as JSON.

  Raises:
    ValueError: no such data set (the nearest are named), a file with a broken row, a folder of another kind, or fields
      for what is no file.
    OSError: an archive cannot be fetched, or the folder not written.
  """
  text, names_of = os.fspath(name), parse_fields(fields)
  path = Path(text).expanduser()
  if on_hub(text):
    return files_builder(snapshot(text, "dataset"), fields=names_of, others=others, data_dir=data_dir)
  if is_url(text):
    return builder(local_copy(text), fields=fields, others=others, data_dir=data_dir)
  if is_place(name) and (path.suffix.lower() in KINDS or _holds_files(path)):
    return files_builder(path, fields=names_of, others=others, data_dir=data_dir)
  if fields:
    raise ValueError(f"fields renames the columns of files, of which {text} is none; got {fields!r}")
  if text in _BUILDERS:
    make = _BUILDERS[text]
    config = {"config": text.split("/", 1)[1]} if "/" in text else {}
    return prepare(make, data_dir=data_dir, **config)
  if text.startswith("reasoning_gym/"):
    return reasoning_builder(text.removeprefix("reasoning_gym/"), data_dir=data_dir)
  if text.startswith("tfds:"):
    return _tfds_builder(text.removeprefix("tfds:"), data_dir)
  if path.is_dir():
    if (path / "dataset_info.json").exists():
      _check_features(path)
      return tfds.builder_from_directory(path)
    if holds_pictures(path):
      return image_folder_builder(path, data_dir=data_dir)
    raise ValueError("name must be the folder that TFDS prepared, with its dataset_info.json, or one that holds a "
                     f"folder of pictures for each class, or {', '.join(KINDS)} files; {path} has none of these")
  known = [*names(), "reasoning_gym/<task>", "tfds:<name>", "hf:<org>/<name>"]
  what = "nor a file or folder here" if "/" in text or "." in text else "nor a folder here"
  raise ValueError(f"name must be a data set, a {', '.join(KINDS)} file or a folder of them; {text!r} is no data set "
                   f"{what}; {nearest(text, known)}")


def _holds_files(path: Path) -> bool:
  """Whether a path is a folder of files of records, and not one that TFDS prepared."""
  return path.is_dir() and not (path / "features.json").exists() and holds_files(path)


def _check_features(path: Path) -> None:
  """Raises ValueError where a prepared folder names a class outside TFDS, whose module TFDS would import."""
  try:
    waiting: list[Any] = [json.loads((path / "features.json").read_text(encoding="utf-8"))]
  except (OSError, ValueError, RecursionError) as e:
    raise ValueError(f"{path} is no folder that TFDS prepared: features.json: {e}") from None
  while waiting:
    value = waiting.pop()
    if isinstance(value, dict):
      name = value.get("pythonClassName", "tensorflow_datasets.")
      if not str(name).startswith("tensorflow_datasets."):
        raise ValueError(f"{path}: features.json must name classes of tensorflow_datasets alone; got {name!r:.100}")
    waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _tfds_builder(name: str, data_dir: str | os.PathLike | None) -> tfds.core.DatasetBuilder:
  try:
    return prepare(name, data_dir=data_dir)
  except UnknownDataset:
    known = tfds.list_builders(with_community_datasets=False)
    raise ValueError(f"name must be a TFDS data set after tfds:; got {name!r}; {nearest(name, known)}") from None
