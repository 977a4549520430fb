"""What a study declares: its arms, what is scored, what must hold first, what it claims. The rest is computed.

    STUDY = Study(
        slug="hft", arxiv="2404.18466", title="HFT: Half Fine-Tuning for Large Language Models",
        question="keep old skills", use_when="tasks come one after the other and each forgets the last",
        setting="a 4-layer transformer on turned digits, then five tasks of two digits each",
        config=Config, smoke=SMOKE, arms=arms,
        scores=(Score("op", "accuracy over five tasks after the last"), Score("base", "accuracy on turned digits")),
        choose_by="op", baseline="full", method="hft",
        premises=(Premise("full tuning forgets", lambda s: s["start"].base - s["full"].base, at_least=0.1),),
        claims=(Claim("HFT ends higher than full tuning", higher("op"), smallest=0.01),))
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxft.checks import nearest

# What a practitioner comes with; the index is grouped by it, in this order.
QUESTIONS = (
    "few labels", "keep old skills", "merge", "compress", "little memory", "embeddings", "which data", "which layers",
    "preferences", "vision and language", "generation", "many methods side by side")
MOST_CLAIMS = 4  # the first is primary; more is exploring
SAYS = ("higher", "lower", "equal", "not lower")  # what a claim may say of its difference


class Grid(NamedTuple):
  """The values of one number that validation chooses from.

  Where the best lies at an end, values beyond it are tried, each three times the last, unless the number ends there.

  Attributes:
    values: at least four in a committed study, ascending.
    low, high: the least and the greatest value that have a meaning: 0 and 1 for a share.
  """

  values: tuple[float, ...]
  low: float = 0.0
  high: float = math.inf


class Arm(NamedTuple):
  """One way that a study compares.

  Attributes:
    run: `(rate, seed, split) -> {score: items}`. The split is "validation" or "test"; the items of a score are one
      number each (`[items]`), rows for a statistic of them (`[items, ...]`), or a single number. The rate is a float;
      `{name: value}` where several numbers are chosen; None where none is.
    rates: what to choose from: numbers, a `Grid`, or `{name: either}` for every combination. Empty: nothing is chosen.
      Arms of equal grids share one: where one arm needs it wider, it is wider for all.
    cost: `() -> {what: number}`, once, before test data is opened: trained share, operations against full tuning, bytes
      of state.
  """

  run: Callable[[Any, int, str], Mapping[str, Any]]
  rates: Sequence[float] | Grid | Mapping[str, Sequence[float] | Grid] = ()
  cost: Callable[[], Mapping[str, float]] | None = None


class Score(NamedTuple):
  """What is measured of a run.

  Attributes:
    name: an identifier: `s["full"].name` in a premise or a contrast.
    what: with its unit and what it is of, in a few words.
    of: a statistic of the items in place of their mean, such as a correlation; see `evaluation.influences`.
    higher_is_better: its direction.
    shared_items: whether every seed is scored on the same items, in one order. Otherwise a seed's score is one number.
  """

  name: str
  what: str
  of: Callable[[np.ndarray], float] | None = None
  higher_is_better: bool = True
  shared_items: bool = True


class Premise(NamedTuple):
  """What must hold in this setting for the claims to mean anything; measured on the tuning seeds, on validation data.

  Attributes:
    text: what holds.
    measure: of the means of the scores: `lambda s: s["start"].base - s["full"].base`.
    at_least: the measure from which on it holds.
  """

  text: str
  measure: Callable[[Any], float]
  at_least: float


class Contrast(NamedTuple):
  """What a claim is about: a matrix `[seeds, items]` of differences, and what is said of its mean.

  Attributes:
    of: `(s, study) -> matrix`, with `s["full"].op` the scores `[seeds, items]` of an arm.
    says: "higher" than `smallest`, "lower" than minus it, "equal" to 0 within it, or "not lower" than minus it.
  """

  of: Callable[[Any, Any], np.ndarray]
  says: str


def higher(score: str, arm: str | None = None, than: str | None = None) -> Contrast:
  """The arm's score is above another's; the method's above the baseline's where they are not named."""
  return Contrast(_difference(score, arm, than), "higher")


def lower(score: str, arm: str | None = None, than: str | None = None) -> Contrast:
  """The arm's score is below another's: the difference is negative where the claim is right."""
  return Contrast(_difference(score, arm, than), "lower")


def equal(score: str, arm: str | None = None, than: str | None = None) -> Contrast:
  """The two scores are equal within the smallest difference of interest, by two one-sided tests."""
  return Contrast(_difference(score, arm, than), "equal")


def not_lower(score: str, arm: str | None = None, than: str | None = None) -> Contrast:
  """The arm's score is not below another's by the smallest difference of interest."""
  return Contrast(_difference(score, arm, than), "not lower")


def _difference(score: str, arm: str | None, than: str | None) -> Callable[[Any, Any], np.ndarray]:
  return lambda s, study: getattr(s[arm or study.method], score) - getattr(s[than or study.baseline], score)


class Claim(NamedTuple):
  """A sentence that the numbers decide.

  Attributes:
    text: with its unit where it has one.
    contrast: `higher("op")`, `equal("op", "a", "b")`, or `Contrast(lambda s, study: ..., "higher")`.
    smallest: the smallest effect of interest: less than this is as good as none.
  """

  text: str
  contrast: Contrast
  smallest: float


class Front(NamedTuple):
  """A plot of two scores against each other, one point an arm."""

  x: str
  y: str


class Bars(NamedTuple):
  """A plot of one score, one bar an arm."""

  score: str


class Lines(NamedTuple):
  """A plot of several scores in their order, one line an arm, such as the quality of each size of a model.

  Attributes:
    points: of the horizontal axis, `(its name there, the score)`.
    x, y: what the axes show.
  """

  points: tuple[tuple[str, str], ...]
  x: str
  y: str


def plotted(plot: Front | Bars | Lines | None) -> tuple[str, ...]:
  """The scores that a plot shows."""
  return tuple(score for _, score in plot.points) if isinstance(plot, Lines) else tuple(plot or ())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """One system's study.

  Attributes:
    slug, title, arxiv: of the system's card, and of the paper.
    question: one of `QUESTIONS`: where the index has it.
    use_when: the premise, as advice, in a few words.
    setting: model, task, data and sizes, in one or two lines.
    config: a frozen dataclass type with `seeds` and `tuning_seeds`; its defaults make the committed result.
    smoke: the same in seconds.
    arms: `config -> {name: Arm}`; the world is made here, once. It may not open test data: see `jaxft.seal`. The code
      of the study is the module of this function, and what that imports of its top package.
    scores: what is measured.
    choose_by: the score that chooses rates on validation data.
    baseline, method: the arms that a contrast compares by itself.
    premises: what must hold first.
    claims: the first is primary.
    start, best: arms that gains are measured from and against: the untuned model and full tuning, where there are such.
    gain: the score that gains are measured in; that of `choose_by` where none is named.
    kept: the score of what the model could before, for the index's column of what is forgotten.
    plot: what people would look at.
  """

  slug: str
  title: str
  arxiv: str
  question: str
  use_when: str
  setting: str
  config: type
  smoke: Any
  arms: Callable[[Any], dict[str, Arm]]
  scores: tuple[Score, ...]
  choose_by: str
  baseline: str
  method: str
  premises: tuple[Premise, ...]
  claims: tuple[Claim, ...]
  start: str | None = None
  best: str | None = None
  gain: str | None = None
  kept: str | None = None
  plot: Front | Bars | Lines | None = None

  def __post_init__(self) -> None:
    names = [score.name for score in self.scores]
    if self.question not in QUESTIONS:
      raise ValueError(f"question must be one of QUESTIONS; got {self.question!r}; {nearest(self.question, QUESTIONS)}")
    for field in ("choose_by", "gain", "kept"):
      name = getattr(self, field) or self.choose_by
      if name not in names:
        raise ValueError(f"{field} must be one of the scores {names}; got {name!r}")
    if len(set(names)) != len(names) or not all(name.isidentifier() for name in names):
      raise ValueError(f"scores must have different identifiers as names; got {names}")
    if not 1 <= len(self.claims) <= MOST_CLAIMS:
      raise ValueError(f"claims must be one to {MOST_CLAIMS}, the first primary; got {len(self.claims)}")
    for claim in self.claims:
      if claim.contrast.says not in SAYS:
        raise ValueError(f"claims must say one of {', '.join(SAYS)}; {claim.text!r} says {claim.contrast.says!r}")
      least = 0.0 if claim.contrast.says in ("higher", "lower") else math.nextafter(0.0, 1.0)
      if not least <= claim.smallest < math.inf:
        raise ValueError("smallest must be finite and > 0 (0 where a claim says higher or lower); "
                         f"{claim.text!r} has {claim.smallest}")
    for premise in self.premises:
      if not math.isfinite(premise.at_least):
        raise ValueError(f"at_least must be finite; the premise {premise.text!r} has {premise.at_least}")
    if unknown := [name for name in plotted(self.plot) if name not in names]:
      raise ValueError(f"plot must be of the scores {names}; got {unknown[0]!r}; {nearest(unknown[0], names)}")

  def score(self, name: str) -> Score:
    """A score by name."""
    return next(score for score in self.scores if score.name == name)
