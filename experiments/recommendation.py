"""What a user should take from a comparison of methods, computed from its result in two lines."""

from collections.abc import Mapping

import numpy as np

from jaxft.evaluation import crossed_mean, holm
from jaxft.studies.findings import ABSENT, Findings
from jaxft.studies.page import mean_of, number
from jaxft.studies.study import Study
from jaxft.studies.verdict import LEVEL, decide


def recommendation(study: Study, findings: Findings) -> str:
  """Markdown: the best by the score that chooses; and which methods are shown to be as good as the baseline.

  As good is less than the first claim's smallest effect of interest below it; shown is p < 0.05, by Holm over the
  methods. A method that is not shown to be below the baseline may be so still, and is named apart. With each stands
  what it keeps.

  Args:
    study: of whose arms `start` is not to be taken.
    findings: its result; all arms but the start count the same costs, of which less is better.
  """
  source = f"[result](results/{study.slug}.md)"
  if findings.stale:
    return f"Nobody knows now: the comparison's code has changed since ({source})."
  if findings.verdict == ABSENT:
    return f"Nobody knows yet: the setting lacks what the comparison presupposes ({source})."
  arms = {name: arm for name, arm in findings.arms.items() if name != study.start}
  scores = {name: arm.scores[study.choose_by] for name, arm in arms.items()}
  kept = {name: arm.scores[study.kept] for name, arm in arms.items()} if study.kept is not None else {}
  keeps = lambda name: f" (keeps {number(float(kept[name].mean()))})" if kept else ""
  names = lambda some: ", ".join(name + keeps(name) for name in some)

  best, base = max(scores, key=lambda name: scores[name].mean()), study.baseline
  of_kept = (f"it keeps {mean_of(kept[best])} of {study.score(study.kept or '').what}, {base} {mean_of(kept[base])}; "
             if kept else "")
  below = _shown("lower", scores, best, 0.0)
  near = [name for name in scores if name not in (best, *below)]
  what = study.score(study.choose_by).what
  first = (f"Where only {what} counts, take **{best}** ({mean_of(scores[best])}); {of_kept}"
           + (f"not shown to be below it: {names(near)}." if near else "all others are shown to be below it."))

  margin = number(study.claims[0].smallest)
  good = _shown("not lower", scores, base, study.claims[0].smallest)
  undecided = [name for name in scores if name not in (base, *good, *_shown("lower", scores, base, 0.0))]
  second = f"Shown to be less than {margin} below {base}{keeps(base)}, or above it: {names(good) or 'none'}."
  if good:
    cheapest = {what: min(good, key=lambda name: arms[name].cost[what]) for what in arms[good[0]].cost}
    parts = [f"least {what} **{name}** ({number(arms[name].cost[what])})" for what, name in cheapest.items()]
    if kept:
      parts.insert(0, f"**{max(good, key=lambda name: kept[name].mean())}** keeps most")
    second += f" Of these {'; '.join(parts)}."
  if undecided:
    second += f" Not decided, as neither that nor being below {base} is shown: {names(undecided)}."
  return f"- {first}\n- {second}\n\nHere {study.setting} ({source})."


def _shown(says: str, scores: Mapping[str, np.ndarray], than: str, smallest: float) -> list[str]:
  """The methods of which that is supported against another, at 5% over all of them."""
  others = [name for name in scores if name != than]
  found = [decide(says, crossed_mean(scores[name] - scores[than]), smallest) for name in others]
  adjusted = holm([p for _, p in found])
  return [name for name, (verdict, _), p in zip(others, found, adjusted, strict=True)
          if verdict == "supported" and p < LEVEL]
