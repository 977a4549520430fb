"""Fine-tuning transfer: does the update of an old base model fit the next version of the base?

    jaxft run fine-tuning-transfer            about eight minutes on two cores
    jaxft run fine-tuning-transfer --smoke    seconds

all-MiniLM-L6-v2 with a linear head rates sentences (`tasks/sentiment_rating.py`). Version 1 of a base has learnt
product reviews; version 2 is version 1 trained on, on product reviews and editorials. The old version is fine-tuned on
movie reviews, and its update (fine-tuned less version 1) is added to version 2, which never saw one. Arms, all on movie
reviews for test:

- version 2 as it is (the baseline), version 1 fine-tuned, and version 2 fine-tuned at full cost;
- version 2 with the update (the method), with the update of another task (tweets), and with the update's entries
  shuffled inside each matrix: what matters is where they point, not that weights moved;
- a base apart: a version 2 that was trained from a start of its own, with the update of version 1;
- a short fine-tuning (a quarter of the steps) of version 2, and of version 2 with the update.

All trainings freeze the embeddings and share one recipe, whose learning rate is chosen by version 1 fine-tuned on
validation sentences with a seed of its own. A seed draws the batches of every stage.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from experiments.tasks.sentiment_rating import Scorer, draw_batches, joined, load_sentences, objective, with_head
from jaxft.analysis import barrier, delta_similarity, linear_path
from jaxft.evaluation import PairedTest, paired_test
from jaxft.formats import load
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.studies.tuner import Tuner, choose_rate
from jaxft.transforms import freeze
from jaxft.tree import apply_task_vector, map_with_path, task_vector


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "minilm-l6"
  steps: int = 24
  short: int = 6
  batch_size: int = 16
  learning_rates: tuple[float, ...] = (1e-4, 3e-4)
  sentences: int | None = None  # of each split for evaluation; None takes all
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  tuning_seed: int = 100


SMOKE = Config(
    model="minilm-l6:tiny", steps=1, short=1, batch_size=4, learning_rates=(1e-4,), sentences=8, seeds=(0, 1))

FROZEN = "embed/**"
BEFORE, METHOD, OLD, FULL, OTHER, SHUFFLED, APART, SHORT, CONTINUED = (
    "version 2", "version 2 + update", "version 1 fine-tuned", "version 2 fine-tuned", "version 2 + update of tweets",
    "version 2 + update, shuffled", "base apart + update", "version 2, short fine-tuning",
    "version 2 + update, short fine-tuning")


def shuffled(delta: Any, seed: int) -> Any:
  """The same entries of each layer's leaf, in random order: of the same size, and pointing nowhere."""
  rng = np.random.default_rng(seed)

  def shuffle(path: str, leaf: Any) -> Any:
    if leaf is None:
      return None
    rows = np.asarray(leaf).reshape(leaf.shape[0] if path.startswith("layers/") else 1, -1)
    return rng.permuted(rows, axis=1).reshape(leaf.shape)

  return map_with_path(shuffle, delta)


def run(config: Config) -> Result:
  """Makes both versions of the base for each seed, fine-tunes the old one, transfers, and measures all arms."""
  ledger = Ledger("fine-tuning-transfer", config)
  model = load(config.model)
  start, score = with_head(model.params), Scorer(model)
  train = {domain: load_sentences(model, domain, "train") for domain in ("movies", "products", "news", "tweets")}
  later = joined([train["products"], train["news"]])
  validation, test = (
      load_sentences(model, "movies", split, limit=config.sentences) for split in ("validation", "test"))
  tuners = {steps: Tuner(objective(model), freeze(FROZEN), steps=steps) for steps in (config.steps, config.short)}

  def learn(params: Any, data: Any, rate: float, seed: int, steps: int = config.steps) -> Any:
    """The tuned checkpoint, on the host, where NumPy adds trees faster than JAX does without an accelerator."""
    batches = draw_batches(data, steps=steps, batch_size=config.batch_size, seed=seed)
    return jax.device_get(tuners[steps](params, batches, rate=rate, seed=seed))

  def tune(rate: float) -> float:
    first = learn(start, train["products"], rate, config.tuning_seed)
    return score(learn(first, train["movies"], rate, config.tuning_seed + 1), validation)

  rate, tuning = choose_rate(config.learning_rates, lambda rate: ledger(f"tune {rate}", lambda: tune(rate)))

  def one(seed: int) -> dict[str, Any]:
    stage = lambda k: 1000 * (seed + 1) + k  # each stage draws batches of its own
    first = learn(start, train["products"], rate, stage(0))
    second = learn(first, later, rate, stage(1))
    apart = learn(learn(start, train["products"], rate, stage(2)), later, rate, stage(3))
    old, new = (learn(base, train["movies"], rate, stage(4)) for base in (first, second))
    update = task_vector(base=first, tuned=old)
    other = task_vector(base=first, tuned=learn(first, train["tweets"], rate, stage(5)))
    moved = apply_task_vector(second, update)
    short = lambda params: learn(params, train["movies"], rate, stage(6), config.short)
    arms = {
        BEFORE: second, METHOD: moved, OLD: old, FULL: new, OTHER: apply_task_vector(second, other),
        SHUFFLED: apply_task_vector(second, shuffled(update, seed)), APART: apply_task_vector(apart, update),
        SHORT: short(second), CONTINUED: short(moved),
    }
    losses = linear_path(lambda params: -score(params, validation), old, new, ts=(0.0, 0.5, 1.0))
    alike = delta_similarity(update, task_vector(base=second, tuned=new))[""]
    return {
        "r": {arm: score(params, test) for arm, params in arms.items()},
        "update_cosine": alike.cosine, "update_norm_ratio": alike.norm_ratio,
        "barrier": barrier(losses),
    }

  runs = [ledger(f"seed {seed}", lambda: one(seed)) for seed in config.seeds]
  values = {arm: np.array([r["r"][arm] for r in runs]) for arm in runs[0]["r"]}
  against = lambda a, b: paired_test(values[a], values[b])
  tests = {
      "gain": against(METHOD, BEFORE), "of_full": against(METHOD, FULL), "other_task": against(METHOD, OTHER),
      "shuffled": against(METHOD, SHUFFLED), "apart": against(APART, METHOD), "short": against(CONTINUED, SHORT),
  }
  supports, conclusion = conclude(values, tests, runs)
  made = {arm: Arm(arm, tuple(scores.tolist()), {"learning_rate": rate}) for arm, scores in values.items()}
  result = Result(
      slug="fine-tuning-transfer", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric="Pearson's r on movie reviews, test", higher_is_better=True,
      baseline=made.pop(BEFORE), method=made.pop(METHOD), arms=tuple(made.values()), seeds=config.seeds, command="",
      supports_paper=supports, conclusion=conclusion,
      details={
          "tests": tests, "validation": tuning, "sentences": len(test),
          **{name: [r[name] for r in runs] for name in ("update_cosine", "update_norm_ratio", "barrier")},
      })
  ledger.clear()
  return result


def conclude(
    values: dict[str, np.ndarray], tests: dict[str, PairedTest], runs: list[dict[str, Any]]
) -> tuple[str, str]:
  """Whether the paper is supported, by a rule, and the sentence that says so.

  "true": the update gains over version 2 (p < 0.05), and more than the shuffled one does (p < 0.05), and a short
  fine-tuning from the sum is not worse than from version 2. "partly": one of the first two. Else "false".
  """
  share = float(np.mean(values[METHOD] - values[BEFORE]) / np.mean(values[FULL] - values[BEFORE]))
  cosine = float(np.mean([r["update_cosine"] for r in runs]))
  sentence = (
      f"The old version's update changes r of version 2 by {tests['gain']}, {share:.0%} of what fine-tuning it gains; "
      f"against fine-tuning it lacks {tests['of_full']}. The update beats its own shuffled entries by "
      f"{tests['shuffled']} and the update of another task by {tests['other_task']}; on a base trained apart it "
      f"differs by {tests['apart']}. A short fine-tuning from the sum differs from one from version 2 by "
      f"{tests['short']}. The updates of the two versions have a cosine of {cosine:.2f}.")
  if tests["gain"].sign < 1:
    sentence += (
        f" Version 2 starts {values[FULL].mean() - values[BEFORE].mean():.3f} below its own fine-tuning, as all "
        "domains are ratings of sentences: little is left to transfer, and that little is of the size of the noise of "
        "a seed.")
  if tests["gain"].sign > 0 and tests["shuffled"].sign > 0:
    return ("partly" if tests["short"].sign < 0 else "true"), sentence
  return ("partly" if tests["gain"].sign > 0 or tests["shuffled"].sign > 0 else "false"), sentence


EXPERIMENT = Experiment(
    slug="fine-tuning-transfer", title="Efficient Model Development through Fine-tuning Transfer", arxiv="2503.20110",
    areas=("merging", "training", "analysis"), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
