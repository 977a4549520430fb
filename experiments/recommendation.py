"""What a user should take from a comparison of methods, computed from its result in two lines."""

import numpy as np

from jaxft.evaluation import crossed_mean
from jaxft.studies.findings import ABSENT, Findings
from jaxft.studies.page import mean_of, number
from jaxft.studies.study import Study


def recommendation(study: Study, findings: Findings) -> str:
  """Markdown: the best by the score that chooses; and of all that are as good as the baseline, the cheapest.

  A method is as good as another where the 95% interval of what it lacks, over seeds and items, reaches 0.

  Args:
    study: of whose arms `start` is not to be taken.
    findings: its result; all arms but the start count the same costs, of which less is better.
  """
  source = f"[result](results/{study.slug}.md)"
  if findings.verdict == ABSENT:
    return f"Nobody knows yet: the setting lacks what the comparison presupposes ({source})."
  arms = {name: arm for name, arm in findings.arms.items() if name != study.start}
  scores = {name: arm.scores[study.choose_by].astype(np.float64) for name, arm in arms.items()}
  as_good_as = lambda other: [name for name in scores if name != other and crossed_mean(
      scores[other] - scores[name]).interval()[0] <= 0]

  best = max(scores, key=lambda name: scores[name].mean())
  equals = as_good_as(best)
  first = (f"Where only {study.score(study.choose_by).what} counts, take **{best}** ({mean_of(scores[best])}); "
           + (f"not told from it: {', '.join(equals)}." if equals else "all others are below it."))

  good = as_good_as(study.baseline)
  if not good:
    return f"- {first}\n- No other is as good as {study.baseline}.\n\nHere {study.setting} ({source})."
  cheapest = {what: min(good, key=lambda name: arms[name].cost[what]) for what in arms[good[0]].cost}
  parts = [f"least {what}: **{name}** ({number(arms[name].cost[what])})" for what, name in cheapest.items()]
  if study.kept is not None:
    kept = {name: arms[name].scores[study.kept] for name in good}
    keeps = max(kept, key=lambda name: kept[name].mean())
    parts.insert(0, f"highest {study.score(study.kept).what}: **{keeps}** ({mean_of(kept[keeps])}; {study.baseline} "
                    f"{mean_of(arms[study.baseline].scores[study.kept])})")
  return (
      f"- {first}\n- As good as {study.baseline} are {', '.join(good)}. Of these the {'; '.join(parts)}.\n\n"
      f"Here {study.setting} ({source}).")
