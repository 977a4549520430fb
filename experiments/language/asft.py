"""ASFT: is it better to push each answer of a pair by itself than to push them apart?

    jaxft run asft            eight minutes on one core
    jaxft run asft --smoke    seconds

A decoder of two layers has learnt to sort digits from demonstrations of which half have two neighbours swapped. Pairs
of a right answer and a swapped one, a fifth of them labelled the wrong way round, tune it by supervised learning of the
chosen answers, by DPO, ORPO, or ASFT: in one stage with the likelihood of the chosen answer, as published, and alone
with a scale, as a later analysis (arXiv 2502.01237) has it.

The paper's argument is that losses of differences may lower both answers: that ASFT leaves the right ones likelier than
DPO, whose rate and scale are chosen too, is a claim. Scored is the probability with which the right answer of an unseen
prompt is drawn, which is exact. A seed draws demonstrations, init, pairs, flips and order; rate and the one number that
a loss has are chosen for each loss.
"""

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from experiments.tasks.sorted_preferences import Sorter, Told
from jaxft import losses
from jaxft.losses import Mean
from jaxft.studies.study import Arm, Claim, Front, Premise, Score, Study, higher

BEFORE, SUPERVISED, DPO, ORPO, ASFT, ALONE = (
    "before", "supervised", "DPO", "ORPO", "ASFT", "ASFT without likelihood")


@dataclasses.dataclass(frozen=True)
class Config:
  dim: int = 48
  base_steps: int = 600
  base_rate: float = 4e-3
  demonstrated: int = 4000
  habit: float = 0.5
  pairs: int = 256
  flipped: float = 0.2
  steps: int = 50
  batch_size: int = 16
  held: int = 300
  rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
  scales: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
  weights: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
  seeds: tuple[int, ...] = tuple(range(10))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    dim=16, base_steps=30, base_rate=1e-2, demonstrated=64, pairs=16, steps=4, batch_size=4, held=8, rates=(1e-3, 1e-2),
    scales=(0.1, 1.0), weights=(0.3, 1.0), seeds=(0, 1), tuning_seeds=(100,))


def supervised(told: Told) -> Array:
  """Nats of a token of the chosen answers."""
  return -jnp.sum(told.policy.sums[:, 0]) / jnp.sum(told.policy.tokens[:, 0])


def dpo(told: Told) -> Array:
  """Of scaled log-ratios; beta may be traced."""
  gained = told.beta * (told.policy.sums - told.reference)
  return Mean.of(*losses.bradley_terry(gained[:, 0], gained[:, 1])).value


def orpo(told: Told) -> Array:
  """Nats of a token of prompt and chosen answer, and the weighed odds."""
  average = told.policy.of("average")
  likelihood = -jnp.sum(told.policy.text) / jnp.sum(told.policy.text_tokens)
  return likelihood + told.beta * Mean.of(*losses.orpo(average[:, 0], average[:, 1])).value


def asft(told: Told) -> Array:
  """In one stage, as published; beta is the weight of what stands beside the likelihood."""
  average = told.policy.of("average")
  aligned = Mean.of(*losses.asft(average[:, 0], average[:, 1])).value
  return -jnp.mean(average[:, 0]) + told.beta * aligned


def asft_alone(told: Told) -> Array:
  """After supervised learning, with scaled log odds."""
  odds = told.beta * losses.log_odds(told.policy.of("average"))
  return Mean.of(*losses.pointwise_preference(odds[:, 0], odds[:, 1])).value


LOSSES = {SUPERVISED: supervised, DPO: dpo, ORPO: orpo, ASFT: asft, ALONE: asft_alone}


class World:
  """The sorter, tuned and judged."""

  def __init__(self, config: Config):
    self.config, c = config, config
    self.sorter = Sorter(
        LOSSES, dim=c.dim, base_steps=c.base_steps, base_rate=c.base_rate, demonstrated=c.demonstrated, habit=c.habit,
        pairs=c.pairs, steps=c.steps, batch_size=c.batch_size, held=c.held)

  def run(self, arm: str, rate: Any, seed: int, split: str) -> dict[str, Any]:
    """One arm."""
    chosen = rate if isinstance(rate, dict) else {"rate": rate}
    of_rate, beta = chosen.get("rate") or 0.0, next((v for name, v in chosen.items() if name != "rate"), 1.0)
    params = self.sorter.tuned(
        None if arm == BEFORE else arm, seed, rate=of_rate, beta=beta, flipped=self.config.flipped)
    found = self.sorter.judged(params, seed, split)
    return {**found, "chosen": float(found["chosen"]), "rejected": float(found["rejected"])}


def arms(config: Config) -> dict[str, Arm]:
  """The model before, and five ways to tune it."""
  world = World(config)
  numbers: dict[str, dict[str, tuple[float, ...]]] = {
      DPO: {"beta": config.scales}, ORPO: {"weight": config.weights}, ASFT: {"weight": config.weights},
      ALONE: {"beta": config.scales}}
  return {BEFORE: Arm(partial(world.run, BEFORE)), SUPERVISED: Arm(partial(world.run, SUPERVISED), config.rates),
          **{arm: Arm(partial(world.run, arm), {"rate": config.rates, **grid}) for arm, grid in numbers.items()}}


STUDY = Study(
    slug="asft", arxiv="2409.10571", title="ASFT: Aligned Supervised Fine-Tuning through Absolute Likelihood",
    question="preferences", use_when="pairs differ in few tokens, so that losses of differences lower both answers",
    setting="a 2-layer decoder that sorts digits with a habit of swapping two; 256 pairs, a fifth labelled wrongly",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("drawn", "probability of drawing the right answer of an unseen prompt"),
        Score("greedy", "share of unseen prompts answered rightly by greedy decoding"),
        Score("chosen", "nats a token of the right answers of the pairs, negated", shared_items=False),
        Score("rejected", "nats a token of their wrong answers, negated", higher_is_better=False, shared_items=False)),
    choose_by="drawn", baseline=DPO, method=ASFT, start=BEFORE,
    premises=(
        Premise("the pairs teach: DPO draws right answers more often than before",
                lambda s: s[DPO].drawn - s[BEFORE].drawn, at_least=0.05),
        Premise("flips leave something to win: supervised learning of the chosen answers misses right ones",
                lambda s: 1 - s[SUPERVISED].drawn, at_least=0.05)),
    claims=(
        Claim("ASFT draws right answers more often than DPO", higher("drawn"), smallest=0.02),
        Claim("and more often than ORPO", higher("drawn", ASFT, ORPO), smallest=0.02),
        Claim("and leaves right answers likelier than DPO, by nats a token", higher("chosen"), smallest=0.01),
        Claim("ASFT without likelihood, its scale chosen, draws them more often than with it",
              higher("drawn", ALONE, ASFT), smallest=0.02)),
    plot=Front("chosen", "drawn"))
