"""aTLAS: are few labels of a new domain better spent on a coefficient per task vector and block than on one per vector?

    jaxft run atlas            seven minutes on two cores, and six more where the experts have to be trained first
    jaxft run atlas --smoke    seconds

Of the four sentiment domains of `tasks/sentiment_experts.py` one is the target and the task vectors of the other
three are the bank, each domain in turn. All arms start from the mean of the bank's experts (every coefficient 1/3; the
base itself has a head of zeros and predicts nothing), and train on the same few sentences of the target:

    isotropic      one coefficient for each task vector: 3 numbers
    aTLAS          one for each task vector, matrix, vector and layer: some 300 numbers
    random bases   as many, of Gaussian directions with the norm that each task vector has in each block
    full           all weights but the embeddings

The learning rate of each arm is chosen on validation sentences of the target, by a tuning seed with experts and labels
of its own. The score is Pearson's r on the target's test sentences, the mean over the four targets. A seed draws the
experts and the labelled sentences.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.tasks import sentiment_experts
from experiments.tasks.sentiment_experts import FROZEN, TUNING_SEED, Experts, Recipe
from experiments.tasks.sentiment_rating import DOMAINS, Scorer, draw_batches, load_sentences, objective
from jaxft.evaluation.uncertainty import paired_test
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.studies.tuner import Tuner, choose_rate
from jaxft.transforms import ParamTransform, freeze, linear_combination
from jaxft.tree import apply_task_vector, count, layer_of, leaf_keys, map_with_path


@dataclasses.dataclass(frozen=True)
class Config:
  recipe: Recipe = Recipe()
  labels: int = 32
  steps: int = 12
  batch_size: int = 8
  coefficient_rates: tuple[float, ...] = (3e-4, 3e-3, 3e-2)
  weight_rates: tuple[float, ...] = (3e-6, 1e-5, 3e-5)
  sentences: int = 100
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  targets: tuple[str, ...] = DOMAINS
  tuning_targets: tuple[str, ...] = ("movies", "tweets")


SMOKE = Config(
    recipe=sentiment_experts.SMOKE, labels=4, steps=1, batch_size=4, coefficient_rates=(0.1,), weight_rates=(1e-4,),
    sentences=4, seeds=(0, 1), targets=DOMAINS[:1], tuning_targets=DOMAINS[:1])

MEAN, ISOTROPIC, ATLAS, RANDOM, FULL = "mean of the bank", "isotropic", "aTLAS", "random bases", "full"
BANK = len(DOMAINS) - 1
# Granularity and start of the coefficients.
COMBINED = {ISOTROPIC: ("model", 1 / BANK), ATLAS: ("leaf", 1 / BANK), RANDOM: ("leaf", 0.0)}


def combination(arm: str, trees: list[Any]) -> ParamTransform:
  """What an arm trains, over a bank."""
  granularity, start = COMBINED[arm]
  return linear_combination(trees, granularity=granularity, init=start)


@jax.jit
def random_like(tree: Any, key: jax.Array) -> Any:
  """Gaussian directions with the norm that each block of a task vector has, layer by layer."""

  def draw(key: jax.Array, x: jax.Array) -> jax.Array:
    noise = jax.random.normal(key, x.shape)
    return noise * (jax.numpy.linalg.norm(x.ravel()) / jax.numpy.linalg.norm(noise.ravel()))

  def block(path: str, x: Any) -> Any:
    if x is None:
      return None
    return (jax.vmap(draw) if np.ndim(layer_of(path, x)) else draw)(leaf_keys(key, path, x), x)

  return map_with_path(block, tree)


def run(config: Config) -> Result:
  """Chooses each arm's learning rate with the tuning seed, then trains and scores every arm by seed and target."""
  ledger, experts = Ledger("atlas", config), Experts(config.recipe)
  model, score = experts.model, Scorer(experts.model, batch_size=config.sentences)
  load = partial(load_sentences, model, length=config.recipe.length)
  held = {(d, split): load(d, split, limit=config.sentences)
          for d in config.targets for split in ("validation", "test")}
  tuner = lambda transform: Tuner(objective(model), transform, steps=config.steps)
  # A bank and the coefficients' start are known only to the split: all joins of one granularity are one program.
  learn = {granularity: tuner(linear_combination([{}] * BANK, granularity=granularity))
           for granularity in {granularity for granularity, _ in COMBINED.values()}}
  tuners = {arm: learn[granularity] for arm, (granularity, _) in COMBINED.items()} | {FULL: tuner(freeze(FROZEN))}

  class Task:
    """A target with its bank and its labels."""

    def __init__(self, target: str, seed: int):
      self.seed = seed
      self.bank = [experts.vector(d, seed) for d in DOMAINS if d != target]
      self.mean = jax.device_get(experts.base)
      for vector in self.bank:
        self.mean = apply_task_vector(self.mean, vector, scale=1 / BANK)
      pool = load(target, "train", limit=config.recipe.limit)
      labelled = pool[np.random.default_rng(seed).permutation(len(pool))[: config.labels]]
      self.batches = draw_batches(labelled, steps=config.steps, batch_size=config.batch_size, seed=seed)

    def train(self, arm: str, rate: float) -> Any:
      """The tuned checkpoint of an arm."""
      start = self.mean if arm in (RANDOM, FULL) else experts.base
      trees = self.bank
      if arm == RANDOM:
        trees = [random_like(v, jax.random.fold_in(jax.random.key(self.seed), i)) for i, v in enumerate(trees)]
      transform = combination(arm, trees) if arm in COMBINED else None
      return tuners[arm](start, self.batches, rate=rate, seed=self.seed, transform=transform)

  rates_of = lambda arm: config.weight_rates if arm == FULL else config.coefficient_rates

  def tune(target: str) -> dict[str, list[float]]:
    task = Task(target, TUNING_SEED)
    return {arm: [score(task.train(arm, rate), held[target, "validation"]) for rate in rates_of(arm)] for arm in tuners}

  tuned = [ledger(f"tune {target}", lambda: tune(target)) for target in config.tuning_targets]
  rates, validation = {}, {}
  for arm in tuners:
    means = dict(zip(rates_of(arm), np.mean([by_arm[arm] for by_arm in tuned], axis=0), strict=True))
    rates[arm], validation[arm] = choose_rate(rates_of(arm), means.get)

  def scores(target: str, seed: int) -> dict[str, float]:
    task, test = Task(target, seed), held[target, "test"]
    return {MEAN: score(task.mean, test)} | {arm: score(task.train(arm, rates[arm]), test) for arm in tuners}

  runs = {(t, s): ledger(f"{t} {s}", lambda: scores(t, s)) for s in config.seeds for t in config.targets}
  values = {arm: tuple(float(np.mean([runs[t, s][arm] for t in config.targets])) for s in config.seeds)
            for arm in (MEAN, *tuners)}
  arms = {arm: Arm(arm, v, {"learning_rate": rates[arm]} if arm in rates else {}) for arm, v in values.items()}
  supports, conclusion = conclude(arms)
  trained = lambda arm: jax.eval_shape(
      combination(arm, [experts.base] * BANK).split, jax.random.key(0), experts.base)[1]
  sizes = {arm: count(trained(arm)) for arm in COMBINED}
  result = Result(
      slug="atlas", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric=f"Pearson's r on a new domain after {config.labels} labels, mean over the domains, test",
      higher_is_better=True, baseline=arms.pop(ISOTROPIC), method=arms.pop(ATLAS), arms=tuple(arms.values()),
      seeds=config.seeds, command="", supports_paper=supports, conclusion=conclusion,
      details={
          "validation": validation, "trained_numbers": sizes,
          "by_target": {t: {arm: float(np.mean([runs[t, s][arm] for s in config.seeds])) for arm in values}
                        for t in config.targets},
          "aTLAS_against": {arm: paired_test(values[ATLAS], v) for arm, v in values.items() if arm != ATLAS},
      })
  ledger.clear()
  return result


def conclude(arms: dict[str, Arm]) -> tuple[str, str]:
  """Whether the paper is supported, by a rule, and the sentences that say so.

  "true": aTLAS is better than isotropic coefficients and than random bases (both p < 0.05). "partly": better than one
  of the two, and not worse than the other (p < 0.05). Else "false".
  """
  test = lambda other: paired_test(arms[ATLAS].values, arms[other].values)
  isotropic, random, mean, full = (test(other) for other in (ISOTROPIC, RANDOM, MEAN, FULL))
  sentence = (
      f"aTLAS differs by {isotropic} from isotropic coefficients, by {random} from random bases, by "
      f"{mean} from the bank's mean, which has seen no label, and by {full} from full fine-tuning on the "
      f"same labels.")
  signs = (isotropic.sign, random.sign)
  if mean.sign < 1:
    rate = lambda arm: f"{arms[arm].settings['learning_rate']:g}"
    sentence += (
        f" Validation chose rates of {rate(ATLAS)} for aTLAS and {rate(RANDOM)} for random bases: of the experts of "
        "four domains that are one task, the mean is near the best of their span, and few labels find nothing better "
        "there.")
  if signs == (1, 1):
    return "true", sentence
  return ("partly" if max(signs) == 1 and min(signs) >= 0 else "false"), sentence


EXPERIMENT = Experiment(
    slug="atlas", title="Knowledge Composition using Task Vectors with Learned Anisotropic Scaling",
    arxiv="2407.02880", areas=("transforms", "merging"), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
