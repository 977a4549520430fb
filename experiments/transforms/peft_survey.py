"""A survey of PEFT: of equal sizes and at equal steps, do low-rank updates adapt better than prompts?

    jaxft run peft-survey            three minutes on one core
    jaxft run peft-survey --smoke    seconds

A small BERT that reads digits in three views learns transposed ones (`tasks/method_comparison.py`; at flipped ones a
head alone is nearly as good). Every method trains 192 numbers a layer beside it, or as many for all layers together:

- a soft prompt of four vectors a layer, before the states that enter the first one, drawn at the size of these states;
- a prefix of two positions in every layer, without an MLP;
- LoRA of rank 1 on queries and values.

The survey expects no winner beyond this: at equal steps the low-rank family is better than prompts. The head alone, on
frozen layers, is what adaptation starts from.
"""

import dataclasses

from experiments.tasks.method_comparison import SCORES, SMOKE as SMALL, Protocol, Way, World
from jaxft.adapters import prefix, random_prompt, soft_prompt
from jaxft.studies.study import Arm, Claim, Front, Premise, Study, higher
from jaxft.transforms import lora

HEAD, BASELINE, PREFIX, METHOD = "head alone", "soft prompt", "prefix", "LoRA"


@dataclasses.dataclass(frozen=True)
class Config:
  protocol: Protocol = Protocol(view="transposed")
  head_rates: tuple[float, ...] = (3e-2, 1e-1, 3e-1, 1.0)
  prompt_rates: tuple[float, ...] = (1e-2, 3e-2, 1e-1, 3e-1)
  rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2, 1e-1)
  seeds: tuple[int, ...] = tuple(range(16))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    protocol=SMALL, head_rates=(1e-1,), prompt_rates=(3e-1,), rates=(1e-1,), seeds=(0, 1), tuning_seeds=(100,))


def arms(config: Config) -> dict[str, Arm]:
  """The head alone, and one size for all methods."""
  world = World(config.protocol)
  model = world.model
  prompt = soft_prompt(4 * model.num_layers, model.dim, init=random_prompt())
  low_rank = lora("layers/attention/{query,value}/kernel", rank=1, alpha=2.0)
  return {
      HEAD: world.arm(Way(), config.head_rates),
      BASELINE: world.arm(Way(adapter=prompt), config.prompt_rates),
      PREFIX: world.arm(Way(adapter=prefix(model, 2, stddev=0.02)), config.prompt_rates),
      METHOD: world.arm(Way(low_rank), config.rates)}


STUDY = Study(
    slug="peft-survey", title="Parameter-Efficient Fine-Tuning for Foundation Models: A Survey", arxiv="2501.13787",
    question="little memory", use_when="some hundred numbers may train, and families differ in where they put them",
    setting="a BERT of 4 layers that reads digits in three views learns transposed ones by 768 trained numbers",
    config=Config, smoke=SMOKE, arms=arms, scores=SCORES, choose_by="new", baseline=BASELINE, method=METHOD,
    start=HEAD, kept="kept",
    premises=(
        Premise("LoRA of rank 1 gains over the head alone", lambda s: s[METHOD].new - s[HEAD].new, at_least=0.05),),
    claims=(
        Claim("LoRA tells more new digits than a soft prompt", higher("new"), smallest=0.02),
        Claim("LoRA tells more than a prefix", higher("new", METHOD, PREFIX), smallest=0.02),
        Claim("a prefix in every layer tells more than a prompt before them", higher("new", PREFIX, BASELINE),
              smallest=0.02)),
    plot=Front("kept", "new"))
