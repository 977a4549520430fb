"""What a run says at its end: what it reached, what it forgot, where everything lies, and what to type next."""

import resource
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxft.recipes import run_folder


def as_text(summary: dict[str, Any]) -> str:
  """The summary for people, in one form for all tasks."""
  s = summary
  share = s["trained_parameters"] / s["parameters"]
  lines = [
      f"{s['model']} on {s['data']}: {s['method']}, {s['loss']}, {s['steps']} steps; "
      f"{s['trained_parameters']:,} parameters trained ({share:.2%} of the model's)"
  ]
  lines += _scores(s, controlled=False) or ["  validation: none, as no records were held out"]
  lines += _scores(s, controlled=True) or [
      "  forgotten: not measured; --control DATA names records that are not learnt from"]
  rate, memory = s["examples_per_second"], s["peak_memory_bytes"] / 2**20
  lines.append(f"  {'?' if rate is None else f'{rate:.3g}'} examples/s, {memory:,.0f} MiB at most")
  lines += [f"  {name}: {_at(s, name)}" for name in s["places"]]
  lines.append(f"  next: {next_command(s)}")
  lines.append(f"  again: jaxft finetune {shlex.quote(_below(s, run_folder.RUN))} --out FOLDER")
  return "\n".join(lines + [f"  cite: arXiv {number}" for number in s["arxiv"]])


def _scores(summary: dict[str, Any], *, controlled: bool) -> list[str]:
  """A line for each metric of the validation, or of the control."""
  before, after = summary["before"], summary["after"]
  title = f"control {summary['control']}" if controlled else "validation"
  records = summary["controlled" if controlled else "validated"]
  return [f"  {title} {name.removeprefix(run_folder.OF_CONTROL)}: {shown(name, before)} -> {shown(name, after)}, of "
          f"{records:,} record{'s' if records != 1 else ''}" for name in after
          if name.startswith(run_folder.OF_CONTROL) == controlled and not name.endswith(("_low", "_high"))]


def places_of(out: Path, track: Sequence[str]) -> dict[str, str]:
  """What lies in a run's folder, as it is about to end, and where in it."""
  places = {"model": run_folder.MODEL, "adapter": run_folder.ADAPTER, "metrics": run_folder.METRICS,
            "checkpoints": run_folder.CHECKPOINTS, **{name: name for name in track}}
  return {name: place for name, place in places.items() if (out / place).exists()} | {"summary": run_folder.SUMMARY}


def _below(summary: dict[str, Any], place: str) -> str:
  """A place in the run's folder, which may lie in an object store."""
  return f"{summary['out'].rstrip('/')}/{place}"


def _at(summary: dict[str, Any], name: str) -> str:
  return _below(summary, summary["places"][name])


def next_command(summary: dict[str, Any]) -> str:
  """What one does with the tuned model: ask it, or measure it."""
  quoted = lambda name: shlex.quote(_at(summary, name))
  if "model" not in summary["places"]:
    return f"jaxft convert {quoted('adapter')} FOLDER"
  if summary["kind"] in ("decoder", "encoder-decoder"):
    return f"jaxft generate --model {quoted('model')} {'--chat ' if summary['chat'] else ''}\"...\""
  if summary["kind"] == "vision" and not summary["head"]:
    return f"jaxft finetune --model {quoted('model')} --data DATA --task classify"
  return f"jaxft evaluate --model {quoted('model')} --data DATA"


def shown(name: str, scores: dict[str, float]) -> str:
  """A score, with its 95% interval where it has one; a question mark where there is none.

  >>> shown("accuracy", {"accuracy": 0.5, "accuracy_low": 0.25, "accuracy_high": 0.75})
  '0.5000 [0.2500, 0.7500]'
  """
  if name not in scores:
    return "?"
  low, high = (scores.get(f"{name}_{end}") for end in ("low", "high"))
  said = lambda x: f"{x:.4f}" if abs(x) < 1000 else f"{x:,.0f}"
  return said(scores[name]) + ("" if low is None or high is None else f" [{said(low)}, {said(high)}]")


def peak_memory() -> int:
  """The most bytes held at once: on the accelerator that held most, or by this process where there is none."""
  stats = [device.memory_stats() for device in jax.local_devices()]
  if all(stats):
    return max(s["peak_bytes_in_use"] for s in stats)
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
