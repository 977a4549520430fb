"""A run as a file: `jaxft finetune run.yaml`, whose keys are the options; what is also given by hand counts more."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxft.recipes.options import Finetune
from jaxft.stores.copies import local_copy, shown
from jaxft.stores.store import is_url

# What says where and how a run goes on, and not what it is.
_NOT_KEPT = ("overwrite",)


def expand(args: list[str]) -> list[str]:
  """A command line whose first argument is a run file, with the file's options in its place; others as they are.

  Raises:
    ValueError: the file is missing, or no mapping of options to values.
  """
  if not args or not args[0].endswith((".yaml", ".yml")):
    return args
  from jaxft.merging.streaming.recipe_files.yaml_documents import read_yaml

  path = local_copy(args[0]) if is_url(args[0]) else Path(args[0])
  if not path.is_file():
    raise ValueError(f"run file must be there; there is none at {path}")
  try:
    documents = read_yaml(path.read_text(encoding="utf-8"))
  except UnicodeDecodeError as e:
    raise ValueError(f"{path}: not UTF-8 (byte {e.start})") from None
  except ValueError as e:
    raise ValueError(f"{path}: {e}") from None
  if len(documents) != 1 or not isinstance(documents[0], dict):
    raise ValueError(f"{path} must be one mapping of options to values, as rank: 8")
  out = []
  for name, value in documents[0].items():
    out += _option(path, name, value)
  # What is given by hand comes last and counts; an option of the file that it gives is left out.
  by_hand = {arg.partition("=")[0].removeprefix("--no-").removeprefix("--").replace("_", "-") for arg in args[1:]
             if arg.startswith("--")}
  by_hand |= {"steps", "epochs"} if by_hand & {"steps", "epochs"} else set()  # two words for one thing
  return [arg for name, words in out for arg in words if name not in by_hand] + args[1:]


def _option(path: Path, name: Any, value: Any) -> list[tuple[str, list[str]]]:
  """`(name, its words)` of one line of the file; none where its value is null, which is the default."""
  if not isinstance(name, str):
    raise ValueError(f"{path}: options are named by text; got {name!r}")
  name = name.replace("_", "-")
  values = value if isinstance(value, list) else [value]
  if any(isinstance(x, (dict, list)) or x is None for x in values) and value is not None:
    raise ValueError(f"{path}: {name} must be a number, a text, a switch or a list of them; got {value!r:.80}")
  if value is None or value == []:
    return []
  if isinstance(value, bool):
    return [(name, [f"--{name}" if value else f"--no-{name}"])]
  return [(name, [f"--{name}", *(str(x) for x in values)])]


def as_text(options: Finetune, said: dict[str, Any], growth: Sequence[str] = ()) -> str:
  """The file that repeats a run: every option with its value, by group, and what was chosen where none was given.

  Args:
    options: of the run.
    said: what the run chose by itself, for a comment.
    growth: comments that say where it grew: until there it had the learning rates of a shorter run.
  """
  import yaml

  lines = ["# jaxft finetune run.yaml --out FOLDER repeats this run."] if not growth else [
      "# jaxft finetune run.yaml --out FOLDER makes a run of this length in one piece. This one grew: until then it",
      "# had the learning rates of a shorter one.", *growth]
  lines += [f"# chosen: {name} = {value}" for name, value in said.items()]
  flat: dict[str, Any] = {}
  for name, value in dataclasses.asdict(options).items():
    flat |= value if isinstance(value, dict) else {name: value}
  plain = {name: list(x) if isinstance(x, tuple) else shown(x) if isinstance(x, Path) else x
           for name, x in flat.items() if name not in _NOT_KEPT}
  return "\n".join(lines) + "\n" + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
