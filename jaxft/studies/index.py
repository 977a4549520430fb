"""The index of all results, for somebody who has a question: grouped by it, one row a study."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxft.evaluation import benjamini_hochberg, crossed_mean, ratio
from jaxft.studies.findings import ABSENT, Findings
from jaxft.studies.page import number, table, with_interval
from jaxft.studies.study import QUESTIONS, Study

MOST_WORDS = 30  # of a cell


def index(studies: Sequence[Study], found: Mapping[str, Findings], module_of: Mapping[str, str]) -> str:
  """Markdown: a table for each question that a study answers.

  Args:
    studies: all of them.
    found: the committed result of each that has one, by slug.
    module_of: the path of each study's module, as the page links to it.

  Raises:
    ValueError: a cell has more than thirty words.
  """
  current = {slug: findings for slug, findings in found.items() if findings.claims and not findings.stale}
  primaries = [study for study in studies if study.slug in current]
  adjusted = benjamini_hochberg([found[study.slug].claims[0].p_value for study in primaries])
  chance = {study.slug: q for study, q in zip(primaries, adjusted, strict=True)}
  sections = []
  for question in QUESTIONS:
    rows = [_row(study, found.get(study.slug), module_of[study.slug], chance.get(study.slug))
            for study in studies if study.question == question]
    if rows:
      sections.append(f"## {question.capitalize()}\n\n" + table(
          ("method", "use when", "gain of full tuning's", "forgets", "cost", "first claim", "setting"), rows))
  return "\n\n".join(sections)


def _row(study: Study, findings: Findings | None, module: str, chance: float | None) -> tuple[str, ...]:
  method = f"[{study.method}](results/{study.slug}.md) ([code]({module}))"
  if findings is None:
    return method, study.use_when, "", "", "", "no committed result", study.setting
  if findings.stale:  # other code made it: its arms and scores may be others
    return method, study.use_when, "", "", "", f"{_judged(findings)} (stale)", study.setting
  q = "" if chance is None else f", q = {chance:.2g}"
  row = (
      method, study.use_when, _gain(study, findings), _forgotten(study, findings), _cost(study, findings),
      _judged(findings) + q, study.setting)
  for cell in row:
    if len(cell.split()) > MOST_WORDS:
      raise ValueError(f"a cell of the index has at most {MOST_WORDS} words; {study.slug} has {cell!r}")
  return row


def _judged(findings: Findings) -> str:
  """The verdict on the first claim, which the claim alone makes plain, and that on all of them."""
  if not findings.claims:
    return findings.verdict
  first = findings.claims[0]
  alone = "" if findings.verdict == first.verdict else f" ({findings.verdict})"
  return f"{first.text}: **{first.verdict}**{' by Holm' if first.by_holm else ''}{alone}"


def _gain(study: Study, findings: Findings) -> str:
  """What the method gains over the start, in percent of what the best arm gains, and the same of the baseline."""
  if findings.verdict == ABSENT or study.start is None or study.best is None:
    return ""
  of = lambda arm: findings.arms[arm].scores[study.gain or study.choose_by].astype(np.float64)
  start, best = of(study.start), of(study.best)

  def share(arm: str) -> str:
    if arm in (study.best, study.start):
      return "100" if arm == study.best else "0"  # by definition
    mean = crossed_mean(100 * ratio(of(arm) - start, best - start))
    return with_interval(mean.mean, *mean.interval())

  other = "" if study.baseline == study.best else f"; {study.baseline} {share(study.baseline)}"
  return f"{share(study.method)}%{other}"


def _forgotten(study: Study, findings: Findings) -> str:
  if findings.verdict == ABSENT or study.start is None or study.kept is None:
    return ""
  of = lambda arm: findings.arms[arm].scores[study.kept or ""].astype(np.float64)
  lost = lambda arm: number(crossed_mean(of(study.start or "") - of(arm)).mean)
  return f"{lost(study.method)}; {study.baseline} {lost(study.baseline)}"


def _cost(study: Study, findings: Findings) -> str:
  if findings.verdict == ABSENT:
    return ""
  return ", ".join(f"{what} {number(value)}" for what, value in findings.arms[study.method].cost.items())
