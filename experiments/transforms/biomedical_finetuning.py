"""Fine-tuning on few sentences: what do bias correction, longer training and layer-specific tools do to its stability?

    jaxft run biomedical-finetuning            about eight minutes on two cores
    jaxft run biomedical-finetuning --smoke    seconds

all-MiniLM-L6-v2 learns to rate the sentiment of movie reviews from 64 sentences; the score is Pearson's r on test
sentences. The sentences are the same for all seeds: a seed draws the head, the order of the data and what a method
re-initializes, so that the spread over seeds is that of fine-tuning and not that of sampling.

Baseline: Adam. Method: the one of three layer tools (the lower half of the layers frozen, learning rates that decay
from layer to layer, the top layer re-initialized) that is best on validation sentences. The other arms: BERT's Adam
without bias correction, and Adam for three times as many steps. Embeddings stay frozen in all arms, as they are half of
the model. Rates are chosen for each arm from one grid, on validation sentences, with seeds of their own. All arms are
also run at the highest rate of the grid, where fine-tuning is least stable. A run has failed if its r could be
chance's (one-sided p > 0.05).
"""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.tasks import sentiment_rating as task
from jaxft.analysis import seed_stability
from jaxft.evaluation import PairedTest, paired_test
from jaxft.formats import load
from jaxft.optimizers import layerwise_decay, scale_by_bert_adam, scale_updates
from jaxft.recipes.optimizers import adamw, warmed_up
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.studies.sweep import sweep
from jaxft.studies.tuner import Tuner
from jaxft.transforms import ParamTransform, freeze, freeze_below, reinitialize_top
from jaxft.tree import cut_layers, stack_layers


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "minilm-l6"
  domain: str = "movies"
  length: int = 12
  sentences: int = 64
  steps: int = 16
  longer: int = 48
  batch_size: int = 8
  frozen_layers: int = 3
  decay: float = 0.8
  fresh_layers: int = 1
  learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
  test_sentences: int = 108
  seeds: tuple[int, ...] = tuple(range(8))
  tuning_seeds: tuple[int, ...] = (100,)


SMOKE = Config(
    model="minilm-l6:tiny", length=8, sentences=4, steps=1, longer=2, batch_size=2, frozen_layers=1,
    learning_rates=(1e-4,), test_sentences=8, seeds=(0, 1), tuning_seeds=(100,))
BASELINE, UNCORRECTED, LONGER = "Adam", "Adam without bias correction", "Adam, longer"
TOOLS = ("frozen lower half", "layer-wise decay", "top re-initialized")


class Way(NamedTuple):
  """One way of fine-tuning."""

  transform: ParamTransform
  steps: int
  start: Callable[[jax.Array, Any], Any] = lambda key, params: params
  optimizer: Callable[[Any, int], optax.GradientTransformation] = adamw
  plain: Callable[[Any], Any] = lambda params: params


def bert_adam(rate: Any, steps: int) -> optax.GradientTransformation:
  """As `adamw`, without bias correction."""
  factor = warmed_up(steps)
  return optax.chain(
      optax.clip_by_global_norm(1.0), scale_by_bert_adam(), optax.scale_by_learning_rate(lambda t: rate * factor(t)))


def ways(config: Config, params: Any) -> dict[str, Way]:
  """All arms by name."""
  above = freeze("embed/**")
  _, trained = jax.eval_shape(above.split, jax.random.key(0), params)
  decayed = lambda rate, steps: optax.chain(adamw(rate, steps), scale_updates(layerwise_decay(config.decay, trained)))
  at, n = config.frozen_layers, config.steps
  return {
      BASELINE: Way(above, n),
      UNCORRECTED: Way(above, n, optimizer=bert_adam),
      TOOLS[0]: Way(freeze_below(at), n, start=lambda key, params: cut_layers(params, [at]), plain=stack_layers),
      TOOLS[1]: Way(above, n, optimizer=decayed),
      TOOLS[2]: Way(above, n, start=lambda key, params: reinitialize_top(key, params, config.fresh_layers)),
      LONGER: Way(above, config.longer),
  }


def with_random_head(key: jax.Array, params: Any) -> Any:
  """The encoder with a head as BERT's are drawn."""
  params = task.with_head(params)
  kernel = params["head"]["kernel"]
  return {**params, "head": {**params["head"], "kernel": 0.02 * jax.random.normal(key, kernel.shape)}}


def run(config: Config) -> Result:
  """Tunes every arm on validation sentences and measures it on test sentences."""
  ledger = Ledger("biomedical-finetuning", config)
  model = load(config.model)
  sentences = lambda split, limit: task.load_sentences(model, config.domain, split, limit=limit, length=config.length)
  train = sentences("train", config.sentences)
  splits = {split: sentences(split, config.test_sentences) for split in ("validation", "test")}
  test = splits["test"]
  score = task.Scorer(model, batch_size=max(map(len, splits.values())))
  objective = task.objective(model)
  highest = max(config.learning_rates)

  # Ways that differ in where they start alone share one program.
  tuner_of = cache(lambda transform, steps, optimizer: Tuner(objective, transform, steps=steps, optimizer=optimizer))

  rates, tuning, r, high = {}, {}, {}, {}
  for arm, way in ways(config, task.with_head(model.params)).items():
    tuner = tuner_of(way.transform, way.steps, way.optimizer)

    def learn(rate: float, seed: int, split: str) -> float:
      head, fresh = jax.random.split(jax.random.key(seed))
      params = way.start(fresh, with_random_head(head, model.params))
      batches = task.draw_batches(train, steps=way.steps, batch_size=config.batch_size, seed=seed)
      return score(way.plain(tuner(params, batches, rate=rate, seed=seed)), splits[split])

    rates[arm], tuning[arm], r[arm] = sweep(
        ledger, arm, config.learning_rates, learn, tuning_seeds=config.tuning_seeds, seeds=config.seeds)
    high[arm] = r[arm] if rates[arm] == highest else [
        ledger(f"{arm}, highest, seed {seed}", lambda: learn(highest, seed, "test")) for seed in config.seeds]

  method = max(TOOLS, key=lambda arm: max(tuning[arm].values()))
  chance = 1.645 / np.sqrt(len(test))
  stability = {name: {arm: seed_stability(runs, chance=chance) for arm, runs in scores.items()}
               for name, scores in (("tuned", r), ("highest", high))}
  arms = {arm: Arm(arm, tuple(runs), {"learning_rate": rates[arm]}) for arm, runs in r.items()}
  supports, conclusion = conclude(r, high, method, chance)
  ledger.clear()
  return Result(
      slug="biomedical-finetuning", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric=f"Pearson's r of ratings, {config.domain}, from {len(train)} sentences, test split", higher_is_better=True,
      baseline=arms[BASELINE], method=arms[method],
      arms=tuple(arm for name, arm in arms.items() if name not in (BASELINE, method)), seeds=config.seeds, command="",
      supports_paper=supports, conclusion=conclusion,
      details={
          "validation": tuning, "test_sentences": len(test), "chance": chance, "highest_rate": highest,
          "stability": {name: {arm: s._asdict() | {"mean_of_others": None if np.isnan(s.mean_of_others) else
                                                   s.mean_of_others} for arm, s in by_arm.items()}
                        for name, by_arm in stability.items()},
          "at_the_highest_rate": high,
          "against_adam": {name: against(scores) for name, scores in (("tuned", r), ("highest", high))},
      })


def spread_test(a: list[float], b: list[float]) -> PairedTest:
  """Paired comparison of the distances from the median: whether a is less stable than b (Brown and Forsythe 1974)."""
  distance = lambda x: np.abs(np.array(x) - np.median(x))
  return paired_test(distance(a), distance(b))


def against(scores: dict[str, list[float]]) -> dict[str, Any]:
  """Each arm against Adam: the difference of the scores and of their distances from the median."""
  return {
      arm: {"mean": paired_test(runs, scores[BASELINE]),
            "spread": spread_test(runs, scores[BASELINE])}
      for arm, runs in scores.items() if arm != BASELINE}


def conclude(
    r: dict[str, list[float]], high: dict[str, list[float]], method: str, chance: float
) -> tuple[str, str]:
  """Whether the paper is supported, by a rule, and the sentence that says so.

  A change helps where r is higher, or its spread smaller and r not lower (each p < 0.05). "true": the layer tool that
  validation chose helps at tuned rates. "partly": some tool, longer training or bias correction helps there or at the
  highest rate. Else "false".
  """
  def helps(scores: dict[str, list[float]], arm: str, other: str = BASELINE) -> bool:
    mean, spread = paired_test(scores[arm], scores[other]), spread_test(scores[arm], scores[other])
    return mean.sign > 0 or (spread.sign < 0 and mean.sign >= 0)

  def say(scores: dict[str, list[float]], arm: str) -> str:
    s = seed_stability(scores[arm], chance=chance)
    return f"{arm} {s.mean:.3f} ± {s.std:.3f} ({s.failed:.0%} failed)"

  names = list(r)
  listed = lambda scores: ", ".join(say(scores, arm) for arm in names)
  sentence = f"At tuned rates: {listed(r)}. At the highest rate: {listed(high)}."
  helping = {
      when: [arm for arm in (*TOOLS, LONGER) if helps(scores, arm)]
      + (["bias correction"] if helps(scores, BASELINE, UNCORRECTED) else [])
      for when, scores in (("at tuned rates", r), ("at the highest rate", high))}
  found = "; ".join(f"{when} {', '.join(which)}" for when, which in helping.items() if which)
  sentence += f" Significantly better or steadier than without: {found or 'nothing'}."
  if helps(r, method):
    return "true", sentence
  return ("partly" if found else "false"), sentence


EXPERIMENT = Experiment(
    slug="biomedical-finetuning", title="Fine-Tuning Large Neural Language Models for Biomedical NLP",
    arxiv="2112.07869", areas=("transforms", "training", "analysis"), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
