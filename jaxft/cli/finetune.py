"""`jaxft finetune`: a pretrained model, a data set, a method and a loss, from one command to a tuned model."""

import sys
from collections.abc import Callable
from typing import Any

from jaxft.recipes.options import Finetune, parse
from jaxft.recipes.run_file import expand

DIVERGED = 3  # exit status of a run that was stopped at a number that is not finite


def main(args: list[str], enter: Callable[[], None]) -> None:
  options = parse(expand(args), command="finetune", description=f"{Finetune.__doc__} Or: jaxft finetune RUN.yaml, "
                  "a file of these options; each run writes its own to run.yaml.")
  enter()
  from jaxft.recipes.finetune import finetune  # not before the options: --help needs no JAX
  from jaxft.training import Diverged

  try:
    summary = finetune(options)
  except Diverged as e:
    print(f"jaxft: error: {e}. Try a lower --learning-rate, with --overwrite or another --out; "
          "--no-stop-if-not-finite goes on all the same", file=sys.stderr)
    raise SystemExit(DIVERGED) from e
  if summary is not None:  # the first process tells
    print(as_text(summary))


def as_text(summary: dict[str, Any]) -> str:
  """The summary for people."""
  from jaxft.recipes import run_folder

  s = summary
  at = lambda name: f"{s['out'].rstrip('/')}/{name}"
  share = s["trained_parameters"] / s["parameters"]
  lines = [
      f"{s['model']} on {s['data']}: {s['method']}, {s['loss']}, {s['steps']} steps; "
      f"{s['trained_parameters']:,} parameters trained ({share:.2%} of the model's)"
  ]
  lines += [f"  validation {name}: {shown(name, s['before'])} -> {shown(name, s['after'])}" for name in s["after"]
            if not name.endswith(("_low", "_high"))]
  rate = s["examples_per_second"]
  lines += [
      f"  {'?' if rate is None else f'{rate:.1f}'} examples/s, {s['peak_memory_bytes'] / 2**20:,.0f} MiB at most",
      *([f"  model: {at(run_folder.MODEL)}"] if s.get("merged", True) else []),
      *([f"  adapter: {at(run_folder.ADAPTER)}"] if s.get("adapter") else []),
      f"  metrics: {at(run_folder.METRICS)}, checkpoints: {at(run_folder.CHECKPOINTS)}",
      f"  again: jaxft finetune {at(run_folder.RUN)} --out FOLDER",
  ]
  return "\n".join(lines + [f"  cite: arXiv {number}" for number in s["arxiv"]])


def shown(name: str, scores: dict[str, float]) -> str:
  """A score, with its interval where it has one; a question mark where there is none."""
  if name not in scores:
    return "?"
  low, high = (scores.get(f"{name}_{end}") for end in ("low", "high"))
  return f"{scores[name]:.4f}" + ("" if low is None or high is None else f" [{low:.4f}, {high:.4f}]")
