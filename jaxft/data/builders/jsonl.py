"""A JSONL file as a data set, checked line by line: chats, completions, texts, pairs, triples, preferences, and texts
or images with a label or a value."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxft.checks import nearest, one_of
from jaxft.data.images import image_problem
from jaxft.data.prepare import config_of, is_prepared, prepare

# The keys of each format's lines: they tell the format. All hold text but `messages` and `value`, a number; only a
# prompt may be empty. An `image` is the path of a file, from the folder of the JSONL file where it is relative.
FORMATS: dict[str, tuple[str, ...]] = {
  "chat": ("messages",),
  "completion": ("prompt", "completion"),
  "text": ("text",),
  "pairs": ("anchor", "positive"),
  "triples": ("anchor", "positive", "negative"),
  "preferences": ("prompt", "chosen", "rejected"),
  "labels": ("text", "label"),
  "values": ("text", "value"),
  "image labels": ("image", "label"),
  "image values": ("image", "value"),
}
ROLES = ("system", "user", "assistant", "tool")


@dataclasses.dataclass(kw_only=True)
class JsonlConfig(tfds.core.BuilderConfig):
  """A file (by its content's hash, which is the config's name), its format and the keys to leave out."""

  path: str
  format: str
  ignore: tuple[str, ...] = ()


class Jsonl(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """The records of a JSONL file in their order, as the split `train`."""

  name = "jsonl"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    config = config_of(self)
    text = tfds.features.Text()
    turns = tfds.features.Sequence({"role": text, "content": text})
    other = {"messages": turns, "value": tfds.features.Scalar(np.float64)}
    return tfds.core.DatasetInfo(
      builder=self,
      description=f"{config.format} from {Path(config.path).name}",
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(format=config.format),
      features=tfds.features.FeaturesDict({key: other.get(key, text) for key in FORMATS[config.format]}),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # a local file
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    keys, path = FORMATS[config_of(self).format], Path(config_of(self).path)
    read = {"image": lambda name: os.fspath(path.parent / name), "label": str}
    records = (value for _, value, _ in _lines(path))
    yield from enumerate({key: read.get(key, lambda x: x)(record[key]) for key in keys} for record in records)


def jsonl_builder(
    path: str | os.PathLike, *, format: str | None = None, ignore: Sequence[str] = (),
    data_dir: str | os.PathLike | None = None,
) -> tfds.core.DatasetBuilder:
  """A prepared builder of a JSONL file; a file whose content changed is prepared anew.

  Args:
    path: a UTF-8 file with one JSON object a line; empty lines are passed over.
    format: a key of `FORMATS`; None takes the one whose keys the first line has.
    ignore: keys that lines may have beside those of the format, to be left out.
    data_dir: as in `jaxft.data.source`.

  Raises:
    ValueError: the file is missing or empty, the format unknown, or lines are broken: the first is shown with its
      number and reason, the others are counted. Nothing has been written then.
  """
  path = Path(path).expanduser()
  if not path.is_file():
    raise ValueError(f"path must be a JSONL file; there is none at {path}")
  if format is not None:
    one_of("format", format, FORMATS)
  with open(path, "rb") as f:
    content = hashlib.file_digest(f, "sha256").hexdigest()[:24]
  format = format or _detect(path)
  # Images are read later, from where they lie.
  place = [os.fspath(path.parent.resolve())] if "image" in FORMATS[format] else []
  digest = hashlib.sha256(json.dumps([content, format, sorted(ignore), *place]).encode()).hexdigest()[:24]
  config = JsonlConfig(name=digest, path=os.fspath(path.resolve()), format=format, ignore=tuple(ignore))
  if not is_prepared(Jsonl, data_dir=data_dir, config=config):
    check_jsonl(path, format, ignore=ignore)
  return prepare(Jsonl, data_dir=data_dir, config=config)


def check_jsonl(path: str | os.PathLike, format: str, *, ignore: Sequence[str] = ()) -> int:
  """Reads a whole JSONL file against a format and returns its number of records.

  Raises:
    ValueError: a line is no JSON object of the format, its image is none, or there is no line.
  """
  broken, count = [], 0
  for number, value, problem in _lines(Path(path)):
    problem = problem or _problem(value, format, ignore, Path(path).parent)
    count += problem is None
    if problem:
      broken.append((number, problem))
  if broken:
    number, problem = broken[0]
    others = f" ({len(broken) - 1} more broken lines, the next is {broken[1][0]})" if len(broken) > 1 else ""
    raise ValueError(f"{path}, line {number}: {problem}{others}")
  if not count:
    raise ValueError(f"{path}: the file holds no record")
  return count


def _lines(path: Path) -> Iterator[tuple[int, Any, str | None]]:
  """The lines that are not blank: number from 1, parsed value, and what is wrong with it as JSON."""
  with open(path, "rb") as f:
    for number, line in enumerate(f, 1):
      if not line.strip():
        continue
      try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        if not text:  # a byte order mark alone
          continue
        yield number, json.loads(text, object_pairs_hook=_object), None
      except UnicodeDecodeError as e:
        yield number, None, f"not UTF-8 (byte {e.start} of the line)"
      except json.JSONDecodeError as e:  # its own line number would be that within this line
        yield number, None, f"not JSON: {e.msg} at character {e.pos}"
      except (ValueError, RecursionError) as e:
        yield number, None, f"not JSON: {e or 'nested too deep'}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  if len(dict(pairs)) < len(pairs):
    raise ValueError(f"a key occurs twice among {[key for key, _ in pairs]}")
  return dict(pairs)


def _detect(path: Path) -> str:
  """The format that has the first line's keys; of several, the one with most of them."""
  for number, value, problem in _lines(path):
    if problem is None and not isinstance(value, dict):
      problem = f"must be a JSON object; got {type(value).__name__}"
    if problem:
      raise ValueError(f"{path}, line {number}: {problem}")
    fits = [format for format, keys in FORMATS.items() if set(keys) <= set(value)]
    if not fits:
      takes = "; ".join(f"{format}: {', '.join(keys)}" for format, keys in FORMATS.items())
      raise ValueError(f"{path}, line {number}: keys {sorted(value)} are of no format; {takes}")
    return max(fits, key=lambda format: len(FORMATS[format]))
  raise ValueError(f"{path}: the file holds no record")


def _problem(value: Any, format: str, ignore: Sequence[str], folder: Path) -> str | None:
  """What keeps a parsed line from being a record of the format; None if nothing does."""
  keys = FORMATS[format]
  if not isinstance(value, dict):
    return f"must be a JSON object; got {type(value).__name__}"
  if missing := [key for key in keys if key not in value]:
    return f"{format} takes the keys {', '.join(keys)}; {', '.join(missing)} missing from {sorted(value)}"
  if unknown := [key for key in value if key not in keys and key not in ignore]:
    return (f"{format} takes the keys {', '.join(keys)}; unknown: {', '.join(unknown)} ({nearest(unknown[0], keys)}; "
            "take them out of the file, or read it by jaxft.data.builders.jsonl.jsonl_builder, which can ignore keys)")
  if format == "chat":
    return _chat_problem(value["messages"])
  for key in keys:
    if key == "value":
      if not isinstance(value[key], int | float) or isinstance(value[key], bool) or not math.isfinite(value[key]):
        return f"value must be a finite number; got {value[key]!r}"
      continue
    if key == "label" and isinstance(value[key], int):
      continue
    if not isinstance(value[key], str):
      return f"{key} must be text; got {type(value[key]).__name__}"
    if (lone := _lone_surrogate(value[key])) is not None:
      return f"{key} {lone}"
    if not value[key].strip() and key != "prompt":
      return f"{key} is empty"
    if key == "image" and (problem := image_problem(folder / value[key])) is not None:
      return problem
  return None


def _chat_problem(messages: Any) -> str | None:
  if not isinstance(messages, list) or not messages:
    return "messages must be a list of at least one message"
  for i, message in enumerate(messages):
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
      got = sorted(message) if isinstance(message, dict) else type(message).__name__
      return f"messages[{i}] must have the keys role and content; got {got}"
    if message["role"] not in ROLES:
      return f"messages[{i}] role must be one of {', '.join(ROLES)}; got {message['role']!r}"
    if not isinstance(message["content"], str):
      return f"messages[{i}] content must be text; got {type(message['content']).__name__}"
    if (lone := _lone_surrogate(message["content"])) is not None:
      return f"messages[{i}] content {lone}"
  if all(message["role"] != "assistant" for message in messages):
    return "messages has no turn of the assistant, so nothing to learn"
  return None


def _lone_surrogate(text: str) -> str | None:
  r"""What is wrong with a text that no encoding can hold: JSON lets half of a pair, as "\ud800", stand alone."""
  try:
    text.encode()
  except UnicodeEncodeError as e:
    return f"is not valid Unicode: a lone surrogate, \\u{ord(text[e.start]):04x}, at character {e.start}"
  return None
