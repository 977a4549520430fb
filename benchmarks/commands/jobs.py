"""The jobs: what is learnt from, and how each side is asked for it."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

STEPS = 16
TEXT, PAIRS = "LoRA of SmolLM2-135M, batch 4, length 512", "MiniLM-L6, every parameter, 64 pairs, length 128"
TEXT_CHARACTERS = 2000  # nearly all texts are cut at 512 tokens


class Job(NamedTuple):
  """A job.

  Attributes:
    peer: whose command stands beside ours.
    records: what the file holds.
    ours, theirs: `(data, out) -> ` the command.
  """

  peer: str
  records: Callable[[], list[dict[str, str]]]
  ours: Callable[[Path, Path], list[str]]
  theirs: Callable[[Path, Path], list[str]]


def texts() -> list[dict[str, str]]:
  """Signatures with descriptions, many in a text."""
  out, text = [], ""
  for record in _docstrings(8000):
    text += f"{record['anchor']}\n{record['positive']}\n\n"
    if len(text) >= TEXT_CHARACTERS:
      out.append({"text": text})
      text = ""
    if len(out) == 4 * STEPS:
      break
  return out


def pairs() -> list[dict[str, str]]:
  """Signatures with descriptions."""
  return _docstrings(64 * STEPS)


def _docstrings(n: int) -> list[dict[str, str]]:
  from jaxft.data import source

  records = source("docstrings", "train")
  step = max(1, len(records) // n)
  rows = records.__getitems__(range(0, min(len(records), n * step), step))
  return [{name: row[name] for name in ("anchor", "positive")} for row in rows]


def folder_of(preset: str) -> str:
  """The preset as a folder, which both sides load."""
  from jaxft.formats.presets import fetch

  return str(fetch(preset))


_JAXFT = [sys.executable, "-m", "jaxft", "finetune", "--holdout", "0", "--steps", str(STEPS), "--log-every", "1",
          "--warmup", "0", "--schedule", "constant"]
_TRAINER = {"max-steps": STEPS, "logging-steps": 1, "report-to": "none", "lr-scheduler-type": "constant",
            "use-cpu": True, "bf16": False, "disable-tqdm": True, "gradient-checkpointing": False}


def _options(**options: object) -> list[str]:
  return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


JOBS = {
    TEXT: Job(
        "TRL", texts,
        lambda data, out: [*_JAXFT, *_options(
            model=folder_of("smollm2-135m"), data=data, method="lora", rank=8, batch_size=4, max_length=512,
            learning_rate=1e-4, out=out), "--no-merge"],
        lambda data, out: [os.path.join(os.path.dirname(sys.executable), "trl"), "sft", *_options(
            model_name_or_path=folder_of("smollm2-135m"), dataset_name=data.parent, use_peft=True, lora_r=8,
            lora_alpha=16, lora_target_modules="all-linear", per_device_train_batch_size=4, max_length=512,
            learning_rate=1e-4, output_dir=out, **{k.replace("-", "_"): v for k, v in _TRAINER.items()})]),
    PAIRS: Job(
        "sentence-transformers", pairs,
        lambda data, out: [*_JAXFT, *_options(
            model=folder_of("minilm-l6"), data=data, method="full", loss="mnrl", batch_size=64, max_length=128,
            learning_rate=2e-5, out=out)],
        lambda data, out: [sys.executable, "-m", "benchmarks.commands.peer", folder_of("minilm-l6"), str(data),
                           str(out), json.dumps({k.replace("-", "_"): v for k, v in _TRAINER.items()})]),
}
