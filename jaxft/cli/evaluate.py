"""`jaxft evaluate`: a model on a task, as a table or as JSON."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from jaxft.command_line import parse

DOMAINS = ("movies", "products", "news", "tweets")


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """Measures a model on a task."""

  model: str
  """A preset, a Hugging Face folder (such as the model/ of a finetune), or a GGUF file."""
  task: str | None = None
  """Models with a head, of texts or images: classify or regress. Encoders: retrieval (anchors find their positives)
  or sentiment (a ridge probe on the vectors). Decoders: perplexity; encoder-decoders: that of the answers. None: what
  the head is for, or the first of the model's kind."""
  data: tuple[str, ...] = ()
  """Data sets, files or folders, as finetune takes them. None given: docstrings for retrieval, the four domains for
  sentiment."""
  fields: str | None = None
  """Names of a file's columns, theirs=ours, as in finetune."""
  target: str | None = None
  """classify, regress: the field to compare with. None: label, for regress value."""
  split: str | None = None
  """Split to measure on. None: test where the data have one, else train, as a file does. sentiment fits its probe on
  train."""
  max_length: int | None = None
  """Longest input in tokens. None: what the model takes; for retrieval and sentiment at most 128, for perplexity
  512."""
  batch_size: int = 8
  """Rows at once, for perplexity; images at once."""
  dtype: str = "float32"
  """Of activations: float32 or bfloat16."""
  json: bool = False
  """Print JSON."""


def main(args: list[str]) -> None:
  options = parse(Evaluate, args, prog="jaxft evaluate")
  from jaxft.compilation import use_compilation_cache

  use_compilation_cache()
  rows = evaluate(options)
  print(json.dumps(rows, indent=1) if options.json else as_table(rows))


def evaluate(options: Evaluate) -> list[dict[str, Any]]:
  """One dict a data set: the model, the task, the data and the metrics."""
  from jaxft.checks import one_of, pick
  from jaxft.recipes.dtypes import DTYPES
  from jaxft.recipes.model import load

  one_of("dtype", options.dtype, DTYPES)
  for name, value in (("max_length", options.max_length), ("batch_size", options.batch_size)):
    if value is not None and value < 1:
      raise ValueError(f"{name} must be at least 1; got {value}")
  if options.task is not None:
    one_of("task", options.task, OF_HEADS | {name: task for known in TASKS.values() for name, task in known.items()})
  model = load(options.model)
  known = pick("kind of model", model.kind, TASKS)
  if model.head is not None:
    of_head = "classify" if model.head.classes else "regress"
    known = {of_head: OF_HEADS[of_head], **known}
  if not known:
    raise ValueError(f"{options.model} has no head whose scores could be measured; finetune --task classify makes one")
  task = options.task or next(iter(known))
  one_of(f"task for {options.model} ({model.kind})", task, known)
  if model.tokenizer is None and model.kind != "vision":
    raise ValueError(f"{options.model} has no tokenizer.json, which a task on text needs")
  measure, default_data = known[task]
  data = options.data or default_data
  if not data:
    raise ValueError(f"--data must be given for {task}")
  if options.target is not None and task not in OF_HEADS:
    raise ValueError(f"task {task} does not read --target")
  rows = []
  for name in data:
    split, records = _records(options, name)
    rows.append({"model": options.model, "task": task, "data": name, "split": split,
                 **measure(options, model, name, records)})
  return rows


def _records(options: Evaluate, data: str) -> tuple[str, Any]:
  """The split to measure on, by name, and its records."""
  from jaxft.data.sources import builder, open_split

  made = builder(data, fields=options.fields)
  split = options.split or ("test" if "test" in made.info.splits else "train")
  return split, open_split(made, split)


def _classify(options: Evaluate, model: Any, data: str, records: Any) -> dict[str, float]:
  from jaxft.recipes import tasks

  return tasks.classification(_scores(options, model, data, records), records, model.head.classes,
                              field=options.target or "label")


def _regress(options: Evaluate, model: Any, data: str, records: Any) -> dict[str, float]:
  from jaxft.recipes import tasks

  return tasks.regression(_scores(options, model, data, records)[:, 0], records, field=options.target or "value")


def _scores(options: Evaluate, model: Any, data: str, records: Any) -> Any:
  """Scores of all records, `[records, outputs]`."""
  import numpy as np
  from tqdm import tqdm

  from jaxft.recipes import tasks

  if model.kind == "encoder":
    return np.asarray(model.logits(tasks.column(records, "text"), max_length=options.max_length))
  size, images = options.batch_size, tasks.column(records, "image")
  batches = [images[i : i + size] for i in range(0, len(images), size)]
  return np.concatenate([np.asarray(model.logits(batch)) for batch in tqdm(batches, desc=data, disable=None)])


def _retrieval(options: Evaluate, model: Any, data: str, records: Any) -> dict[str, float]:
  from jaxft.recipes import tasks

  embed, length = _embed(options, model)
  return tasks.retrieval(embed, records, model.tokenizer, max_length=length, progress=data)


def _sentiment(options: Evaluate, model: Any, data: str, records: Any) -> dict[str, float]:
  from jaxft.data import source
  from jaxft.recipes import tasks

  embed, length = _embed(options, model)
  train = source(data, "train", fields=options.fields)
  return tasks.sentiment(embed, train, records, model.tokenizer, max_length=length, progress=data)


def _embed(options: Evaluate, model: Any) -> tuple[Any, int]:
  from jaxft.recipes import tasks
  from jaxft.recipes.dtypes import DTYPES

  length = min(options.max_length or 128, model.max_length)
  return tasks.embedder(model.params, model.config, dtype=DTYPES[options.dtype]), length


def _perplexity(options: Evaluate, model: Any, data: str, records: Any) -> dict[str, float]:
  del data
  from jaxft.recipes import measure
  from jaxft.recipes.dtypes import DTYPES
  from jaxft.recipes.encoder_decoder.answers import answer_collate
  from jaxft.recipes.examples import language_collate

  make = answer_collate if model.kind == "encoder-decoder" else language_collate
  collate = make(model, records[0], max_length=min(options.max_length or 512, model.max_length))
  score = measure.perplexity(
      model.config, records, collate, options.batch_size, None, dtype=DTYPES[options.dtype])(model.params)
  return {**score, "records": len(records)}


# task, of heads and by kind of model -> (measure, data sets where none is named)
Task = tuple[Callable[[Evaluate, Any, str, Any], dict[str, float]], tuple[str, ...]]
OF_HEADS: dict[str, Task] = {"classify": (_classify, ()), "regress": (_regress, ())}
TASKS: dict[str, dict[str, Task]] = {
    "encoder": {
        "retrieval": (_retrieval, ("docstrings",)),
        "sentiment": (_sentiment, tuple(f"sentiment/{domain}" for domain in DOMAINS)),
    },
    "decoder": {"perplexity": (_perplexity, ())},
    "encoder-decoder": {"perplexity": (_perplexity, ())},  # of the answers, given the prompts
    "vision": {},
}


def as_table(rows: list[dict[str, Any]]) -> str:
  """Columns aligned, numbers to the right."""
  header = [key for key in rows[0] if key != "model"]
  cells = [header, *([_cell(row[key]) for key in header] for row in rows)]
  widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
  left = [isinstance(rows[0][key], str) for key in header]
  place = lambda cell, width, to_left: cell.ljust(width) if to_left else cell.rjust(width)
  line = lambda row: "  ".join(map(place, row, widths, left)).rstrip()
  return "\n".join([rows[0]["model"], *map(line, cells)])


def _cell(x: Any) -> str:
  return f"{x:.4f}" if isinstance(x, float) else str(x)
