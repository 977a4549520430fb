"""From a claim and its numbers to a verdict, and nothing else decides.

A mean lies in one of three regions: above the smallest effect of interest, within it on either side, below its
negative. A claim is *supported* where the interval lies in the regions that it names, *contradicted* or *equivalent*
where the interval lies in another, and *inconclusive* where it reaches across.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.evaluation import CrossedMean, crossed_mean, holm
from jaxft.studies.scored import Scored
from jaxft.studies.study import Study

LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Judged:
  """A claim with its numbers.

  Attributes:
    text: the claim.
    says, smallest: what it says of the mean; see `study.Contrast`.
    mean, low, high: the contrast, with its 95% interval over seeds and items; below 0 where "lower" is right.
    seeds, items: of the contrast.
    p_value: of what the verdict says, before Holm; of the claim where it is inconclusive.
    p_holm: the same, adjusted for the study's claims.
    verdict: "supported", "contradicted", "equivalent" or "inconclusive".
    detectable: the effect that these seeds and items would tell from 0 with 80% power.
    seeds_needed: for `smallest` to be detectable; None where only more items help.
    at_edge: arms of the contrast whose rate is still at an end of its grid: then nothing is decided.
    by_holm: whether it would be decided by itself, and is not beside the study's other claims.
  """

  text: str
  says: str
  smallest: float
  mean: float
  low: float
  high: float
  seeds: int
  items: int
  p_value: float
  p_holm: float
  verdict: str
  detectable: float
  seeds_needed: int | None
  at_edge: tuple[str, ...] = ()

  @property
  def by_holm(self) -> bool:
    return self.verdict == "inconclusive" and not self.at_edge and self.p_value < LEVEL


def judge(
    study: Study, scores: Mapping[str, Mapping[str, np.ndarray]], at_edge: Sequence[str] = ()
) -> tuple[Judged, ...]:
  """All claims of a study.

  Args:
    study: whose claims.
    scores: of each arm on test data, each a matrix `[seeds, items]`.
    at_edge: arms whose rate is still at an end of its grid.
  """
  found = []
  for claim in study.claims:
    view = Scored(scores, scores.__getitem__)  # one of its own, which tells what this claim reads
    mean = crossed_mean(np.asarray(claim.contrast.of(view, study), np.float64))
    edges = tuple(arm for arm in view.asked if arm in at_edge)
    found.append((claim, mean, edges, *decide(claim.contrast.says, mean, claim.smallest)))
  adjusted = holm([p for *_, p in found])
  judged = []
  for (claim, mean, edges, verdict, p), p_holm in zip(found, adjusted, strict=True):
    low, high = mean.interval()
    judged.append(Judged(
        text=claim.text, says=claim.contrast.says, smallest=claim.smallest, mean=mean.mean, low=low, high=high,
        seeds=mean.seeds, items=mean.items, p_value=p, p_holm=p_holm,
        verdict=verdict if p_holm < LEVEL and not edges else "inconclusive",
        detectable=mean.detectable(),
        seeds_needed=mean.seeds_needed(claim.smallest) if claim.smallest > 0 else None, at_edge=edges))
  return tuple(judged)


def check_claims(study: Study, arms: Mapping[str, Any]) -> None:
  """ValueError where a claim reads an arm or a score that the study does not have, before any work is done."""
  rng = np.random.default_rng(0)
  made_up = {score.name: rng.uniform(1, 2, (3, 4)) for score in study.scores}
  for claim in study.claims:
    try:
      with np.errstate(all="ignore"):
        claim.contrast.of(Scored(arms, lambda arm: made_up), study)
    except (KeyError, AttributeError) as e:
      raise ValueError(f"the claim {claim.text!r} reads what the study does not have: {e.args[0]}") from None
    except (ArithmeticError, ValueError):
      pass  # of numbers that are made up


def decide(says: str, mean: CrossedMean, smallest: float) -> tuple[str, float]:
  """The verdict on one claim by itself, and its p value.

  Being beyond a bound is tested at 5% on both sides, as a 95% interval does; lying between two bounds by two one-sided
  tests, each at 5%.
  """
  # The p value of each region: small where the mean can only lie in it.
  above = min(1.0, 2 * mean.p_above(smallest))
  below = min(1.0, 2 * mean.p_below(-smallest))
  within = max(mean.p_above(-smallest), mean.p_below(smallest)) if smallest > 0 else 1.0
  not_below = min(1.0, 2 * mean.p_above(-smallest))
  verdicts = {
      "higher": {"supported": above, "equivalent": within, "contradicted": below},
      "lower": {"supported": below, "equivalent": within, "contradicted": above},
      "equal": {"supported": within, "contradicted": min(above, below)},
      "not lower": {"supported": not_below, "contradicted": below},
  }[says]
  verdict = min(verdicts, key=lambda v: verdicts[v])
  if not verdicts[verdict] < LEVEL:
    return "inconclusive", verdicts["supported"]
  return verdict, verdicts[verdict]


def overall(judged: Sequence[Judged]) -> str:
  """The verdict of a study: the primary claim's, or "mixed k/m" where claims were decided in different directions."""
  verdicts = [claim.verdict for claim in judged]
  supported = verdicts.count("supported")
  against = sum(v in ("contradicted", "equivalent") for v in verdicts)
  if supported and against or supported and verdicts[0] == "inconclusive":
    return f"mixed {supported}/{len(verdicts)}"
  return verdicts[0]


def as_json(judged: Judged) -> dict[str, Any]:
  """Numbers that JSON has: what is infinite becomes None."""
  finite = lambda x: None if isinstance(x, float) and not math.isfinite(x) else x
  return {name: finite(value) for name, value in dataclasses.asdict(judged).items()}


def from_json(content: Mapping[str, Any]) -> Judged:
  """What `as_json` gave."""
  infinite = {"low": -math.inf, "high": math.inf, "detectable": math.inf}
  fields: dict[str, Any] = {name: infinite.get(name) if value is None else value for name, value in content.items()}
  fields["at_edge"] = tuple(content["at_edge"])
  return Judged(**fields)
