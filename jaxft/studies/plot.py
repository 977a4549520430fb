"""The one picture of a result: bars of a score, a front of two or lines over several, with their intervals."""

from pathlib import Path
from typing import Any

from jaxft.evaluation import crossed_mean
from jaxft.files import write_atomically
from jaxft.studies.findings import Findings
from jaxft.studies.study import Bars, Front, Lines, Study


def plot(study: Study, findings: Findings, path: str | Path) -> Path:
  """Writes an SVG, the same bytes for the same result.

  Raises:
    ValueError: there are no arms: a premise was absent.
    ModuleNotFoundError: matplotlib is not installed (extra `experiments`).
  """
  if not findings.arms:
    raise ValueError(f"{study.slug} has no arms to draw: {findings.verdict}")
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  with matplotlib.rc_context({"svg.hashsalt": study.slug, "svg.fonttype": "none", "font.size": 9}):
    figure, axes = pyplot.subplots(figsize=(6.4, 1.2 + 0.32 * max(4, len(findings.arms))), layout="constrained")
    wanted = study.plot or Bars(study.scores[0].name)
    if isinstance(wanted, Front):
      _front(axes, study, findings, wanted)
    elif isinstance(wanted, Lines):
      _lines(axes, study, findings, wanted)
    else:
      _bars(axes, study, findings, wanted)
    axes.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda target: figure.savefig(target, format="svg", metadata={"Date": None}))
    pyplot.close(figure)
  return Path(path)


def _spread(findings: Findings, arm: str, score: str) -> tuple[float, float]:
  """The mean, and half of its interval."""
  mean = crossed_mean(findings.arms[arm].scores[score])
  low, high = mean.interval()
  return mean.mean, (high - low) / 2


def _colour(study: Study, arm: str) -> str:
  return {study.method: "#1f77b4", study.baseline: "#d62728"}.get(arm, "#7f7f7f")


def _bars(axes: Any, study: Study, findings: Findings, wanted: Bars) -> None:
  for row, arm in enumerate(reversed(findings.arms)):
    mean, half = _spread(findings, arm, wanted.score)
    axes.errorbar(mean, row, xerr=half, fmt="o", color=_colour(study, arm), capsize=3)
  axes.set_yticks(range(len(findings.arms)), list(reversed(findings.arms)))
  axes.set_xlabel(study.score(wanted.score).what)
  axes.grid(axis="x", alpha=0.3)


def _front(axes: Any, study: Study, findings: Findings, wanted: Front) -> None:
  for arm in findings.arms:
    (x, dx), (y, dy) = (_spread(findings, arm, score) for score in wanted)
    axes.errorbar(x, y, xerr=dx, yerr=dy, fmt="o", color=_colour(study, arm), capsize=2)
    axes.annotate(arm, (x, y), xytext=(4, 4), textcoords="offset points")
  axes.set_xlabel(study.score(wanted.x).what)
  axes.set_ylabel(study.score(wanted.y).what)
  axes.grid(alpha=0.3)


def _lines(axes: Any, study: Study, findings: Findings, wanted: Lines) -> None:
  width = 0.5 / len(findings.arms)  # arms stand beside each other, so that no interval hides another
  for row, arm in enumerate(findings.arms):
    found = [_spread(findings, arm, score) for _, score in wanted.points]
    at = [i + width * (row - (len(findings.arms) - 1) / 2) for i in range(len(found))]
    means, halves = zip(*found, strict=True)
    named = arm in (study.method, study.baseline)
    axes.errorbar(at, means, yerr=halves, marker="o", markersize=4, capsize=2, label=arm, zorder=2 + named,
                  color=_colour(study, arm) if named else f"C{row + 2}", linewidth=1.8 if named else 1)
  axes.set_xticks(range(len(wanted.points)), [name for name, _ in wanted.points])
  axes.set_xlabel(wanted.x)
  axes.set_ylabel(wanted.y)
  axes.grid(axis="y", alpha=0.3)
  axes.legend(fontsize=8)
