"""What an experiment module declares, and the command line that every one of them has."""

import dataclasses
import importlib
import pkgutil
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxft.checks import nearest
from jaxft.compilation import use_compilation_cache
from jaxft.host_memory import keep_freed_memory
from jaxft.studies import findings
from jaxft.studies.command import run
from jaxft.studies.findings import Findings
from jaxft.studies.result import Result, read, with_environment, write
from jaxft.studies.study import Study


class Experiment(NamedTuple):
  """One system's experiment.

  Attributes:
    slug: name of the system's card.
    title: title of the paper.
    arxiv: its identifier.
    areas: parts of the library that the system lives in.
    config: a frozen dataclass type whose defaults make the committed result.
    smoke: the same in seconds: few steps, little data, the whole path.
    run: `config -> Result`.
  """

  slug: str
  title: str
  arxiv: str
  areas: tuple[str, ...]
  config: type
  smoke: Any
  run: Callable[[Any], Result]


def discover(package: str = "experiments") -> dict[str, Experiment | Study]:
  """The experiments of a package by slug: every module of it, in folders too, that defines `STUDY` or `EXPERIMENT`.

  Raises:
    ModuleNotFoundError: there is no such package on the path.
  """
  declared = (_declared(module) for module in _modules(package))
  return dict(sorted((experiment.slug, experiment) for experiment in declared if experiment is not None))


def find(slug: str, package: str = "experiments") -> Experiment | Study:
  """One experiment by slug, its module alone imported; ValueError with the nearest slugs where there is none."""
  for module in _modules(package):
    if module.rpartition(".")[2] == slug.replace("-", "_"):
      experiment = _declared(module)
      if experiment is not None and experiment.slug == slug:
        return experiment
  experiments = discover(package)
  if slug not in experiments:
    raise ValueError(f"unknown experiment {slug!r}; {nearest(slug, list(experiments))}")
  return experiments[slug]


def _modules(package: str) -> list[str]:
  """The names of a package's modules, those of its folders included."""
  found = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
  return [info.name for info in found if not info.ispkg]


def _declared(module: str) -> Experiment | Study | None:
  declared = vars(importlib.import_module(module))
  found = declared.get("STUDY", declared.get("EXPERIMENT"))
  return found if isinstance(found, Experiment | Study) else None


def results_folder(package: str = "experiments") -> Path:
  """Where the committed results of a package of experiments lie."""
  return Path(importlib.import_module(package).__path__[0]) / "results"


def committed(slug: str, package: str = "experiments") -> Result | None:
  """The committed result of an experiment, None where there is none yet."""
  path = results_folder(package) / f"{slug}.json"
  return read(path) if path.exists() else None


def committed_findings(study: Study, package: str = "experiments") -> Findings | None:
  """The committed result of a study, None where there is none yet."""
  path = results_folder(package) / f"{study.slug}.json"
  return findings.read(study, path) if path.exists() else None


def main(experiment: Experiment | Study, args: list[str] | None = None) -> Result | Findings:
  """Runs an experiment from the command line: `[--smoke] [--out FILE] [overrides of the config]`.

  A run with the default config writes the committed result file; a smoke run or one with overrides writes only where
  `--out` says, so that a committed number always comes from the command that stands in it.
  """
  import tyro

  args = sys.argv[1:] if args is None else args
  smoke = "--smoke" in args
  rest = [a for a in args if a != "--smoke"]
  out = None
  if "--out" in rest:
    at = rest.index("--out")
    if at + 1 == len(rest):
      raise ValueError("--out takes a file name")
    out = Path(rest[at + 1])
    del rest[at : at + 2]
  command = f"jaxft run {experiment.slug}"
  description = f"{experiment.title} (arXiv {experiment.arxiv}). Also: --smoke (seconds), --out FILE."
  default = experiment.smoke if smoke else experiment.config()
  config = tyro.cli(experiment.config, default=default, args=rest, prog=command, description=description)
  if out is None and config == experiment.config():
    out = results_folder() / f"{experiment.slug}.json"
  flags = (["--smoke"] if smoke else []) + rest
  if isinstance(experiment, Study):
    return run(experiment, config, flags=flags, out=out, smoke=smoke)
  keep_freed_memory()
  use_compilation_cache()
  start = time.perf_counter()
  result = experiment.run(config)
  result = dataclasses.replace(result, command=shlex.join(["jaxft", "run", experiment.slug, *flags]))
  result = with_environment(result, seconds=time.perf_counter() - start)
  print(f"{result.slug}: {result.metric}\n  {result.headline}")
  print(f"  supports the paper: {result.supports_paper}. {result.conclusion}")
  if out is not None:
    print(f"  written to {write(result, out)}")
  return result
