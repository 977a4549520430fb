"""A survey of PEFT: of equal sizes and at equal steps, which family adapts best, and which forgets?

    jaxft run peft-survey            about a quarter of an hour on one core
    jaxft run peft-survey --smoke    seconds

One method of each family of the survey's taxonomy, every one with exactly 9,216 trained numbers, 0.087% of the layers:
1,536 in each of six, or a soft prompt of 24 vectors. all-MiniLM-L6-v2 learns to rate product reviews; the protocol, the
same for all, is `tasks/method_comparison.py`. The head alone, on frozen layers, is what adaptation starts from.

- selective: the norms;
- additive: an adapter of rank 2 behind the MLP, without biases;
- prompt: a soft prompt at the input, and a prefix of two positions in every layer, both without an MLP;
- low rank: LoRA of rank 1 on queries and values;
- multiplicative: OFT on the attention's matrices, (IA)^3 on the hidden units;
- sparse: SHiRA on queries and values;
- hybrid: a mix of a prefix and a parallel adapter (MAM).

The survey expects no winner beyond this: at equal steps the low-rank family is better than prompts. Baseline is the
soft prompt, method is LoRA.
"""

import dataclasses
from typing import Any

import numpy as np

from experiments.tasks.method_comparison import SMOKE, Comparison, Method, Protocol, Scores, compare
from jaxft.adapters import bottleneck, chain_adapters, prefix, soft_prompt, vocabulary_prompt
from jaxft.evaluation import paired_test
from jaxft.formats import Pretrained, load
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.transforms import learned_scale, lora, oft, shira, train

PAIR, ATTENTION = "layers/attention/{query,value}/kernel", "layers/attention/*/kernel"
BASELINE, PREFIX, METHOD, HEAD = "soft prompt", "prefix", "LoRA", "head alone"


def methods(model: Pretrained) -> dict[str, Method]:
  """One size for all: 1,536 numbers a layer of 384 dimensions; a prompt has those of all layers."""
  config = model.config
  tokens = model.params["embed"]["tokens"]["embedding"]
  prompt = soft_prompt(4 * config.num_layers, config.dim, init=vocabulary_prompt(tokens))
  mixed = chain_adapters(prefix(config, 1, stddev=0.02), bottleneck(config, 1, scale=4.0, bias=False))
  return {
      HEAD: Method("none", 0.0),
      BASELINE: Method("prompt", 1e-2, adapter=prompt, peft_type="PROMPT_TUNING"),
      PREFIX: Method("prompt", 3e-2, adapter=prefix(config, 2, stddev=0.02), peft_type="PREFIX_TUNING"),
      METHOD: Method("low rank", 3e-3, lora(PAIR, rank=1, alpha=2.0), peft_type="LORA"),
      "norms": Method("selective", 3e-3, train("layers/{attention_norm,mlp_norm}/*"), peft_type="LN_TUNING"),
      "adapter": Method("additive", 3e-3, adapter=bottleneck(config, 2, insertion="sequential", bias=False)),
      "OFT": Method("multiplicative", 1e-2, oft(ATTENTION, block=3), peft_type="OFT",
                    settings={"use_cayley_neumann": False}),
      "IA3": Method("multiplicative", 1e-2, learned_scale("layers/mlp/down/kernel", axis="in"), peft_type="IA3"),
      "SHiRA": Method("sparse", 1e-2, shira(PAIR, rank=1)),
      "MAM": Method("hybrid", 3e-3, adapter=mixed),
  }


@dataclasses.dataclass(frozen=True)
class Config(Protocol):
  domain: str = "products"
  multiples: tuple[float, ...] = (1.0, 3.0, 10.0)  # so few numbers take large steps


def run(config: Config) -> Result:
  """Compares the methods."""
  ledger, model = Ledger("peft-survey", config), load(config.model)
  found = compare(config, model, methods(model), ledger)
  sizes = {costs.trained for name, costs in found.costs.items() if name != HEAD}
  if len(sizes) != 1:
    raise ValueError(f"all methods must train as many numbers; got {sorted(sizes)}")
  target, families = found.values("target"), {name: method.family for name, method in methods(model).items()}
  against = {
      score: {name: paired_test(values[name], values[BASELINE]) for name in values if name != BASELINE}
      for score, values in ((s, found.values(s)) for s in Scores._fields)}
  supports, conclusion = conclude(found, families)
  arms = {name: Arm(name, tuple(scores), {"learning_rate": found.rates[name]}) for name, scores in target.items()}
  result = Result(
      slug="peft-survey", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric=f"Pearson's r on {config.domain}, test", higher_is_better=True, baseline=arms[BASELINE],
      method=arms[METHOD], arms=tuple(arm for name, arm in arms.items() if name not in (BASELINE, METHOD)),
      seeds=config.seeds, command="", supports_paper=supports, conclusion=conclusion,
      details={**found.details(), "family": families, "against_soft_prompt": against})
  ledger.clear()
  return result


def conclude(found: Comparison, families: dict[str, str]) -> tuple[str, str]:
  """Whether the survey's expectation holds, by a rule, and the sentences that say so.

  "true": LoRA has a better target than the soft prompt and than the prefix (both by p < 0.05). "partly": than one of
  them. Else "false".
  """
  values = {score: found.values(score) for score in Scores._fields}

  def against(score: str, a: str, b: str) -> Any:
    return paired_test(values[score][a], values[score][b])

  prompts = [name for name in (BASELINE, PREFIX) if name in values["target"]]
  better = [t.sign > 0 for t in (against("target", METHOD, b) for b in prompts)]
  mean = lambda score, name: float(np.mean(values[score][name]))
  tuned = [name for name in values["target"] if name != HEAD]
  best, worst = max(tuned, key=lambda n: mean("target", n)), min(tuned, key=lambda n: mean("target", n))
  keeps, loses = max(tuned, key=lambda n: mean("kept", n)), min(tuned, key=lambda n: mean("kept", n))
  learned = [n for n in tuned if against("target", n, HEAD).sign > 0]
  described = lambda name, score: f"{name} ({families[name]}, {mean(score, name):.4f})"
  sentence = (
      f"At {found.costs[METHOD].trained:,} numbers each LoRA differs in the target "
      + " and ".join(f"from the {b} by {against('target', METHOD, b)}" for b in prompts)
      + f"; in nDCG@10 of the next sentence, {found.before:.4f} before, "
      + " and ".join(f"from the {b} by {against('kept', METHOD, b)}" for b in prompts)
      + f". The best target has {described(best, 'target')}, the least "
      f"{described(worst, 'target')}; {len(learned)} of {len(tuned)} methods are above the head alone "
      f"({mean('target', HEAD):.4f}) by p < 0.05. {described(keeps, 'kept')} keeps most and "
      f"{described(loses, 'kept')} least. The soft prompt costs "
      f"{found.costs[BASELINE].flops / found.costs[METHOD].flops:.1f} times the operations of LoRA, as every sentence "
      f"carries it.")
  if highest := found.highest():
    sentence += f" The highest rate tried was best for {', '.join(highest)}."
  return ("true" if all(better) else "partly" if any(better) else "false"), sentence


EXPERIMENT = Experiment(
    slug="peft-survey", title="Parameter-Efficient Fine-Tuning for Foundation Models: A Survey", arxiv="2501.13787",
    areas=("transforms", "adapters"), config=Config, smoke=Config(**SMOKE, methods=(HEAD, BASELINE, METHOD)), run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
