"""A unified view of PEFT: at one budget, which of the adapter's design choices count, and does mixing the best win?

    jaxft run unified-peft            six minutes on one core
    jaxft run unified-peft --smoke    seconds

A small BERT that reads digits in three views learns transposed ones (`tasks/method_comparison.py`) by adapters of 824
numbers a layer. (Inverted ones in half as many steps lacked the premise: the sequential adapter gained 0.044 over the
head alone.) Each arm differs from the one before it in one choice:

- sequential: an adapter of rank 8 behind the MLP, Pfeiffer's;
- parallel: beside it;
- scaled parallel: added twice, the paper's scale for classification;
- MAM: a prefix of two positions, and a scaled parallel adapter of rank 6. The prefix is trained through the paper's
  MLP, whose numbers are among those that train; 822 a layer are kept.

The head alone, on frozen layers, is what adaptation starts from.
"""

import dataclasses

from experiments.tasks.method_comparison import SCORES, SMOKE as SMALL, Protocol, Way, World
from jaxft.adapters import bottleneck, mam
from jaxft.studies.study import Arm, Bars, Claim, Premise, Study, higher, not_lower

HEAD, BASELINE, PARALLEL, SCALED, METHOD = "head alone", "sequential", "parallel", "scaled parallel", "MAM"


@dataclasses.dataclass(frozen=True)
class Config:
  protocol: Protocol = Protocol(view="transposed", steps=200)
  rank: int = 8  # of an adapter that has the whole budget
  length: int = 2  # of MAM's prefix, in ranks
  hidden: int = 32  # of the MLP that it trains through
  scale: float = 2.0
  head_rates: tuple[float, ...] = (3e-2, 1e-1, 3e-1, 1.0)
  rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2, 1e-1)
  seeds: tuple[int, ...] = tuple(range(16))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    protocol=SMALL, rank=3, length=1, hidden=4, head_rates=(1e-1,), rates=(1e-1,), seeds=(0, 1), tuning_seeds=(100,))


def arms(config: Config) -> dict[str, Arm]:
  """The head alone, and adapters of one size."""
  world, c = World(config.protocol), config
  model = world.model
  adapters = {
      BASELINE: bottleneck(model, c.rank, insertion="sequential"),
      PARALLEL: bottleneck(model, c.rank),
      SCALED: bottleneck(model, c.rank, scale=c.scale),
      METHOD: mam(model, length=c.length, rank=c.rank - c.length, scale=c.scale, hidden=c.hidden)}
  return {HEAD: world.arm(Way(), c.head_rates)} | {
      name: world.arm(Way(adapter=adapter), c.rates) for name, adapter in adapters.items()}


STUDY = Study(
    slug="unified-peft", title="Towards a Unified View of Parameter-Efficient Transfer Learning", arxiv="2110.04366",
    question="little memory", use_when="an adapter is to be put into a model, and it must be decided where and how",
    setting="a BERT of 4 layers that reads digits in three views learns transposed ones by adapters of 3,300 numbers",
    config=Config, smoke=SMOKE, arms=arms, scores=SCORES, choose_by="new", baseline=BASELINE, method=METHOD,
    start=HEAD, kept="kept",
    premises=(
        Premise("the sequential adapter gains over the head alone", lambda s: s[BASELINE].new - s[HEAD].new,
                at_least=0.05),),
    claims=(
        Claim("MAM tells more new digits than the sequential adapter", higher("new"), smallest=0.01),
        Claim("a parallel adapter tells no fewer than a sequential one", not_lower("new", PARALLEL, BASELINE),
              smallest=0.01),
        Claim("a scaled parallel adapter tells more than one that is not", higher("new", SCALED, PARALLEL),
              smallest=0.01),
        Claim("MAM tells more than the scaled parallel adapter alone", higher("new", METHOD, SCALED), smallest=0.01)),
    plot=Bars("new"))
