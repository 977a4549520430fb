"""Preference losses by name, one table: what each ranks, its usual settings, rate and sources. It imports no JAX."""

from collections.abc import Callable
from typing import Any, NamedTuple

Make = Callable[[Any, Any, Any], tuple[Any, Any]]


class Preference(NamedTuple):
  """A loss.

  Attributes:
    make: `(jaxft.losses, sides, settings) -> (values, weights)`; `sides` is `Sides` of `objective`, `settings` below.
    beta: its usual one; None: it has none. Where `beta_weighs` it is the weight of the loss beside the likelihood.
    rate: the usual peak learning rate, as a share of the method's in supervised tuning.
    arxiv: of its sources.
    score: what is ranked: "sum" or "average" of the log-probabilities of a response's tokens.
    reference: whether it reads log-probabilities under a reference.
    sides: "pair", "judged" (single responses, each with a judgement) or "response".
    likelihood: the usual weight of the likelihood of the chosen response beside it.
    likelihood_of: that likelihood is a mean over all tokens of the "responses", over those of the "texts", prompts and
      responses, or an "average" over responses of theirs.
    label_smoothing: the usual one; None: it takes none.
    margin: the usual lead that is asked for; None: it takes none.
    whole: it compares all of a batch, so that micro-batches are scored first and compared together.
    diverges: it takes another divergence from the reference than reverse KL.
  """

  make: Make
  beta: float | None
  rate: float
  arxiv: tuple[str, ...]
  score: str = "sum"
  reference: bool = True
  sides: str = "pair"
  likelihood: float = 0.0
  likelihood_of: str = "responses"
  label_smoothing: float | None = None
  margin: float | None = None
  whole: bool = False
  beta_weighs: bool = False
  diverges: bool = False


class Settings(NamedTuple):
  """What a run sets of a loss; see `Preference` and, of those below `likelihood`, `options.Loss`."""

  beta: float | None = None
  label_smoothing: float | None = None
  margin: float | None = None
  likelihood: float = 0.0
  desirable_weight: float = 1.0
  undesirable_weight: float = 1.0
  divergence: str = "reverse_kl"
  divergence_alpha: float = 0.5
  length_alpha: float = 1.0
  wpo: bool = False
  reward_alpha: float = 0.0


DPO = "2305.18290"
# Full tuning by DPO is usual at 1e-6, a twentieth of supervised tuning's 2e-5.
LOW = 0.05


def _dpo(kind: str, smoothing: bool = False, per_token: bool = False, diverges: bool = False) -> Make:
  def make(losses: Any, s: Any, settings: Any) -> Any:
    more = {"label_smoothing": settings.label_smoothing} if smoothing else {}
    more |= {"divergence": settings.divergence, "alpha": settings.divergence_alpha} if diverges else {}
    lengths = {"chosen_tokens": s.tokens[:, 0], "rejected_tokens": s.tokens[:, 1]} if per_token else {}
    return losses.dpo(*s.four, beta=settings.beta, kind=kind, where=s.where, **more, **lengths)

  return make


def _aot(paired: bool) -> Make:
  return lambda losses, s, settings: losses.aot(
      *s.four, beta=settings.beta, label_smoothing=settings.label_smoothing, paired=paired, where=s.where)


def _ipo(losses: Any, s: Any, settings: Any) -> Any:
  return losses.ipo(*s.four, s.tokens[:, 0], s.tokens[:, 1], beta=settings.beta, where=s.where)


def _kto(losses: Any, s: Any, settings: Any) -> Any:
  return losses.kto(
      s.policy[:, 0] - s.reference[:, 0], s.desirable, s.kl, beta=settings.beta, where=s.where,
      desirable_weight=settings.desirable_weight, undesirable_weight=settings.undesirable_weight)


def _simpo(losses: Any, s: Any, settings: Any) -> Any:
  two = [losses.alpha_reward(x, alpha=settings.reward_alpha) for x in s.two] if settings.reward_alpha else s.two
  return losses.simpo(*two, beta=settings.beta, margin=settings.margin, label_smoothing=settings.label_smoothing,
                      where=s.where)


def _cpo(losses: Any, s: Any, settings: Any) -> Any:
  return losses.cpo(*s.two, beta=settings.beta, label_smoothing=settings.label_smoothing, where=s.where)


def _poft(losses: Any, s: Any, settings: Any) -> Any:
  return losses.poft(
      s.policy[:, 0], s.reference[:, 0], beta=settings.beta, margin=settings.margin, where=s.where)


def _ranked(kind: str, beta: float, arxiv: tuple[str, ...], label_smoothing: float | None = None) -> Preference:
  """One of the rankings of `bradley_terry`, by sums, against a reference."""
  make = _dpo(kind, smoothing=label_smoothing is not None, diverges=True)
  return Preference(make, beta, LOW, arxiv, label_smoothing=label_smoothing, diverges=True)


PREFERENCES: dict[str, Preference] = {
    "dpo": _ranked("logistic", 0.1, (DPO,), 0.0),
    "dpo_norm": Preference(_dpo("logistic", True, per_token=True), 5.0, LOW, (DPO, "2411.15124"), label_smoothing=0.0),
    "robust": _ranked("robust", 0.1, (DPO, "2403.00409"), 0.1),
    "ipo": Preference(_ipo, 0.1, LOW, ("2310.12036",)),
    "hinge": _ranked("hinge", 0.1, (DPO, "2305.10425")),
    "exo": _ranked("exo", 0.1, (DPO, "2402.00856"), 1e-3),
    "discopop": _ranked("discopop", 0.05, (DPO, "2406.08414")),
    "nca": Preference(_dpo("nca"), 0.01, LOW, (DPO, "2402.05369")),
    "bco": Preference(_dpo("bco"), 0.1, LOW, (DPO, "2404.04656")),
    "sppo": Preference(_dpo("sppo"), 0.1, LOW, (DPO, "2405.00675")),
    "apo_zero": Preference(_dpo("apo_zero"), 0.1, LOW, (DPO, "2408.06266")),
    "apo_down": Preference(_dpo("apo_down"), 0.1, LOW, (DPO, "2408.06266")),
    "aot": Preference(_aot(True), 0.1, LOW, (DPO, "2406.05882"), label_smoothing=0.0, whole=True),
    "aot_unpaired": Preference(_aot(False), 0.1, LOW, (DPO, "2406.05882"), label_smoothing=0.0, whole=True),
    "kto": Preference(_kto, 0.1, LOW, ("2402.01306",), sides="judged", whole=True),
    "simpo": Preference(_simpo, 2.0, LOW, ("2405.14734",), "average", False, label_smoothing=0.0, margin=1.0),
    "cpo": Preference(_cpo, 0.1, LOW, ("2401.08417",), "sum", False, likelihood=1.0, label_smoothing=0.0),
    "orpo": Preference(
        lambda losses, s, settings: losses.orpo(*s.two, where=s.where), 0.1, 0.4, ("2403.07691",), "average", False,
        likelihood=1.0, likelihood_of="texts", beta_weighs=True),
    "asft": Preference(
        lambda losses, s, settings: losses.asft(*s.two, beta=settings.beta, where=s.where), 1.0, 0.3,
        ("2409.10571", "2502.01237"), "average", False, likelihood=1.0, likelihood_of="average"),
    "poft": Preference(
        _poft, 1.0, 1.0, ("2412.12865",), "average", sides="response", margin=0.0),
}


def reads(name: str) -> tuple[str, ...]:
  """The options that a loss of this name reads."""
  loss = PREFERENCES[name]
  out = [option for option in ("beta", "label_smoothing", "margin") if getattr(loss, option) is not None]
  out += ["reference"] if loss.reference else []
  out += ["desirable_weight", "undesirable_weight"] if loss.sides == "judged" else []
  out += ["divergence", "divergence_alpha"] if loss.diverges else []
  out += ["length_alpha", "wpo"] if loss.sides == "pair" and loss.reference and loss.score == "sum" else []
  out += ["reward_alpha"] if name == "simpo" else []
  return (*out, *(["likelihood"] if loss.sides == "pair" else []))


def more_sources(settings: Settings) -> tuple[str, ...]:
  """arXiv ids of what the settings add to a loss."""
  return (*(["2309.16240"] if settings.divergence != "reverse_kl" else []),
          *(["2409.06411"] if settings.length_alpha != 1 else []), *(["2406.11827"] if settings.wpo else []),
          *(["2501.03884"] if settings.reward_alpha else []))


def by_value(option: str) -> str:
  """The usual settings of the losses that read an option, for a help page, as `2 for simpo, 0.1 for all others`."""
  found: dict[float, list[str]] = {}
  for name, loss in PREFERENCES.items():
    if option == "rate" or option in reads(name):
      found.setdefault(getattr(loss, option), []).append(name)
  most = max(found, key=lambda value: len(found[value]))
  parts = [f"{value:g} for {', '.join(names)}" for value, names in found.items() if value != most]
  last = "all others" if len(found[most]) > 3 else ", ".join(found[most])
  return ", ".join([*parts, f"{most:g} for {last}"])
