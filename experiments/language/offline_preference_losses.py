"""Offline preference losses side by side, where nearly a third of the pairs is labelled the wrong way round.

    jaxft run offline-preference-losses            twelve minutes on one core
    jaxft run offline-preference-losses --smoke    seconds

A decoder of two layers has learnt to sort digits from demonstrations of which half have two neighbours swapped. Pairs
of a right answer and a swapped one, three in ten of them flipped, tune it by fourteen losses; three of them also learn
from the same pairs without a flip. Rate and the one number that a loss has (the scale of its scores, or its weight
beside the likelihood) are chosen for each loss and share of flips.

Robust DPO is made for flips, of which it is told the share, and IPO regresses the lead to a finite one: both should
lose less than DPO. Scored is the probability with which the right answer of an unseen prompt is drawn, which is exact,
and log-probabilities of the pairs' right and wrong answers. A seed draws demonstrations, init, pairs, flips and order.
"""

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from experiments.tasks.sorted_preferences import Sorter, Told
from jaxft import losses
from jaxft.losses import Mean
from jaxft.losses.preference.pairwise import Ranking
from jaxft.losses.preference.pointwise import PointwiseRanking
from jaxft.studies.study import Arm, Bars, Claim, Contrast, Premise, Score, Study, higher

BEFORE, SUPERVISED, DPO, ROBUST, IPO, CLEAN = "before", "supervised", "DPO", "robust DPO", "IPO", ", no flips"
FLIPPED = 0.3


@dataclasses.dataclass(frozen=True)
class Config:
  dim: int = 48
  base_steps: int = 600
  base_rate: float = 4e-3
  demonstrated: int = 4000
  habit: float = 0.5
  pairs: int = 256
  steps: int = 40
  batch_size: int = 16
  held: int = 300
  rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
  scales: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
  seeds: tuple[int, ...] = tuple(range(10))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    dim=16, base_steps=30, base_rate=1e-2, demonstrated=64, pairs=16, steps=4, batch_size=4, held=8, rates=(1e-3, 1e-2),
    scales=(0.1, 1.0), seeds=(0, 1), tuning_seeds=(100,))


def gained(told: Told, *, per_token: bool = False) -> tuple[Array, Array]:
  """Scaled log-ratios of chosen and rejected answers; the scale may be traced."""
  ratios = told.beta * (told.policy.sums - told.reference)
  ratios = ratios / jnp.maximum(told.policy.tokens, 1) if per_token else ratios
  return ratios[:, 0], ratios[:, 1]


def paired(told: Told, *, kind: Ranking = "logistic", flips: float = 0.0, per_token: bool = False) -> Array:
  """DPO's kin; a square is of scores that are not scaled, as IPO has it."""
  found = Mean.of(*losses.bradley_terry(*gained(told, per_token=per_token), kind=kind, label_smoothing=flips)).value
  return found / told.beta**2 if kind == "square" else found


def pointwise(told: Told, *, kind: PointwiseRanking) -> Array:
  """Each response by itself."""
  return Mean.of(*losses.pointwise_preference(*gained(told), kind=kind)).value


def kto(told: Told) -> Array:
  """Chosen and rejected answers as judged ones, with the policy's drift from answers to other prompts."""
  chosen, rejected = gained(told)
  drift = jnp.maximum(losses.mismatched_kl(told.beta * told.other).value, 0.0)
  good = jnp.arange(2 * len(chosen)) < len(chosen)
  return Mean.of(*losses.kto(jnp.concatenate([chosen, rejected]), good, drift, beta=1.0)).value


def aot(told: Told) -> Array:
  """Quantile by quantile."""
  chosen, rejected = (told.beta * told.policy.sums).T
  before = told.beta * told.reference
  return Mean.of(*losses.aot(chosen, rejected, before[:, 0], before[:, 1], beta=1.0)).value


def likelihood(told: Told) -> Array:
  """Nats of a token of the chosen answers."""
  return -jnp.sum(told.policy.sums[:, 0]) / jnp.sum(told.policy.tokens[:, 0])


def simpo(told: Told) -> Array:
  """Without a reference, per token and without a margin; the scale is ten times that of sums."""
  scaled = 10 * told.beta * told.policy.of("average")
  return Mean.of(*losses.simpo(scaled[:, 0], scaled[:, 1], beta=1.0, margin=0.0)).value


def cpo(told: Told) -> Array:
  """Without a reference, with the likelihood."""
  scaled = told.beta * told.policy.sums
  return likelihood(told) + Mean.of(*losses.cpo(scaled[:, 0], scaled[:, 1], beta=1.0)).value


def orpo(told: Told) -> Array:
  """Nats of a token of prompt and chosen answer, and the weighed odds."""
  average = told.policy.of("average")
  text = -jnp.sum(told.policy.text) / jnp.sum(told.policy.text_tokens)
  return text + told.beta * Mean.of(*losses.orpo(average[:, 0], average[:, 1])).value


def asft(told: Told) -> Array:
  """Scaled log odds, each by itself, without the likelihood."""
  odds = told.beta * losses.log_odds(told.policy.of("average"))
  return Mean.of(*losses.pointwise_preference(odds[:, 0], odds[:, 1])).value


LOSSES = {
    SUPERVISED: likelihood, DPO: paired, "cDPO": partial(paired, flips=FLIPPED),
    ROBUST: partial(paired, kind="robust", flips=FLIPPED), IPO: partial(paired, kind="square", per_token=True),
    "hinge": partial(paired, kind="hinge"), "EXO": partial(paired, kind="exo", flips=1e-3), "AOT": aot,
    "NCA": partial(pointwise, kind="nca"), "APO-zero": partial(pointwise, kind="apo_zero"), "KTO": kto, "SimPO": simpo,
    "CPO": cpo, "ORPO": orpo, "ASFT": asft}


class World:
  """The sorter, tuned and judged."""

  def __init__(self, config: Config):
    c = config
    self.sorter = Sorter(
        LOSSES, with_other=("KTO",), dim=c.dim, base_steps=c.base_steps, base_rate=c.base_rate,
        demonstrated=c.demonstrated, habit=c.habit, pairs=c.pairs, steps=c.steps, batch_size=c.batch_size, held=c.held)

  def run(self, loss: str | None, flipped: float, chosen: Any, seed: int, split: str) -> dict[str, Any]:
    """One arm."""
    numbers = chosen if isinstance(chosen, dict) else {"rate": chosen or 0.0}
    params = self.sorter.tuned(
        loss, seed, rate=numbers["rate"], beta=numbers.get("scale", 1.0), flipped=flipped)
    found = self.sorter.judged(params, seed, split)
    return {**found, "chosen": float(found["chosen"]), "rejected": float(found["rejected"])}


def arms(config: Config) -> dict[str, Arm]:
  """The model before, supervised learning and fourteen losses with flips, and three of these without."""
  world = World(config)
  both = {"rate": config.rates, "scale": config.scales}
  found = {BEFORE: Arm(partial(world.run, None, 0.0)),
           SUPERVISED: Arm(partial(world.run, SUPERVISED, FLIPPED), config.rates)}
  found |= {loss: Arm(partial(world.run, loss, FLIPPED), both) for loss in LOSSES if loss != SUPERVISED}
  return found | {loss + CLEAN: Arm(partial(world.run, loss, 0.0), both) for loss in (DPO, ROBUST, IPO)}


def kept(arm: str) -> Contrast:
  """How much less a loss falls by the flips than DPO does, in its probability of drawing right answers."""
  fall = lambda s, arm: s[arm + CLEAN].drawn - s[arm].drawn
  return Contrast(lambda s, study: fall(s, DPO) - fall(s, arm), "higher")


STUDY = Study(
    slug="offline-preference-losses", arxiv="2305.18290",
    title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    question="preferences", use_when="a preference loss is to be chosen and some of the labels are wrong",
    setting="a 2-layer decoder that sorts digits with a habit of swapping two; 256 pairs, three in ten flipped",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("drawn", "probability of drawing the right answer of an unseen prompt"),
        Score("greedy", "share of unseen prompts answered rightly by greedy decoding"),
        Score("chosen", "nats a token of the right answers of the pairs, negated", shared_items=False),
        Score("rejected", "nats a token of their wrong answers, negated", higher_is_better=False, shared_items=False)),
    choose_by="drawn", baseline=DPO, method=ROBUST, start=BEFORE, best=DPO + CLEAN,
    premises=(
        Premise("flips harm DPO, by the probability of drawing right answers",
                lambda s: s[DPO + CLEAN].drawn - s[DPO].drawn, at_least=0.02),
        Premise("pairs without a flip teach DPO", lambda s: s[DPO + CLEAN].drawn - s[BEFORE].drawn, at_least=0.05)),
    claims=(
        Claim("under flips robust DPO draws right answers more often than DPO", higher("drawn"), smallest=0.02),
        Claim("robust DPO loses less by the flips than DPO", kept(ROBUST), smallest=0.02),
        Claim("IPO loses less by the flips than DPO", kept(IPO), smallest=0.02),
        Claim("under flips ASFT, which is given no reference, draws right answers more often than DPO",
              higher("drawn", "ASFT", DPO), smallest=0.02)),
    plot=Bars("drawn"))
