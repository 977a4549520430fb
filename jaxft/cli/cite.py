"""`jaxft cite`: BibTeX of the papers behind functions, runs and experiments."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from jaxft.command_line import parse


@dataclasses.dataclass(frozen=True)
class Cite:
  """Prints BibTeX of the papers behind functions (`jaxft cite lora ties`), a run's folder, an experiment."""

  names: Annotated[tuple[str, ...], tyro.conf.Positional]
  """Functions of the library by name, folders of finished runs, slugs of experiments."""
  package: str = "experiments"
  """The package whose modules define the experiments."""


def main(args: list[str]) -> None:
  from jaxft.citations import bibtex

  options = parse(Cite, args, prog="jaxft cite")
  if not options.names:
    raise ValueError("names: give at least one function, run folder or experiment")
  print(bibtex(tuple(number for name in options.names for number in _numbers(name, options.package))))


def _numbers(name: str, package: str) -> tuple[str, ...]:
  """The arXiv identifiers behind a name; ValueError where it is unknown or names no paper."""
  from jaxft.citations import cited_by, public_functions
  from jaxft.formats.safetensors import read_json
  from jaxft.recipes.run_folder import SUMMARY
  from jaxft.studies.experiment import find

  if Path(name).is_dir():
    path = Path(name) / SUMMARY
    if not path.exists():
      raise ValueError(f"{name} has no {SUMMARY}: it is no folder of a finished run")
    numbers = read_json(path).get("arxiv", [])
    if not isinstance(numbers, list) or not all(isinstance(number, str) for number in numbers):
      raise ValueError(f"{path}: arxiv must be a list of identifiers; got {json.dumps(numbers):.80}")
  elif name in public_functions():
    numbers = cited_by(name)
  else:
    try:
      numbers = (find(name, package).arxiv,)
    except ValueError as e:
      raise ValueError(f"{name!r} is no function of the library, no folder and no experiment; {e}") from None
  if not numbers:
    raise ValueError(f"{name} names no paper on arXiv")
  return tuple(numbers)
