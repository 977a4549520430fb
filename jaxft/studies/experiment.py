"""The studies of a package of experiments, and the command line that every one of them has."""

import importlib
import pkgutil
import sys
from pathlib import Path

from jaxft import command_line
from jaxft.checks import nearest
from jaxft.studies import result_file
from jaxft.studies.command import run
from jaxft.studies.findings import Findings
from jaxft.studies.packages import find_package
from jaxft.studies.study import Study


def discover(package: str = "experiments") -> dict[str, Study]:
  """The experiments of a package by slug: every module of it, in folders too, that defines `STUDY`.

  Raises:
    ValueError: there is no such package; see `find_package`.
  """
  declared = (_declared(module) for module in _modules(package))
  return dict(sorted((study.slug, study) for study in declared if study is not None))


def find(slug: str, package: str = "experiments") -> Study:
  """One experiment by slug, its module alone imported; ValueError with the nearest slugs where there is none."""
  for module in _modules(package):
    if module.rpartition(".")[2] == slug.replace("-", "_"):
      study = _declared(module)
      if study is not None and study.slug == slug:
        return study
  studies = discover(package)
  if slug not in studies:
    raise ValueError(f"unknown experiment {slug!r}; {nearest(slug, list(studies))}")
  return studies[slug]


def _modules(package: str) -> list[str]:
  """The names of a package's modules, those of its folders included."""
  found = pkgutil.walk_packages(find_package(package).__path__, f"{package}.")
  return [info.name for info in found if not info.ispkg]


def _declared(module: str) -> Study | None:
  found = vars(importlib.import_module(module)).get("STUDY")
  return found if isinstance(found, Study) else None


def results_folder(package: str = "experiments") -> Path:
  """Where the committed results of a package of experiments lie."""
  return Path(find_package(package).__path__[0]) / "results"


def committed(study: Study, package: str = "experiments") -> Findings | None:
  """The committed result of a study, None where there is none yet."""
  path = results_folder(package) / f"{study.slug}.json"
  return result_file.read(study, path) if path.exists() else None


def main(study: Study, args: list[str] | None = None, package: str = "experiments") -> Findings:
  """Runs a study from the command line: `[--smoke] [--out FILE] [overrides of the config]`.

  A run with the default config writes the committed result file; a smoke run or one with overrides writes only where
  `--out` says, so that a committed number always comes from the command that stands in it.

  Args:
    study: what to run.
    args: of the command line; None takes those of the process.
    package: that the study is of, `a.b` where it lies in another one: its results lie there.

  Raises:
    ValueError: the study is not of the package; `--out` is no place for a result.
  """
  module = study.arms.__module__
  if module != "__main__" and not f"{module}.".startswith(f"{package}."):
    raise ValueError(f"package must be one that holds {study.slug}, whose arms are made in {module}; got {package!r}")
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
  command = f"jaxft run {study.slug}"
  description = f"{study.title} (arXiv {study.arxiv}). Also: --smoke (seconds), --out FILE."
  default = study.smoke if smoke else study.config()
  config = command_line.parse(study.config, rest, prog=command, default=default, description=description)
  if out is None and config == study.config():
    out = results_folder(package) / f"{study.slug}.json"
  flags = (["--smoke"] if smoke else []) + rest
  return run(study, config, flags=flags, out=out, smoke=smoke, package=package)
