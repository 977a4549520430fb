"""From the rows of a file to records of one of the library's own formats, each checked."""

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxft.data.files.formats import FORMATS, OWN, check_spelling, detect, rename
from jaxft.data.files.rows import KINDS, rows_of
from jaxft.data.images import image_problem

ROLES = ("system", "user", "assistant", "tool")
NUMBERS = ("value", "score")
OTHERS = "others"


class Reading(NamedTuple):
  """How the files of a data set are read.

  Attributes:
    format: of the rows, a key of `FORMATS`.
    fields: other names of columns, as of `formats.rename`.
    others: whether the columns that the format does not read are kept: as JSON, in one field, `OTHERS`.
  """

  format: str
  fields: Mapping[str, str] = {}
  others: bool = False

  @property
  def own(self) -> str:
    """The format of the records."""
    return FORMATS[self.format].into or self.format

  @property
  def columns(self) -> tuple[str, ...]:
    """What is read of a row."""
    return (*FORMATS[self.format].columns, *FORMATS[self.format].optional)


def reading_of(file: Path, *, format: str | None, fields: Mapping[str, str], others: bool = False) -> Reading:
  """The format that the columns of the first row tell; `others` as of `Reading`.

  Raises:
    ValueError: they are of no format or of two, or there is no row; file and place are named.
  """
  for where, row, problem in rows_of(file):
    if problem is None and not isinstance(row, dict):
      problem = f"must be a JSON object; got {type(row).__name__}"
    if problem is not None:
      raise ValueError(f"{file}, {where}: {problem}")
    try:
      renamed = rename(row, fields)
      columns = list(renamed)
      format = format or detect(columns, renamed, others=others)
      check_spelling(format, columns)
    except ValueError as e:
      raise ValueError(f"{file}, {where}: {e}") from None
    return Reading(format, fields, others)
  raise ValueError(f"{file}: the file holds no record")


def records(file: Path, reading: Reading, left_out: Collection[str] = ()) -> Iterator[dict[str, Any]]:
  """The records of a file that `check` has found whole, without the columns left out."""
  for _, row, _ in rows_of(file):
    record = _record(row, reading, file)
    if reading.others:
      record[OTHERS] = json.dumps({name: row[name] for name in _others(row, reading) if name not in left_out})
    yield record


def with_others(record: Mapping[str, Any]) -> dict[str, Any]:
  """A record with the columns that its format does not read, where they were kept; of one name its own stays."""
  own = {name: value for name, value in record.items() if name != OTHERS}
  return own | {name: value for name, value in json.loads(record.get(OTHERS, "{}")).items() if name not in own}


def check(file: Path, reading: Reading) -> dict[str, bool]:
  """Reads a whole file and returns the columns of its rows that are not read, in order, and whether each is kept.

  Raises:
    ValueError: a row is none of the format, or its image is none, or there is none: the first is shown with its place
      and reason, the others are counted.
  """
  broken, count, others = [], 0, dict[str, bool]()
  for where, row, problem in rows_of(file):
    problem = problem or _problem(row, reading, file)
    count += problem is None
    if problem:
      broken.append((where, problem))
    else:
      others |= {name: others.get(name, reading.others) and _in_json(row[name]) for name in _others(row, reading)}
  if broken:
    where, problem = broken[0]
    more = ""
    if len(broken) > 1:
      kind, _, number = broken[1][0].partition(" ")
      more = f" ({len(broken) - 1} more broken {kind}s, the next is {number})"
    raise ValueError(f"{file}, {where}: {problem}{more}")
  if not count:
    raise ValueError(f"{file}: the file holds no record")
  return others


def _others(row: Mapping[str, Any], reading: Reading) -> list[str]:
  """The columns of a row, by their own names, that are not read."""
  return [name for name in row if reading.fields.get(name, name) not in reading.columns]


def _in_json(value: Any) -> bool:
  try:
    return json.loads(json.dumps(value)) == value or value != value  # a NaN is none of its own equals
  except (TypeError, ValueError, RecursionError):
    return False


def _record(row: Mapping[str, Any], reading: Reading, file: Path) -> dict[str, Any]:
  own = OWN[reading.own]
  made = _converted(rename(row, reading.fields), reading)
  plain = {"image": lambda name: os.fspath(file.parent / name), "label": str, **dict.fromkeys(NUMBERS, float),
           **dict.fromkeys(own.turns, _turns), **dict.fromkeys(own.truths, _truth)}
  return {key: plain.get(key, lambda x: x)(made[key]) for key in own.columns}


def _converted(row: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
  """A row of the library's own format; ValueError where it is none of that which it should have."""
  return FORMATS[reading.format].convert({name: value for name, value in row.items() if name in reading.columns})


def _turns(messages: Any) -> list[dict[str, str]]:
  return [{"role": turn["role"], "content": turn["content"]} for turn in messages]


def _problem(row: Any, reading: Reading, file: Path) -> str | None:
  """What keeps a row from being a record of the format; None if nothing does."""
  form = FORMATS[reading.format]
  if not isinstance(row, dict):
    return f"must be a JSON object; got {type(row).__name__}"
  try:
    row = rename(row, reading.fields)
    if missing := [key for key in form.columns if key not in row]:
      return (f"{reading.format} takes the keys {', '.join(form.columns)}; {', '.join(missing)} missing from "
              f"{sorted(row)}")
    made = _converted(row, reading)
  except ValueError as e:
    return str(e)
  if reading.own == "chat":
    return _chat_problem(made["messages"])
  of_text = KINDS.get(file.suffix.lower()) in (KINDS[".csv"], KINDS[".tsv"])  # where every cell is
  own = OWN[reading.own]
  for key in own.columns:
    if key in own.turns:
      problem = _turns_problem(key, made[key]) or (None if key == "prompt" else _answer_problem(key, made[key]))
    elif key in own.truths:
      given = made[key]
      problem = None if _truth(given) is not None else f"{key} must be true or false; got {given!r:.60}"
    else:
      problem = _value_problem(key, made[key], of_text, file.parent)
    if problem is not None:
      return problem
  return None


def _value_problem(key: str, value: Any, of_text: bool, folder: Path) -> str | None:
  if key in NUMBERS:
    if of_text and isinstance(value, str):
      try:
        value = float(value)
      except ValueError:
        pass
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
      return f"{key} must be a finite number; got {value!r:.60}"
    return None
  if key == "label" and isinstance(value, int):
    return None
  if not isinstance(value, str):
    return f"{key} must be text; got {type(value).__name__}"
  if (lone := _lone_surrogate(value)) is not None:
    return f"{key} {lone}"
  if not value.strip() and key != "prompt":
    return f"{key} is empty"
  return image_problem(folder / value) if key == "image" else None


def _truth(value: Any) -> bool | None:
  """True or False, as files write them; None for anything else."""
  known = {"true": True, "false": False, "1": True, "0": False}
  if isinstance(value, str):
    return known.get(value.strip().lower())
  return bool(value) if isinstance(value, bool | int) and value in (0, 1) else None


def _answer_problem(name: str, turns: list[Any]) -> str | None:
  """Responses are one turn of the assistant, with text in it; earlier ones are of the prompt."""
  if len(turns) != 1 or turns[0]["role"] != "assistant":
    roles = ", ".join(turn["role"] for turn in turns)
    return f"{name} must be one turn of the assistant, after those of the prompt; got {roles}"
  return None if turns[0]["content"].strip() else f"{name} is empty"


def _chat_problem(messages: Any) -> str | None:
  if (problem := _turns_problem("messages", messages)) is not None:
    return problem
  if all(message["role"] != "assistant" for message in messages):
    return "messages has no turn of the assistant, so nothing to learn"
  return None


def _turns_problem(name: str, messages: Any) -> str | None:
  if not isinstance(messages, list) or not messages:
    return f"{name} must be a list of at least one message"
  for i, message in enumerate(messages):
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
      got = sorted(message) if isinstance(message, dict) else type(message).__name__
      return f"{name}[{i}] must have the keys role and content; got {got}"
    if message["role"] not in ROLES:
      return f"{name}[{i}] role must be one of {', '.join(ROLES)}; got {message['role']!r}"
    if not isinstance(message["content"], str):
      return f"{name}[{i}] content must be text; got {type(message['content']).__name__}"
    if (lone := _lone_surrogate(message["content"])) is not None:
      return f"{name}[{i}] content {lone}"
  return None


def _lone_surrogate(text: str) -> str | None:
  r"""What is wrong with a text that no encoding can hold: JSON lets half of a pair, as "\ud800", stand alone."""
  try:
    text.encode()
  except UnicodeEncodeError as e:
    return f"is not valid Unicode: a lone surrogate, \\u{ord(text[e.start]):04x}, at character {e.start}"
  return None
