"""The options of a command line, by tyro; what is wrong with them is one line, like all else. Imports no JAX."""

import contextlib
import difflib
import io
import os
import re
from collections.abc import Sequence
from typing import Any, TypeVar

if os.environ.get("NO_COLOR"):  # https://no-color.org; tyro asks for a variable of its own, as it is imported
  os.environ.setdefault("PYTHON_TYRO_ANSI_CODES", "False")

import tyro

T = TypeVar("T")

# Options of transformers, TRL and PEFT -> what they are called here.
FAMILIAR = {
  "dataset-name": "data", "eval-steps": "eval-every", "gradient-accumulation-steps": "accumulate",
  "logging-steps": "log-every", "lora-alpha": "alpha", "lora-dropout": "dropout", "lora-r": "rank",
  "lr-scheduler-type": "schedule", "max-grad-norm": "clip-norm", "max-seq-length": "max-length", "max-steps": "steps",
  "model-name-or-path": "model", "num-train-epochs": "epochs", "output-dir": "out", "packing": "pack",
  "per-device-train-batch-size": "batch-size", "r": "rank", "save-steps": "checkpoint-every",
  "save-total-limit": "keep", "target-modules": "select", "warmup-ratio": "warmup",
}


def parse(kind: type[T], args: Sequence[str], *, prog: str, **options: Any) -> T:
  """The dataclass of a command line; `--help` ends the process as argparse does.

  Args:
    kind: the dataclass.
    args: the command line.
    prog: the command, for messages.
    **options: of `tyro.cli`.

  Raises:
    ValueError: an option that there is not (the nearest are named), a value of another kind, or one that is missing.
  """
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):
      return tyro.cli(kind, args=list(args), prog=prog, **options)
  except SystemExit as e:
    if not e.code:
      raise
  raise ValueError(_one_line(said.getvalue(), lambda: names(kind, prog=prog, **options), prog))


def names(kind: type, **options: Any) -> list[str]:
  """The names of all options, without dashes before them, as the help page has them."""
  page = io.StringIO()
  with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
    tyro.cli(kind, args=["--help"], **options)
  lines = (line.strip("│ ") for line in page.getvalue().splitlines())
  found = (name for line in lines if line.startswith("-") for name in re.findall(r"(?:^|, )--([a-z][\w-]*)", line))
  return sorted({*found} - {"help"})


def similar(name: str, known: Sequence[str]) -> list[str]:
  """The options that were likely meant: by another library's name, by initials, by letters.

  >>> known = ["data", "learning-rate", "out", "rank"]
  >>> similar("lr", known), similar("output_dir", known), similar("rnak", known)
  (['learning-rate'], ['out'], ['rank'])
  """
  name = name.lstrip("-").replace("_", "-").lower()
  if FAMILIAR.get(name) in known:
    return [FAMILIAR[name]]
  initials = [option for option in known if "-" in option and "".join(w[0] for w in option.split("-")) == name]
  return initials or difflib.get_close_matches(name, known, n=3, cutoff=0.6)


def _one_line(said: str, known: Any, prog: str) -> str:
  """tyro's box as one line: what stands above its first rule."""
  lines = [line.strip("│╭╮╰╯ ").strip() for line in said.splitlines()]
  body = []
  for line in lines[1:]:
    if line.startswith("───"):
      break
    body.append(line)
  text = " ".join(" ".join(body).split()) or " ".join(said.split())
  if text.startswith("Unrecognized options:"):
    unknown = text.removeprefix("Unrecognized options:").replace(",", " ").split()
    option = next((word for word in unknown if word.startswith("-")), unknown[0])
    near = similar(option, known()) if option.startswith("-") else []
    text = f"unknown {'option' if option.startswith('-') else 'argument'} {option}"
    text += f"; nearest: {', '.join(f'--{one}' for one in near)}" if near else ""
  return f"{text}; `{prog} --help` shows all options"
