"""Which method? Seven ways to tune an encoder at their usual sizes, beside full tuning: gain, what is lost, and cost.

    jaxft run which-method            seven minutes on one core
    jaxft run which-method --smoke    seconds

A small BERT that reads digits in three views learns a fourth; protocol, seeds and scores are those that all methods
share (`tasks/method_comparison.py`). Methods have sizes that they are commonly used at, in proportion to the model, not
equal ones: `transforms/peft_survey.py` has equal ones. The question is what a user asks: which one, when quality,
forgetting and cost all count? What follows for a user is computed (`experiments/recommendation.py`).
"""

import dataclasses

from experiments.tasks.method_comparison import SCORES, SMOKE as SMALL, Protocol, Way, World
from jaxft.adapters import bottleneck
from jaxft.models import EncoderConfig
from jaxft.studies.study import Arm, Claim, Front, Premise, Study, higher, not_lower
from jaxft.transforms import dora, ia3, lora, oft, shira, train

SELECT = "layers/**/kernel"
HEAD, BASELINE, METHOD = "head alone", "full", "LoRA"


@dataclasses.dataclass(frozen=True)
class Config:
  protocol: Protocol = Protocol(view="transposed")
  rank: int = 4
  width: int = 8  # of the adapter
  block: int = 16  # of OFT's rotations
  head_rates: tuple[float, ...] = (3e-2, 1e-1, 3e-1, 1.0)
  full_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
  rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2, 1e-1)
  methods: tuple[str, ...] | None = None  # None takes all
  seeds: tuple[int, ...] = tuple(range(12))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    protocol=SMALL, rank=1, width=2, block=4, head_rates=(1e-1,), full_rates=(1e-2,), rates=(1e-1,),
    methods=(HEAD, BASELINE, METHOD, "DoRA", "adapter"), seeds=(0, 1), tuning_seeds=(100,))


def ways(model: EncoderConfig, config: Config) -> dict[str, Way]:
  """The methods."""
  return {
      HEAD: Way(),
      BASELINE: Way(train("layers/**")),
      METHOD: Way(lora(SELECT, rank=config.rank)),
      "DoRA": Way(dora(SELECT, rank=config.rank)),
      "adapter": Way(adapter=bottleneck(model, config.width, insertion="sequential")),
      "SHiRA": Way(shira(SELECT, rank=config.rank)),
      "OFT": Way(oft(SELECT, block=config.block)),
      "(IA)^3": Way(ia3()),
      "BitFit": Way(train("layers/**/bias")),
  }


def arms(config: Config) -> dict[str, Arm]:
  """All methods, or those that the config names."""
  world, grids = World(config.protocol), {HEAD: config.head_rates, BASELINE: config.full_rates}
  return {name: world.arm(way, grids.get(name, config.rates)) for name, way in ways(world.model, config).items()
          if config.methods is None or name in config.methods}


STUDY = Study(
    slug="which-method", title="Which method? Seven ways to tune, beside full tuning", arxiv="2501.13787",
    question="many methods side by side",
    use_when="an encoder is to learn something new from some hundred examples, and quality, forgetting and cost count",
    setting="a BERT of 4 layers that reads digits in three views learns transposed ones from 300 images",
    config=Config, smoke=SMOKE, arms=arms, scores=SCORES, choose_by="new", baseline=BASELINE, method=METHOD,
    start=HEAD, best=BASELINE, kept="kept",
    premises=(
        Premise("full tuning gains over the head alone", lambda s: s[BASELINE].new - s[HEAD].new, at_least=0.1),
        Premise("full tuning loses in the old views", lambda s: s[HEAD].kept - s[BASELINE].kept, at_least=0.1)),
    claims=(
        Claim("LoRA tells no fewer new digits than full tuning", not_lower("new"), smallest=0.02),
        Claim("LoRA keeps more in the old views", higher("kept"), smallest=0.02),
        Claim("DoRA tells more new digits than LoRA", higher("new", "DoRA", METHOD), smallest=0.01),
        Claim("an adapter tells no fewer than LoRA", not_lower("new", "adapter", METHOD), smallest=0.02)),
    plot=Front("kept", "new"))
