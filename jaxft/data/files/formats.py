"""What the columns of a file mean: the formats that records come in, and what each becomes here.

A format is told by its columns. The first table holds what the library's own functions read; the second what others
write, each with the format of the first that its rows are turned into.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxft.checks import nearest

Row = dict[str, Any]


class Format(NamedTuple):
  """A format.

  Attributes:
    columns: that it must have.
    task: what it is for, as `jaxft finetune --task` has it; None: objectives of one's own.
    example: a valid row.
    optional: columns that it may have.
    into: the format that its rows become; None where it is one of the library's own.
    convert: `row -> row` of that format, raising ValueError where a row is none of this one.
    turns: columns that hold a list of turns, each with `role` and `content`; of formats with the same columns, these
      tell which one a row has.
    truths: columns that hold true or false.
  """

  columns: tuple[str, ...]
  task: str | None
  example: Row
  optional: tuple[str, ...] = ()
  into: str | None = None
  convert: Callable[[Row], Row] = dict
  turns: tuple[str, ...] = ()
  truths: tuple[str, ...] = ()


_ROLES = {
  "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "tool": "tool",
  "observation": "tool", "function_response": "tool"}


def _from_sharegpt(row: Row) -> Row:
  """`{"from": "human", "value": "..."}` as `{"role": "user", "content": "..."}`."""
  turns = row["conversations"]
  if not isinstance(turns, list) or not all(isinstance(t, Mapping) and {"from", "value"} <= {*t} for t in turns):
    raise ValueError("conversations must be a list of turns, each with from and value")
  if strange := [turn["from"] for turn in turns if turn["from"] not in _ROLES]:
    raise ValueError(f"conversations: from must be one of {', '.join(_ROLES)}; got {strange[0]!r:.60}")
  return {"messages": [{"role": _ROLES[turn["from"]], "content": turn["value"]} for turn in turns]}


def _from_alpaca(row: Row) -> Row:
  """The instruction and, after an empty line, its input are the question."""
  more = row.get("input") or ""
  for name in ("instruction", "input", "output"):
    if not isinstance(row.get(name) or "", str):
      raise ValueError(f"{name} must be text; got {type(row[name]).__name__}")
  return {"question": f"{row['instruction']}\n\n{more}" if more.strip() else row["instruction"],
          "answer": row["output"]}


def _prompt_within(row: Row) -> Row:
  """What both texts, or both lists of turns, begin with is the prompt; a text is cut before the last white space."""
  chosen, rejected = row["chosen"], row["rejected"]
  if type(chosen) is not type(rejected) or not isinstance(chosen, str | list):
    raise ValueError("chosen and rejected must both be text, or both lists of turns")
  if chosen == rejected:
    raise ValueError("chosen and rejected are the same, so that no prompt is sure; give one in a column prompt")
  pairs = zip(chosen, rejected, strict=False)
  same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)))
  if isinstance(chosen, str):
    if same == min(len(chosen), len(rejected)) or not chosen[same].isspace() or not rejected[same].isspace():
      # Not within a word, nor after the space that belongs to the next one.
      same = next((i for i in range(same - 1, -1, -1) if chosen[i].isspace()), 0)
    while same and chosen[same - 1].isspace():
      same -= 1
  return {"prompt": chosen[:same], "chosen": chosen[same:], "rejected": rejected[same:]}


def _renamed(**names: str) -> dict[str, Any]:
  """Of a format whose columns have other names alone: what its rows become, by the new name."""
  return {"convert": lambda row: {names[name]: row[name] for name in names if name in row}}


_TURNS = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}]
_OTHER = [{"role": "assistant", "content": "A dog."}]

# All hold text but turns and truths, and `value` and `score`, numbers; only a prompt may be empty. An `image` is the
# path of a file, from the folder of the file that names it where it is relative.
OWN: dict[str, Format] = {
  "chat": Format(("messages",), "sft", {"messages": _TURNS}, turns=("messages",)),
  "completion": Format(("prompt", "completion"), "sft", {"prompt": "The sky is", "completion": " blue."}),
  "question and answer": Format(
    ("question", "answer"), "sft", {"question": "Name a colour.", "answer": "Blue."}),
  "text": Format(("text",), "sft", {"text": "The sky is blue."}),
  "pairs": Format(("anchor", "positive"), "embed", {"anchor": "colour of the sky", "positive": "The sky is blue."}),
  "triples": Format(
    ("anchor", "positive", "negative"), "embed",
    {"anchor": "colour of the sky", "positive": "The sky is blue.", "negative": "Grass is green."}),
  "scored pairs": Format(
    ("sentence1", "sentence2", "score"), "embed",
    {"sentence1": "A man plays.", "sentence2": "A man is playing.", "score": 0.75}),
  "preferences": Format(
    ("prompt", "chosen", "rejected"), "prefer",
    {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "A dog."}),
  "preference chats": Format(
    ("prompt", "chosen", "rejected"), "prefer",
    {"prompt": _TURNS[:1], "chosen": _TURNS[1:], "rejected": _OTHER}, turns=("prompt", "chosen", "rejected")),
  "judged responses": Format(
    ("prompt", "completion", "label"), "prefer",
    {"prompt": "Name a colour.", "completion": "Blue.", "label": True}, truths=("label",)),
  "judged chats": Format(
    ("prompt", "completion", "label"), "prefer", {"prompt": _TURNS[:1], "completion": _TURNS[1:], "label": True},
    turns=("prompt", "completion"), truths=("label",)),
  "prompts and answers": Format(("prompt", "answer"), "rl", {"prompt": "Twice three is", "answer": "6"}),
  "chats and answers": Format(
    ("prompt", "answer"), "rl", {"prompt": [{"role": "user", "content": "What is twice three?"}], "answer": "6"},
    turns=("prompt",)),
  "prompts": Format(("prompt",), "rl", {"prompt": "Twice three is"}),
  "chats to answer": Format(
    ("prompt",), "rl", {"prompt": [{"role": "user", "content": "What is twice three?"}]}, turns=("prompt",)),
  "labels": Format(("text", "label"), "classify", {"text": "I loved it.", "label": "positive"}),
  "values": Format(("text", "value"), "regress", {"text": "I loved it.", "value": 4.5}),
  "image labels": Format(("image", "label"), "classify", {"image": "pets/1.png", "label": "cat"}),
  "image values": Format(("image", "value"), "regress", {"image": "pets/1.png", "value": 0.5}),
}

OTHERS: dict[str, Format] = {
  "ShareGPT": Format(
    ("conversations",), "sft",
    {"conversations": [{"from": "human", "value": "Name a colour."}, {"from": "gpt", "value": "Blue."}]},
    into="chat", convert=_from_sharegpt, turns=("conversations",)),
  "preferences with the prompt in both": Format(
    ("chosen", "rejected"), "prefer", {"chosen": "The sky is blue.", "rejected": "The sky is a dog."},
    into="preferences", convert=_prompt_within),
  "preference chats with the prompt in both": Format(
    ("chosen", "rejected"), "prefer", {"chosen": _TURNS, "rejected": [*_TURNS[:1], *_OTHER]},
    into="preference chats", convert=_prompt_within, turns=("chosen", "rejected")),
  "Alpaca": Format(
    ("instruction", "output"), "sft", {"instruction": "Translate.", "input": "bleu", "output": "blue"},
    optional=("input",), into="question and answer", convert=_from_alpaca),
  "prompt and response": Format(
    ("prompt", "response"), "sft", {"prompt": "Name a colour.", "response": "Blue."}, into="question and answer",
    **_renamed(prompt="question", response="answer")),
  "query and answer": Format(
    ("query", "answer"), "embed", {"query": "colour of the sky", "answer": "The sky is blue."}, into="pairs",
    **_renamed(query="anchor", answer="positive")),
  "query and positive": Format(
    ("query", "positive"), "embed", {"query": "colour of the sky", "positive": "The sky is blue."}, into="pairs",
    **_renamed(query="anchor", positive="positive")),
  "query, positive and negative": Format(
    ("query", "positive", "negative"), "embed",
    {"query": "colour of the sky", "positive": "The sky is blue.", "negative": "Grass is green."}, into="triples",
    **_renamed(query="anchor", positive="positive", negative="negative")),
  "sentence labels": Format(
    ("sentence", "label"), "classify", {"sentence": "I loved it.", "label": "positive"}, into="labels",
    **_renamed(sentence="text", label="label")),
}

FORMATS: dict[str, Format] = {**OWN, **OTHERS}


def detect(columns: Sequence[str], row: Mapping[str, Any] | None = None, *, others: bool = False) -> str:
  """The format that has these columns; of several, the one with most of them.

  A prompt with columns that no format has is one of the prompts of a reward, and else no record.

  >>> detect(["anchor", "positive", "id"]), detect(["instruction", "input", "output"])
  ('pairs', 'Alpaca')

  Args:
    columns: of the rows.
    row: by which text is told from lists of turns where the columns are the same; None takes it for text.
    others: whether what a format does not read is kept, for rewards.

  Raises:
    ValueError: they are of none, or of two alike.
  """
  fits = [name for name, form in FORMATS.items() if {*form.columns} <= {*columns} and (
      others or form.columns != ("prompt",) or [*columns] == ["prompt"])]
  if not fits:
    takes = "; ".join(f"{name}: {', '.join(form.columns)}" for name, form in FORMATS.items())
    raise ValueError(f"keys {sorted(columns)} are of no format; {takes}; others are named by --fields own=theirs")
  most = max(len(FORMATS[name].columns) for name in fits)
  best = [name for name in fits if len(FORMATS[name].columns) == most]
  lists = {column for column in columns if row is not None and isinstance(row.get(column), list)}
  alike: dict[tuple[str, ...], list[str]] = {}
  for name in best:
    alike.setdefault(FORMATS[name].columns, []).append(name)
  nearest_to = lambda name: len({*FORMATS[name].columns} & (lists ^ {*FORMATS[name].turns}))
  best = [min(names, key=nearest_to) for names in alike.values()]
  if len(best) > 1:
    only = sorted(set(FORMATS[best[1]].columns) - set(FORMATS[best[0]].columns))
    raise ValueError(f"keys {sorted(columns)} are of {' and of '.join(best)}; leave the columns of one out, as by "
                     f"--fields {only[0]}=")
  return best[0]


def check_spelling(name: str, columns: Sequence[str]) -> None:
  """Raises ValueError where a column that a format does not read looks like one that goes with it, misspelt."""
  form = FORMATS[name]
  # What the format lacks to be a larger one.
  more = {column for other in FORMATS.values() if {*form.columns} < {*other.columns} for column in other.columns}
  for column in columns:
    if column in (*form.columns, *form.optional):
      continue
    if near := difflib.get_close_matches(column, sorted(more - {*columns}), n=1, cutoff=0.8):
      raise ValueError(
        f"{name} takes the keys {', '.join(form.columns)}; unknown: {column} (nearest: {near[0]}); say what it is by "
        f"--fields {column}={near[0]}, or leave it out by --fields {column}=")


def parse_fields(text: str | None) -> dict[str, str]:
  """`"query=anchor,answer=positive"` as a dict from the file's names to the library's; nothing after `=` leaves out.

  >>> parse_fields("query=anchor,answer=positive,id=")
  {'query': 'anchor', 'answer': 'positive', 'id': ''}

  Raises:
    ValueError: it is none, or gives two columns one name.
  """
  if not text:
    return {}
  parts = [part.strip().partition("=") for part in text.split(",")]
  if wrong := [part for part in parts if not part[0].strip() or not part[1]]:
    raise ValueError(f"fields must be pairs as query=anchor,answer=positive; got {''.join(wrong[0])!r} in {text!r}")
  found = {theirs.strip(): own.strip() for theirs, _, own in parts}
  named = [own for own in found.values() if own]
  if len(found) < len(parts) or len({*named}) < len(named):
    raise ValueError(f"fields must give each column one name and no name twice; got {text!r}")
  return found


def rename(row: Mapping[str, Any], fields: Mapping[str, str]) -> Row:
  """A row under other names; ValueError where a column is missing, or takes the name of another."""
  if not fields:
    return dict(row)
  if missing := [theirs for theirs in fields if theirs not in row]:
    raise ValueError(f"fields names the column {missing[0]!r}, which is not there; {nearest(missing[0], list(row))}")
  kept = {column: value for column, value in row.items() if column not in fields}
  new = {own: row[theirs] for theirs, own in fields.items() if own}
  if both := [own for own in new if own in kept]:
    raise ValueError(f"fields names a column {both[0]!r}, and there is one already; leave it out by {both[0]}=")
  return kept | new
