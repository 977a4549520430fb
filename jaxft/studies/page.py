"""The page of a result, made from its file alone: the verdict first, then what it rests on."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxft.evaluation import crossed_mean
from jaxft.studies.findings import ABSENT, Findings, FoundArm
from jaxft.studies.study import Study
from jaxft.studies.verdict import Judged


def page(study: Study, findings: Findings, *, figure: str | None = None, note: str | None = None) -> str:
  """Markdown.

  Args:
    study: what was declared.
    findings: what was found.
    figure: the name of the plot's file, beside the page.
    note: at most three sentences that somebody wrote after the result.
  """
  parts = [
      f"# {study.title}",
      f"arXiv {study.arxiv}, `{study.slug}`. **{findings.verdict.capitalize()}.** {headline(study, findings)}",
      f"Setting: {study.setting}. Use it when {study.use_when}.",
      "## Premises\n\nMeasured on the tuning seeds, on validation data, before anything else.\n\n" + table(
          ("premise", "measured", "at least", "holds"),
          [(p.text, number(p.measured), number(p.at_least), "yes" if p.holds else "**no**")
           for p in findings.premises]) if findings.premises else "",
      _claims(findings) if findings.claims else "",
      f"![{study.slug}]({figure})" if figure else "",
      _arms(study, findings) if findings.arms else "",
      f"Note, by hand: {note.strip()}" if note else "",
      _origin(findings),
  ]
  return "\n\n".join(part for part in parts if part) + "\n"


def headline(study: Study, findings: Findings) -> str:
  """The primary claim with its interval, or what an absent premise means."""
  if findings.verdict == ABSENT:
    return "What the claims presuppose does not hold in this setting, so that nothing was compared."
  claim = findings.claims[0]
  lower = " (lower is better)" if claim.says == "lower" else ""
  return (f"{claim.text}: {with_interval(claim.mean, claim.low, claim.high, sign=True)}{lower}, "
          f"{len(findings.seeds)} seeds.")


def _claims(findings: Findings) -> str:
  rows = [(("**primary** " if i == 0 else "") + claim.text, says(claim),
           with_interval(claim.mean, claim.low, claim.high, sign=True), f"{claim.p_holm:.2g}",
           claim.verdict + (" by Holm" if claim.by_holm else ""), number(claim.detectable),
           str(claim.seeds_needed) if claim.seeds_needed is not None and claim.verdict == "inconclusive" else "")
          for i, claim in enumerate(findings.claims)]
  edges = sorted({arm for claim in findings.claims for arm in claim.at_edge})
  more = f" Nothing is decided of {', '.join(edges)}, whose choice is still at an end of its grid." if edges else ""
  if any(claim.by_holm for claim in findings.claims):
    more += " *By Holm*: by itself the claim would be decided, beside the others it is not."
  if any(claim.says == "lower" for claim in findings.claims):
    more += " Where a claim says below, lower is better."
  return (
      "## Claims\n\nDifferences, each with its own 95% interval over seeds and items; p by Holm over these claims, and "
      "below 0.05 a claim is decided; what 80% power would detect, and the seeds that the smallest effect of interest "
      f"needs where nothing is decided.{more}\n\n" + table(
          ("claim", "says", "difference", "p", "verdict", "detectable", "seeds needed"), rows))


def _arms(study: Study, findings: Findings) -> str:
  costs = sorted({what for arm in findings.arms.values() for what in arm.cost})
  rows = []
  for name, arm in findings.arms.items():
    scores = [mean_of(arm.scores[score.name]) for score in study.scores]
    rows.append((name, _setting(study, arm), *scores, *(number(arm.cost[c]) if c in arm.cost else "" for c in costs)))
  what = "; ".join(f"{score.name}: {score.what}" + ("" if score.higher_is_better else " (lower is better)")
                   for score in study.scores)
  tuned = any(arm.curve for arm in findings.arms.values())
  chosen = f", as {study.choose_by} on validation data chose" if tuned else ""
  return f"## Arms\n\nOn test data{chosen}. {what}.\n\n" + table(
      ("arm", "chosen", *(score.name for score in study.scores), *costs), rows)


def _setting(study: Study, arm: FoundArm) -> str:
  """What was chosen; a number that the study did not name stands by itself."""
  named = lambda name: "" if list(arm.setting) == ["rate"] else f"{name} "
  marked = lambda name: f"{named(name)}{number(arm.setting[name])}" + (
      " (at the edge)" if name in arm.at_edge else "")
  sign = 1.0 if study.score(study.choose_by).higher_is_better else -1.0
  others = len(arm.best_settings(sign)) - 1 if arm.curve else 0
  return ", ".join(map(marked, arm.setting)) + (f" (as good as {others} other{'s' * (others > 1)})" if others else "")


def _origin(findings: Findings) -> str:
  versions = ", ".join(f"{name} {version}" for name, version in findings.versions.items())
  return (
      f"    {findings.command}\n\nSeeds {_span(findings.seeds)}, chosen by {_span(findings.tuning_seeds)}; "
      f"{findings.seconds / 60:.0f} minutes on {findings.device}; commit {findings.commit or 'unknown'}; {versions}. "
      f"Every score is in `{findings.slug}.npz`, every choice in `{findings.slug}.json`.")


def _span(seeds: Sequence[int]) -> str:
  first, last = min(seeds), max(seeds)
  run = len(seeds) > 2 and list(seeds) == list(range(first, last + 1))
  return f"{first} to {last}" if run else ", ".join(map(str, seeds))


def says(claim: Judged) -> str:
  """What a claim says of its difference, in words."""
  bound = number(claim.smallest)
  beyond = f"-{bound}" if claim.smallest else bound
  return {"higher": f"above {bound}", "lower": f"below {beyond}", "equal": f"within {bound}",
          "not lower": f"above {beyond}"}[claim.says]


def mean_of(matrix: np.ndarray) -> str:
  """The mean of a matrix `[seeds, items]` with its interval."""
  mean = crossed_mean(matrix)
  return with_interval(mean.mean, *mean.interval())


def with_interval(mean: float, low: float, high: float, *, sign: bool = False) -> str:
  """`+0.031 [0.012, 0.050]`, as many digits as the interval is sure of; the mean alone where nothing varies."""
  width = high - low
  if width <= 1e-12 * max(1.0, abs(mean)):
    return f"{mean:+.3g}" if sign and mean else number(mean)
  digits = 3 if not math.isfinite(width) else min(6, max(0, 1 - math.floor(math.log10(width))))
  shown = f"{mean:+.{digits}f}" if sign else f"{mean:.{digits}f}"
  return f"{shown} [{low:.{digits}f}, {high:.{digits}f}]"


def number(x: float) -> str:
  """Three digits that count, in full up to six places."""
  return f"{x:.3g}" if abs(x) < 1e4 else f"{x:,.0f}"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
  """A Markdown table; columns that are empty throughout are left out."""
  kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
  lines = [[row[i] for i in kept] for row in (header, ("---",) * len(header), *rows)]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def note_of(path: Path) -> str | None:
  """The note beside a result file, `<slug>.note.md`, None where nobody wrote one.

  Raises:
    ValueError: it is longer than three sentences.
  """
  file = path.with_suffix(".note.md")
  if not file.exists():
    return None
  text = file.read_text().strip()
  sentences = [s for s in text.replace("? ", ". ").replace("! ", ". ").split(". ") if s.strip()]
  if len(sentences) > 3:
    raise ValueError(f"{file.name} must be at most three sentences; got {len(sentences)}")
  return text
