"""The folder of a run: what it holds, and whether it may be resumed."""

import contextlib
import fcntl
import json
import os
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxft.files import check_writable, remove_leftovers, write_text
from jaxft.formats.safetensors import parse_json
from jaxft.training.metrics import TRACKERS, read_json_lines

CONFIG, INPUTS, METRICS, CHECKPOINTS, MODEL, ADAPTER, SUMMARY, TRACES = (
    "config.json", "inputs.json", "metrics.jsonl", "checkpoints", "model", "adapter", "summary.json", "traces")


LOCK, RUN = ".lock", "run.yaml"
GREW = "# grew from "  # of a line of it

# What every `config.json` of a run has: by them it is told from one of a model.
OWN = ("model", "data", "method")
# Before the names of metrics of records that are not learnt from.
OF_CONTROL = "control/"
# How long a run is: it may grow.
LENGTH = ("steps", "epochs")


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
  """Makes a run's folder and keeps other processes out of it; one that was made here and is still empty goes again.

  The operating system lets go of it when the process ends, however it ends.

  Raises:
    ValueError: another process trains there.
    OSError: it cannot be written.
  """
  new = not out.exists()
  check_writable(out)
  lock = _lock(out / LOCK)
  try:
    yield
  finally:
    if lock is not None:
      (out / LOCK).unlink(missing_ok=True)
      lock.close()
    if new:
      with contextlib.suppress(OSError):  # it is not empty
        out.rmdir()


def _lock(path: Path) -> Any:
  """The locked file with this process's number in it; None, said so, where the file system has no locks."""
  while True:
    file = open(path, "a+", encoding="utf-8")
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      process = file.read().strip() or "unknown"
      file.close()
      raise ValueError(f"another process (pid {process}) trains in {path.parent}; wait for it, or choose another "
                       "--out") from None
    except OSError as e:
      print(f"jaxft: note: {path.parent} cannot be locked ({e.strerror}): start no second process there",
            file=sys.stderr)
      file.close()
      path.unlink(missing_ok=True)
      return None
    # The one that held it may have removed it between the two calls, and others lock a new file.
    if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
      file.truncate(0)
      file.write(str(os.getpid()))
      file.flush()
      return file
    file.close()


def open_run(out: Path, defining: dict[str, Any], *, overwrite: bool) -> bool:
  """Looks at a folder that is `held`; of a run that is there, nothing is deleted or changed.

  What writers that were killed have left half made is removed. What ended before its first checkpoint is no run: there
  is nothing in it to resume, and `begin_run` starts anew whatever its options were.

  Args:
    out: the folder.
    defining: the options that make the run what it is.
    overwrite: a run that is there will be deleted, by `begin_run`.

  Returns:
    Whether there is a run of the same options, but perhaps of another length, to be resumed.

  Raises:
    ValueError: it holds a run of other options (all that differ are named), or files that are no run.
    OSError: it cannot be written.
  """
  path, resumed = out / CONFIG, False
  if path.exists():
    saved = _configuration(path)
    resumed = not overwrite and (_steps_saved(out) != [] or any(
        (out / name).exists() for name in (MODEL, ADAPTER, SUMMARY)))
    if resumed:
      _check_same(out, saved, defining)
  elif left := [name for name in (CHECKPOINTS, MODEL, ADAPTER, METRICS, SUMMARY) if (out / name).exists()]:
    raise ValueError(f"{out} holds {', '.join(left)} but no {CONFIG}: it is no run, to be resumed or overwritten; "
                     "choose another --out")
  for name in (CONFIG, INPUTS, METRICS, SUMMARY, MODEL, ADAPTER, RUN):
    remove_leftovers(out / name)
  for part in out.glob(".jaxft-*"):  # of a process that was killed as it tried whether the folder can be written
    part.unlink(missing_ok=True)
  return resumed


def begin_run(out: Path, defining: dict[str, Any], inputs: dict[str, Any]) -> None:
  """Deletes the run that is there, if one is, and writes what defines the new one and what it reads.

  Args:
    out: the folder; `open_run` has looked at it.
    defining: goes to `config.json`, by which the folder is a run.
    inputs: goes to `inputs.json`; see `check_inputs`.
  """
  if (out / CONFIG).exists():
    _delete_run(out)
  (out / INPUTS).unlink(missing_ok=True)  # of a run that was killed before it began
  check_inputs(out, inputs)
  write_text(out / CONFIG, json.dumps(defining, indent=1) + "\n")


def grow(out: Path, defining: dict[str, Any], steps: int, total: Any) -> None:
  """Takes the length of a run that is resumed from the new options, and reopens one that was complete.

  Args:
    out: the folder.
    defining: the new options, like those that are there but for the length.
    steps: of the run in all.
    total: `(steps, epochs) -> ` the steps of a run with these options.

  Raises:
    ValueError: the run that is there is longer, or holds no checkpoint to go on from.
  """
  saved = _configuration(out / CONFIG)
  before = total(saved["steps"], saved["epochs"])
  if steps == before:
    return
  if steps < before:
    raise ValueError(f"{out} holds a run of {before} steps, which may grow but not shrink; got {steps}")
  if not _steps_saved(out):
    raise ValueError(f"{out} holds a run of {before} steps and no checkpoint to go on from to {steps}; choose another "
                     "--out, or --overwrite to start anew")
  (out / SUMMARY).unlink(missing_ok=True)
  kept = (out / RUN).read_text(encoding="utf-8") if (out / RUN).exists() else ""
  write_text(out / RUN, f"{kept}{GREW}{before} to {steps} steps, at step {_steps_saved(out)[-1]}\n")
  write_text(out / CONFIG, json.dumps(defining, indent=1) + "\n")
  print(f"jaxft: the run in {out} grows from {before} to {steps} steps; from here on the learning rate is that of "
        f"{steps} steps", file=sys.stderr)


def growth(out: Path) -> list[str]:
  """The lines of a run's file that say where it grew; none of a run that did not."""
  path = out / RUN
  lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
  return [line for line in lines if line.startswith(GREW)]


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
    saved = dict(parse_json(path.read_text(encoding="utf-8")))
  except (ValueError, TypeError, RecursionError) as e:
    raise ValueError(f"{path} does not say what a run reads: {e}") from None
  if differ := [key for key in {**saved, **inputs} if saved.get(key) != inputs.get(key)]:
    shown = "; ".join(f"{key}: {saved.get(key)!r} there, {inputs.get(key)!r} here" for key in differ)
    raise ValueError(f"{out} holds a run whose inputs have changed since: {shown}. Give it what it began with, choose "
                     "another --out, or --overwrite to start anew")


def _configuration(path: Path) -> dict[str, Any]:
  """What defines the run that is there; ValueError where the file is not a run's own."""
  try:
    saved = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(saved, dict):
      raise ValueError("it is no object")
    if missing := [key for key in OWN if key not in saved]:
      raise ValueError(f"it has no {', '.join(missing)}")
  except (ValueError, RecursionError) as e:
    raise ValueError(f"{path} is not the configuration of a run: {e}. What lies there is no run, to be resumed or "
                     "overwritten; choose another --out") from None
  return saved


def _check_same(out: Path, saved: dict[str, Any], defining: dict[str, Any]) -> None:
  differ = [key for key in {**saved, **defining} if saved.get(key) != defining.get(key) and key not in LENGTH]
  if differ:
    shown = "; ".join(f"{key}: {saved.get(key)!r} there, {defining.get(key)!r} here" for key in differ)
    raise ValueError(f"{out} holds a run of another configuration; {len(differ)} options differ: {shown}. "
                     "Give the same options to resume it, another --out, or --overwrite to start anew")


def _delete_run(out: Path) -> None:
  """Deletes what a run writes, and nothing else that the folder may hold."""
  for name in (CHECKPOINTS, MODEL, ADAPTER, TRACES, *TRACKERS):
    shutil.rmtree(out / name, ignore_errors=True)
  for name in (INPUTS, METRICS, SUMMARY, RUN, CONFIG):  # the last, so that what a kill leaves is still a run
    (out / name).unlink(missing_ok=True)


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
  steps = _steps_saved(out)
  return f"the last checkpoint is {out / CHECKPOINTS / str(max(steps))}" if steps else "no checkpoint had been written"


def _steps_saved(out: Path) -> list[int]:
  """The steps of the complete checkpoints, in no order."""
  return [int(p.name) for p in (out / CHECKPOINTS).glob("*") if p.name.isdigit()]
