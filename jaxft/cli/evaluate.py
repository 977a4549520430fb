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
  """Encoders: retrieval (anchors find their positives) or sentiment (a ridge probe on the vectors). Decoders:
  perplexity. None: the first of the model's kind."""
  data: tuple[str, ...] = ()
  """Data sets or .jsonl files. None given: docstrings for retrieval, the four domains for sentiment."""
  split: str = "test"
  """Split to measure on (a JSONL file is all train). sentiment fits its probe on train."""
  max_length: int | None = None
  """Longest input in tokens. None: 128, for perplexity 512, or what the model takes if that is less."""
  batch_size: int = 8
  """Rows at once, for perplexity."""
  dtype: str = "float32"
  """Of activations: float32 or bfloat16."""
  json: bool = False
  """Print JSON."""


def main(args: list[str]) -> None:
  options = parse(Evaluate, args, prog="jaxft evaluate")
  rows = evaluate(options)
  print(json.dumps(rows, indent=1) if options.json else as_table(rows))


def evaluate(options: Evaluate) -> list[dict[str, Any]]:
  """One dict a data set: the model, the task, the data and the metrics."""
  from jaxft.checks import one_of, pick
  from jaxft.formats.pretrained import load
  from jaxft.recipes.run import DTYPES

  one_of("dtype", options.dtype, DTYPES)
  for name, value in (("max_length", options.max_length), ("batch_size", options.batch_size)):
    if value is not None and value < 1:
      raise ValueError(f"{name} must be at least 1; got {value}")
  if options.task is not None:
    one_of("task", options.task, {**TASKS["encoder"], **TASKS["decoder"]})
  model = load(options.model)
  known = pick(f"kind of {options.model}", model.kind, TASKS)
  task = options.task or next(iter(known))
  one_of(f"task for {options.model} ({model.kind})", task, known)
  if model.tokenizer is None:
    raise ValueError(f"{options.model} has no tokenizer.json, which a task on text needs")
  measure, default_data = known[task]
  data = options.data or default_data
  if not data:
    raise ValueError(f"--data must be given for {task}")
  return [{"model": options.model, "task": task, "data": name, "split": options.split, **measure(options, model, name)}
          for name in data]


def _retrieval(options: Evaluate, model: Any, data: str) -> dict[str, float]:
  from jaxft.data import source
  from jaxft.recipes import tasks

  embed, length = _embed(options, model)
  return tasks.retrieval(embed, source(data, options.split), model.tokenizer, max_length=length, progress=data)


def _sentiment(options: Evaluate, model: Any, data: str) -> dict[str, float]:
  from jaxft.data import source
  from jaxft.recipes import tasks

  embed, length = _embed(options, model)
  train, test = source(data, "train"), source(data, options.split)
  return tasks.sentiment(embed, train, test, model.tokenizer, max_length=length, progress=data)


def _embed(options: Evaluate, model: Any) -> tuple[Any, int]:
  from jaxft.recipes import tasks
  from jaxft.recipes.run import DTYPES

  length = min(options.max_length or 128, model.max_length)
  return tasks.embedder(model.params, model.config, dtype=DTYPES[options.dtype]), length


def _perplexity(options: Evaluate, model: Any, data: str) -> dict[str, float]:
  from jaxft.data import source
  from jaxft.recipes import measure
  from jaxft.recipes.examples import language_collate
  from jaxft.recipes.objectives import language
  from jaxft.recipes.run import DTYPES

  records = source(data, options.split)
  length = min(options.max_length or 512, model.max_length)
  collate = language_collate(model, records[0], max_length=length)
  objective = language(model.config, dtype=DTYPES[options.dtype], remat="none")
  score = measure.perplexity(objective, records, collate, options.batch_size, None)(model.params)
  return {**score, "records": len(records)}


# family -> task -> (measure, data sets where none is named)
Task = tuple[Callable[[Evaluate, Any, str], dict[str, float]], tuple[str, ...]]
TASKS: dict[str, dict[str, Task]] = {
    "encoder": {
        "retrieval": (_retrieval, ("docstrings",)),
        "sentiment": (_sentiment, tuple(f"sentiment/{domain}" for domain in DOMAINS)),
    },
    "decoder": {"perplexity": (_perplexity, ())},
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
