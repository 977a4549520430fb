"""Running a study from the command line: `jaxft run SLUG [--smoke] [--out FILE] [overrides of the config]`."""

import dataclasses
import importlib.util
import shlex
from pathlib import Path
from typing import Any

from jaxft.compilation import use_compilation_cache
from jaxft.files import check_writable, write_text
from jaxft.host_memory import keep_freed_memory
from jaxft.studies.conduct import conduct
from jaxft.studies.findings import Findings
from jaxft.studies.ledger import Ledger
from jaxft.studies.page import note_of, page
from jaxft.studies.plot import plot
from jaxft.studies.result_file import check_path, write
from jaxft.studies.study import Study
from jaxft.together import is_first


def run(
    study: Study, config: Any, *, flags: list[str], out: Path | None, smoke: bool = False, package: str = "experiments"
) -> Findings:
  """Conducts a study, going on where a killed run was, prints what it found, and writes its files.

  Under `jax.distributed` the processes share out its runs; the first prints and writes.

  Args:
    study: what to run.
    config: how.
    flags: of the command line, for the result's own.
    out: the JSON file; its scores, page and plot lie beside it. None writes nothing.
    smoke: whether it is to try the path, for which no premise need hold.
    package: that the study is of.

  Raises:
    ValueError: `out` is no place for a result, before any work.
    OSError: its folder cannot be written.
    ModuleNotFoundError: matplotlib, which draws the plot, is not installed.
  """
  if not is_first():
    out = None
  if out is not None:  # before the work, so that none is done in vain
    check_out(out)
  keep_freed_memory()
  use_compilation_cache()
  ledger = Ledger(study.slug, config, package)
  findings = conduct(study, config, ledger, smoke=smoke)
  where = [] if package == "experiments" else ["--package", package]
  findings = dataclasses.replace(findings, command=shlex.join(["jaxft", "run", study.slug, *where, *flags]))
  if is_first():
    print(page(study, findings))
  if out is not None:
    print(f"written to {write(study, findings, out)}, with its page {write_page(study, findings, out)}")
  if is_first():
    ledger.clear()
  return findings


def check_out(out: Path) -> None:
  """Whether a result can be written there, with its page and plot; see `run`."""
  check_path(out)
  check_writable(out.parent)
  note_of(out)  # a note that is too long
  if importlib.util.find_spec("matplotlib") is None:
    raise ModuleNotFoundError("matplotlib, which draws a result's plot, is not installed (extra `experiments`)")


def write_page(study: Study, findings: Findings, out: Path) -> Path:
  """The page, and the plot where there is something to draw, beside a result file."""
  figure = plot(study, findings, out.with_suffix(".svg")) if findings.arms else None
  write_text(out.with_suffix(".md"), page(study, findings, figure=figure and figure.name, note=note_of(out)))
  return out.with_suffix(".md")
