"""The folder of a run: what it holds, and whether it may be resumed."""

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from jaxft.files import check_writable, write_text
from jaxft.training.metrics import read_json_lines

CONFIG, INPUTS, METRICS, CHECKPOINTS, MODEL, SUMMARY, TENSORBOARD = (
    "config.json", "inputs.json", "metrics.jsonl", "checkpoints", "model", "summary.json", "tensorboard")


def open_run(out: Path, defining: dict[str, Any], *, overwrite: bool) -> bool:
  """Makes a run's folder or opens the one that is there, and writes what defines the run to `config.json`.

  Args:
    out: the folder.
    defining: the options that make the run what it is.
    overwrite: delete the run that is there.

  Returns:
    Whether there was a run of the same options, to be resumed.

  Raises:
    ValueError: it holds a run of other options (all that differ are named), or files that are no run.
    OSError: it cannot be written.
  """
  check_writable(out)
  if overwrite:
    _delete_run(out)
  path = out / CONFIG
  if path.exists():
    _check_same(path, defining)
    return True
  if left := [name for name in (CHECKPOINTS, MODEL, METRICS) if (out / name).exists()]:
    raise ValueError(f"{out} holds {', '.join(left)} but no {CONFIG}: it is no run that can be resumed; choose another "
                     "--out, or --overwrite it")
  (out / INPUTS).unlink(missing_ok=True)  # of a run that was refused before it began
  write_text(path, json.dumps(defining, indent=1) + "\n")
  return False


def check_inputs(out: Path, inputs: dict[str, Any]) -> None:
  """Writes what a run reads, weights and data, to `inputs.json`; of a run that is there, compares it.

  Options name a model and data by where they lie; what lies there may have changed since.

  Raises:
    ValueError: the run that is there read something else; all that differs is named.
  """
  path = out / INPUTS
  if not path.exists():
    write_text(path, json.dumps(inputs, indent=1) + "\n")
    return
  try:
    saved = dict(json.loads(path.read_text()))
  except (ValueError, TypeError) as e:
    raise ValueError(f"{path} does not say what a run reads: {e}") from None
  if differ := [key for key in {**saved, **inputs} if saved.get(key) != inputs.get(key)]:
    shown = "; ".join(f"{key}: {saved.get(key)!r} there, {inputs.get(key)!r} here" for key in differ)
    raise ValueError(f"{out} holds a run whose inputs have changed since: {shown}. Give it what it began with, choose "
                     "another --out, or --overwrite to start anew")


def _check_same(path: Path, defining: dict[str, Any]) -> None:
  try:
    saved = json.loads(path.read_text())
    if not isinstance(saved, dict):
      raise ValueError("it is no object")
  except ValueError as e:
    raise ValueError(f"{path} is not the configuration of a run: {e}") from None
  differ = [key for key in {**saved, **defining} if saved.get(key) != defining.get(key)]
  if differ:
    shown = "; ".join(f"{key}: {saved.get(key)!r} there, {defining.get(key)!r} here" for key in differ)
    raise ValueError(f"{path.parent} holds a run of another configuration; {len(differ)} options differ: {shown}. "
                     "Give the same options to resume it, another --out, or --overwrite to start anew")


def _delete_run(out: Path) -> None:
  """Deletes what a run writes, and nothing else that the folder may hold."""
  for name in (CONFIG, INPUTS, METRICS, SUMMARY):
    (out / name).unlink(missing_ok=True)
  for name in (CHECKPOINTS, MODEL, TENSORBOARD):
    shutil.rmtree(out / name, ignore_errors=True)


def validations(out: Path) -> dict[int, dict[str, float]]:
  """The validations that `metrics.jsonl` holds, by step."""
  return {line["step"]: {name.removeprefix("eval/"): v for name, v in line.items() if name.startswith("eval/")}
          for line in _metrics(out) if any(name.startswith("eval/") for name in line)}


def examples_per_second(out: Path) -> float | None:
  """The median over the lines of `metrics.jsonl`, so that compiling does not count; None where there is none."""
  rates = [line["examples_per_second"] for line in _metrics(out) if "examples_per_second" in line]
  return statistics.median(rates) if rates else None


def _metrics(out: Path) -> list[dict[str, Any]]:
  return read_json_lines(out / METRICS)


def last_checkpoint(out: Path) -> str:
  """The newest complete checkpoint, in words."""
  steps = [int(p.name) for p in (out / CHECKPOINTS).glob("*") if p.name.isdigit()]
  return f"the last checkpoint is {out / CHECKPOINTS / str(max(steps))}" if steps else "no checkpoint had been written"
