"""GISTEmbed: does a frozen guide that removes false negatives from the batch make a better retriever?

    jaxft run gistembed            about an hour on two cores
    jaxft run gistembed --smoke    seconds

all-MiniLM-L6-v2 learns to find descriptions from function signatures (batches of one package, as the paper keeps to one
task a batch) by LoRA. Baseline: the same four blocks of candidates without a guide. Method: the guide, which is the
pretrained model itself, drops what it finds closer than the positive. Learning rate and temperature are chosen for each
arm from the same grid, on packages of the validation split, with a seed of their own; the table is on test packages.
"""

import dataclasses
import itertools
from functools import cache

import jax
import numpy as np

from experiments.tasks import docstring_search as task
from jaxft.evaluation.uncertainty import paired_test
from jaxft.formats import load
from jaxft.losses import contrastive_blocks, false_negative_mask
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.transforms import lora


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "minilm-l6"
  steps: int = 60
  batch_size: int = 64
  rank: int = 8
  alpha: float = 16.0
  learning_rates: tuple[float, ...] = (3e-4, 1e-3)
  temperatures: tuple[float, ...] = (0.01, 0.05)
  queries: int = 500
  probe: int = 100
  corpus: int | None = None
  max_length: int = 128  # tokens of a text that is embedded
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  tuning_seed: int = 100


SMOKE = Config(
    model="minilm-l6:tiny", steps=2, batch_size=8, learning_rates=(1e-3,), temperatures=(0.05,), queries=16, probe=12,
    corpus=16, max_length=16, seeds=(0, 1))
ARMS = {"InfoNCE, unguided": False, "GIST": True}


def run(config: Config) -> Result:
  """Tunes and runs both arms."""
  ledger = Ledger("gistembed", config)
  model, pairs = load(config.model), task.load_pairs("train")
  embed = task.Embedder(model, max_length=config.max_length)
  score = task.evaluator(embed)
  validation = task.load_evaluation("validation", queries=config.queries, probe=config.probe, corpus=config.corpus)
  test = task.load_evaluation("test", queries=config.queries, probe=config.probe, corpus=config.corpus)
  batches = {
      seed: task.PackageBatches(pairs, model, batch_size=config.batch_size, seed=seed)
      for seed in (config.tuning_seed, *config.seeds)
  }
  drawn = np.concatenate([b.rows(t) for b in batches.values() for t in range(config.steps)])
  guide = task.guide_embeddings(embed, model.params, pairs, drawn)

  transform = lora("layers/**/kernel", rank=config.rank, alpha=config.alpha)

  @cache
  def finetuner(rate: float, temperature: float) -> task.Finetuner:
    return task.Finetuner(
        model, transform, batch_size=config.batch_size, temperature=temperature, learning_rate=rate, steps=config.steps)

  def train_and_score(guided: bool, rate: float, temperature: float, seed: int, split: task.Evaluation) -> list[float]:
    tuned = finetuner(rate, temperature)(batches[seed].guided_by(guide if guided else None), seed=seed)
    return list(score(tuned, split))

  before = task.Scores(*ledger("before", lambda: list(score(model.params, test))))
  arms, scores = {}, {}
  for name, guided in ARMS.items():
    tuning = {}
    for rate, temperature in itertools.product(config.learning_rates, config.temperatures):
      tuning[rate, temperature] = ledger(
          f"{name}, tune {rate} {temperature}",
          lambda: train_and_score(guided, rate, temperature, config.tuning_seed, validation))[0]
    rate, temperature = max(tuning, key=tuning.get)
    scores[name] = [
        task.Scores(*ledger(f"{name}, seed {s}", lambda: train_and_score(guided, rate, temperature, s, test)))
        for s in config.seeds
    ]
    settings = {"learning_rate": rate, "temperature": temperature,
                "validation_ndcg@10": {f"{r:g}, {t:g}": v for (r, t), v in tuning.items()}}
    arms[name] = Arm(name, tuple(s.ndcg for s in scores[name]), settings)

  baseline, method = arms.values()
  supports, conclusion = conclude(baseline, method, before)
  dropped = dropped_share(batches[config.seeds[0]], guide, config.steps)
  result = Result(
      slug="gistembed", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric="nDCG@10, description from signature, test packages", higher_is_better=True,
      baseline=baseline, method=method, seeds=config.seeds, command="", supports_paper=supports, conclusion=conclusion,
      details={
          "before": before._asdict(), "dropped_share": dropped,
          "scores": {name: [s._asdict() for s in runs] for name, runs in scores.items()},
          "training_pairs": len(pairs.anchors), "test_queries": len(test.target.anchors),
      })
  ledger.clear()
  return result


def conclude(baseline: Arm, method: Arm, before: task.Scores) -> tuple[str, str]:
  """Whether the paper is supported, and the sentence that says so."""
  test = paired_test(method.values, baseline.values)
  sentence = (
      f"GIST changes test nDCG@10 by {test} over the unguided loss; the "
      f"pretrained model, which is the guide, has {before.ndcg:.4f}.")
  if test.mean_difference > 0:
    return ("true" if test.sign > 0 else "partly"), sentence
  if before.ndcg < baseline.mean:
    sentence += (
        " The paper's guide is stronger than its student; this one is weaker than what it guides becomes, so that hard"
        " negatives are likely among what it drops.")
  return "false", sentence


def dropped_share(batches: task.PackageBatches, guide: task.Guide, steps: int) -> float:
  """The share of in-batch candidates, self pairs apart, that the guide takes for false negatives."""

  @jax.jit
  def share(queries, documents):
    similarity, positive, own = contrastive_blocks(queries, documents)
    rows = jax.numpy.arange(len(queries))
    drop = false_negative_mask(similarity, similarity[rows, positive], protect=own)
    return drop.sum() / (~own).sum()

  shares = []
  for t in range(min(steps, 50)):
    rows = batches.rows(t)
    shares.append(float(share(guide.queries[rows], guide.documents[rows])))
  return float(np.mean(shares))


EXPERIMENT = Experiment(
    slug="gistembed",
    title="GISTEmbed: Guided In-sample Selection of Training Negatives for Text Embedding Fine-tuning",
    arxiv="2402.16829", areas=("losses", "models"), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
