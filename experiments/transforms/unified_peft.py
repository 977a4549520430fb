"""A unified view of PEFT: at one budget, which of the adapter's design choices count, and does mixing the best win?

    jaxft run unified-peft            about twenty minutes on one core
    jaxft run unified-peft --smoke    seconds

all-MiniLM-L6-v2 learns to rate sentences (`tasks/sentiment_rating.py`) by adapters of 73,728 numbers each, 0.7%
of its layers, and a linear head at one rate. Each pair of arms differs in one choice:

- insertion: an adapter behind the MLP (sequential, Pfeiffer's) or beside it (parallel);
- composition: the parallel one added as it is, or scaled by 4;
- what is changed: the MLP, or the attention;
- form: LoRA on queries and values, which has no activation function, and a prefix, a softmax over learned vectors;
- the mix: MAM, a short prefix and a scaled parallel adapter of the MLP together.

Adapters have no biases here, so that all budgets are equal to the number. A prefix is trained through the paper's
MLP, of which only the vectors are kept and counted. All arms share seeds, batches and the grid of learning rates, among
which Pearson's r on validation sentences decides; the head alone, on frozen layers, is what adaptation starts from.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.tasks.sentiment_rating import (
  Scorer,
  draw_batches,
  load_sentences,
  objective,
  separate_head_rate,
  with_head,
)
from jaxft.adapters import Adapter, bottleneck, chain_adapters, collapse_prefix, prefix
from jaxft.evaluation import PairedTest, paired_test
from jaxft.formats import load
from jaxft.models import EncoderConfig
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.studies.sweep import sweep
from jaxft.studies.tuner import Tuner
from jaxft.transforms import ParamTransform, chain, lora, train
from jaxft.tree import count


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "minilm-l6"
  domain: str = "news"
  steps: int = 32
  batch_size: int = 16
  sentences: int | None = None  # of each split for evaluation; None takes all
  rank: int = 16  # of an adapter that has the whole budget
  scale: float = 4.0
  mam_prefix: int = 4  # of MAM's budget, in ranks
  hidden: int = 64  # of the MLP that a prefix trains through
  head_rate: float = 3e-3
  learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  tuning_seeds: tuple[int, ...] = (100,)


SMOKE = Config(
    model="minilm-l6:tiny", steps=2, batch_size=4, sentences=8, learning_rates=(3e-3,), seeds=(0, 1))

BASELINE, PARALLEL, SCALED = "sequential, MLP", "parallel, MLP", "scaled parallel, MLP"
ATTENTION, LORA, PREFIX = "scaled parallel, attention", "LoRA, queries and values", "prefix"
METHOD, HEAD = "MAM", "head alone"


class Method(NamedTuple):
  """What trains beside the head: an adapter, or a transform of the layers, or nothing."""

  adapter: Adapter | None = None
  layers: ParamTransform | None = None

  @property
  def transform(self) -> ParamTransform:
    if self.adapter is not None:
      return train(["head/*", "edits/**"])
    return train("head/*") if self.layers is None else chain(train("head/*"), self.layers)


def methods(config: Config, encoder: EncoderConfig) -> dict[str, Method]:
  """The arms. An adapter of rank r, a prefix of length r and LoRA of rank r/2 on two matrices all add 2 r d a layer."""
  r, adapter = config.rank, partial(bottleneck, encoder, config.rank, bias=False)
  mixed = chain_adapters(
      prefix(encoder, config.mam_prefix, hidden=config.hidden),
      bottleneck(encoder, r - config.mam_prefix, scale=config.scale, bias=False))
  return {
      BASELINE: Method(adapter(insertion="sequential")),
      PARALLEL: Method(adapter()),
      SCALED: Method(adapter(scale=config.scale)),
      ATTENTION: Method(adapter(scale=config.scale, site="layers/attention/heads")),
      LORA: Method(layers=lora("layers/attention/{query,value}/kernel", rank=r // 2, alpha=r)),
      PREFIX: Method(prefix(encoder, r, hidden=config.hidden)),
      METHOD: Method(mixed),
      HEAD: Method(),
  }


def kept(method: Method, params: Any, encoder: EncoderConfig) -> int:
  """How many numbers a trained method adds to the model; of a prefix its vectors, without the MLP they came from."""
  if method.adapter is None:
    transform = method.layers
    return 0 if transform is None else count(jax.eval_shape(transform.split, jax.random.key(0), params)[1])
  collapse = lambda p: collapse_prefix(p, encoder) if "mlp" in p else p

  def final(key: jax.Array) -> Any:
    params = method.adapter.init(key)
    return [collapse(p) for p in (params if isinstance(params, tuple) else (params,))]

  return count(jax.eval_shape(final, jax.random.key(0)))


def run(config: Config) -> Result:
  """Chooses a rate for each arm on validation sentences, trains each seed and scores it on test sentences."""
  ledger = Ledger("unified-peft", config)
  model = load(config.model)
  params = with_head(model.params)
  data = load_sentences(model, config.domain, "train")
  splits = {s: load_sentences(model, config.domain, s, limit=config.sentences) for s in ("validation", "test")}

  values, rates, tuning, plain = {}, {}, {}, Scorer(model)
  arms = methods(config, model.config)
  for arm, method in arms.items():
    adapter = method.adapter
    score = plain if adapter is None else Scorer(model, adapter=adapter)
    loss = objective(model, adapter=adapter)
    tuner = Tuner(loss, method.transform, steps=config.steps, optimizer=separate_head_rate(config.head_rate))

    def reach(rate: float, seed: int, split: str) -> float:
      start = params if adapter is None else {**params, "edits": adapter.init(jax.random.key(seed))}
      batches = draw_batches(data, steps=config.steps, batch_size=config.batch_size, seed=seed)
      return score(tuner(start, batches, rate=rate, seed=seed), splits[split])

    grid = config.learning_rates if arm != HEAD else config.learning_rates[:1]  # of the head alone it is no matter
    rates[arm], tuning[arm], values[arm] = sweep(
        ledger, arm, grid, reach, tuning_seeds=config.tuning_seeds, seeds=config.seeds)

  tests = {f"{a} against {b}": paired_test(values[a], values[b]) for a, b in CHOICES}
  numbers = {arm: kept(method, model.params, model.config) for arm, method in arms.items()}
  supports, conclusion = conclude(tests, {arm: float(np.mean(v)) for arm, v in values.items()}, numbers)
  made = {arm: Arm(arm, tuple(v), {"learning_rate": rates[arm]}) for arm, v in values.items()}
  result = Result(
      slug="unified-peft", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric=f"Pearson's r on {config.domain}, test", higher_is_better=True,
      baseline=made[BASELINE], method=made[METHOD],
      arms=tuple(arm for name, arm in made.items() if name not in (BASELINE, METHOD)), seeds=config.seeds, command="",
      supports_paper=supports, conclusion=conclusion,
      details={
          "trained_and_kept": numbers, "share_of_layers": {
              arm: n / count(model.params["layers"]) for arm, n in numbers.items()},
          "choices": tests, "validation": tuning, "sentences": {s: len(part) for s, part in splits.items()},
      })
  ledger.clear()
  return result


# What the paper holds of each choice: the first is no worse than the second.
CHOICES = (
    (PARALLEL, BASELINE), (SCALED, PARALLEL), (SCALED, BASELINE), (SCALED, ATTENTION), (SCALED, LORA),
    (METHOD, BASELINE), (METHOD, SCALED), (METHOD, PREFIX), (METHOD, LORA), (BASELINE, HEAD),
)


def conclude(tests: dict[str, PairedTest], means: dict[str, float], numbers: dict[str, int]) -> tuple[str, str]:
  """Whether the paper is supported, by a rule, and the sentence that says so.

  "true": MAM is better than the sequential adapter (p < 0.05) and the best arm on average. "partly": MAM or the scaled
  parallel adapter is better than the sequential one (p < 0.05). Else "false".
  """
  test = lambda a, b: tests[f"{a} against {b}"]
  best = max(means, key=means.get)
  if test(METHOD, BASELINE).sign > 0 and best == METHOD:
    supports = "true"
  else:
    supports = "partly" if test(METHOD, BASELINE).sign > 0 or test(SCALED, BASELINE).sign > 0 else "false"
  sentence = (
      f"At {numbers[METHOD]:,} numbers each, MAM differs from the sequential adapter by {test(METHOD, BASELINE)} and "
      f"from the scaled parallel one, its larger part, by {test(METHOD, SCALED)}; the best arm is {best} "
      f"({means[best]:.4f}). Parallel against sequential is {test(PARALLEL, BASELINE)}, scale 4 against 1 "
      f"{test(SCALED, PARALLEL)}, the MLP against the attention {test(SCALED, ATTENTION)}. The sequential adapter "
      f"is above the head alone by {test(BASELINE, HEAD)}.")
  return supports, sentence


EXPERIMENT = Experiment(
    slug="unified-peft", title="Towards a Unified View of Parameter-Efficient Transfer Learning", arxiv="2110.04366",
    areas=("transforms", "models"), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
