"""Five fine-tunes of one encoder, merged by every method, with and without LiNeS: a table and a plot.

    jaxft run merging-baselines            about sixteen minutes on two cores, and six for the experts, once
    jaxft run merging-baselines --smoke    about a minute
    python -m experiments.merging.merging_baselines --report STEM      STEM.html and STEM.md from the committed result

Five tasks on all-MiniLM-L6-v2: to rate the sentences of four domains (`tasks/sentiment_experts.py`), and to find
the next sentence of an editorial (`tasks/next_sentence.py`), whose expert trains no head. Each method merges the
five experts of a seed. Where a merge has a scale, it is chosen from one grid by validation data; with LiNeS the scale
is the factor of the last layer and the first layer's is half of it, of the same grid. The score is the mean over the
tasks of the merged model's score over the expert's own: Pearson's r, nDCG@10 for the retrieval. A seed draws the
batches of all experts and the entries that random methods drop.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.tasks.next_sentence import Finder, load_neighbours
from experiments.tasks.sentiment_experts import FROZEN, LEARNT_SMOKE, Experts, Recipe
from experiments.tasks.sentiment_rating import DOMAINS, Scorer, load_sentences
from jaxft import merging
from jaxft.data import source
from jaxft.data.tokenization import tokenize_pairs
from jaxft.evaluation import normalized_accuracy, paired_test
from jaxft.losses import Mean, multiple_negatives_ranking
from jaxft.models import encoder
from jaxft.report import Report
from jaxft.studies.experiment import Experiment, committed, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.studies.tuner import Tuner
from jaxft.transforms import freeze
from jaxft.tree import apply_task_vector, task_vector


@dataclasses.dataclass(frozen=True)
class Config:
  recipe: Recipe = Recipe()
  pairs: int = 8  # in a batch of the retrieval expert
  density: float = 0.2
  scales: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 1.0)
  splits: tuple[str, str] = ("validation", "test")
  validation: int = 30  # sentences of a domain, and pairs
  sentences: int = 60  # of a domain's test split, and pairs
  merges: tuple[str, ...] | None = None  # None takes all of `MERGES`
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


SMOKE = Config(
    recipe=LEARNT_SMOKE, pairs=2, scales=(0.4,), splits=("train", "train"), validation=LEARNT_SMOKE.limit,
    sentences=LEARNT_SMOKE.limit,
    merges=("average", "task arithmetic", "TIES"), seeds=(0, 1))

Tree = Any
BASELINE, METHOD = "task arithmetic", "TIES"
ROWS = -2  # kernels are [in, out]: what one output reads, torch's row, runs along the axis before the last

# name -> (models, base, density, key) -> the merge at full scale; those of `SCALED` are scaled afterwards.
MERGES: dict[str, Callable[..., Tree]] = {
    "average": lambda models, base, density, key: merging.average(models),
    BASELINE: lambda models, base, density, key: merging.task_arithmetic(models, base),
    METHOD: lambda models, base, density, key: merging.ties(models, base, density=density),
    "DARE": lambda models, base, density, key: merging.dare(models, base, density=density, key=key),
    "DELLA": lambda models, base, density, key: merging.della(models, base, density=density, key=key, axis=ROWS),
    "breadcrumbs": lambda models, base, density, key: merging.breadcrumbs(
        models, base, density=density, axis=ROWS),
    "SCE": lambda models, base, density, key: merging.sce(models, base, density=density),
    "model stock": lambda models, base, density, key: merging.model_stock(models, base),
    "Karcher mean": lambda models, base, density, key: merging.karcher_mean(models),
}
UNSCALED = ("average", "model stock", "Karcher mean")
WITH = " + LiNeS"


def retrieval_experts(experts: Experts, config: Config) -> Callable[[int], Tree]:
  """A seed's expert for the next sentence, by the same recipe, with the pairs of a batch as each other's negatives."""
  model, recipe = experts.model, config.recipe
  records = source("sentiment/neighbours-news", "train")

  def batch(rng: np.random.Generator) -> dict[str, Any]:
    rows = [records[int(i)] for i in rng.choice(len(records), config.pairs, replace=False)]
    return tokenize_pairs(rows, model.tokenizer, lengths=24)

  def objective(params: Tree, batch: dict[str, Any], key: jax.Array) -> tuple[Mean, dict[str, Any]]:
    del key
    embed = lambda side: encoder.embed(params, model.config, batch[side]["ids"], batch[side]["mask"])
    return Mean.of(*multiple_negatives_ranking(embed("anchor"), embed("positive"))), {}

  tuner = Tuner(objective, freeze([FROZEN, "head/*"]), steps=recipe.steps)

  def expert(seed: int) -> Tree:
    rng = np.random.default_rng(seed)
    return tuner(experts.base, [batch(rng) for _ in range(recipe.steps)], rate=recipe.learning_rate, seed=seed)

  return expert


def run(config: Config) -> Result:
  """Merges the experts of each seed by every method, scales by the grid, chooses on validation, asks for test."""
  ledger = Ledger("merging-baselines", config)
  experts = Experts(config.recipe)
  base, model = jax.device_get(experts.base), experts.model
  rate, find = Scorer(model), Finder(model)
  retrieval_expert = retrieval_experts(experts, config)
  merges = tuple(MERGES) if config.merges is None else config.merges
  sizes = {"validation": config.validation, "test": config.sentences}
  held = {
      name: ([load_sentences(model, domain, split, limit=n, length=config.recipe.length) for domain in DOMAINS],
             load_neighbours(model, split, limit=n))
      for split, (name, n) in zip(config.splits, sizes.items(), strict=True)
  }

  def score(params: Tree, split: str, task: int) -> float:
    sentences, neighbours = held[split]
    return rate(params, sentences[task]) if task < len(DOMAINS) else find(params, neighbours)

  def scores(params: Tree, split: str) -> np.ndarray:
    return np.array([score(params, split, task) for task in range(len(DOMAINS) + 1)])

  def one(seed: int) -> dict[str, Any]:
    # On the host: NumPy merges trees of this size several times as fast as JAX does without an accelerator.
    tuned = jax.device_get([*(experts(domain, seed) for domain in DOMAINS), retrieval_expert(seed)])
    own = {split: np.array([score(t, split, i) for i, t in enumerate(tuned)]) for split in sizes}
    out: dict[str, Any] = {"experts": own["test"].tolist(), "base": scores(base, "test").tolist()}
    for name in merges:
      delta = task_vector(base, MERGES[name](tuned, base, config.density, jax.random.key(seed)))
      ways = {name: lambda s: apply_task_vector(base, delta, scale=s)}
      ways[name + WITH] = lambda s: apply_task_vector(base, merging.lines(delta, alpha=s / 2, beta=s / 2))
      for arm, scaled in ways.items():
        grid = (1.0,) if name in UNSCALED else config.scales
        kept = lambda s: normalized_accuracy(scores(scaled(s), "validation"), own["validation"])
        best = max(grid, key=kept) if len(grid) > 1 else grid[0]
        got = scores(scaled(best), "test")
        out[arm] = {"scale": best, "scores": got.tolist(), "normalized": normalized_accuracy(got, own["test"])}
    return out

  runs = [ledger(f"seed {seed}", partial(one, seed)) for seed in config.seeds]
  names = [name for name in runs[0] if name not in ("experts", "base")]
  values = {name: np.array([r[name]["normalized"] for r in runs]) for name in names}
  arms = {name: Arm(name, tuple(v.tolist()), {"scale": [r[name]["scale"] for r in runs]}) for name, v in values.items()}
  test = lambda a, b: paired_test(values[a], values[b])
  against = {name: test(name, BASELINE) for name in merges if name != BASELINE}
  depth = {name: test(name + WITH, name) for name in merges}
  supports, conclusion = conclude(values, against, depth)
  result = Result(
      slug="merging-baselines", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric="score of the merged model over each expert's own, mean of five tasks, test", higher_is_better=True,
      baseline=arms.pop(BASELINE), method=arms.pop(METHOD), arms=tuple(arms.values()), seeds=config.seeds, command="",
      supports_paper=supports, conclusion=conclusion,
      details={
          "tasks": [*DOMAINS, "next sentence"], "experts": np.mean([r["experts"] for r in runs], axis=0).tolist(),
          "base": np.mean([r["base"] for r in runs], axis=0).tolist(), "against_task_arithmetic": against,
          "with_lines": depth,
          "by_task": {name: np.mean([r[name]["scores"] for r in runs], axis=0).tolist() for name in names},
      })
  ledger.clear()
  return result


def conclude(values: dict[str, np.ndarray], against: dict[str, Any], depth: dict[str, Any]) -> tuple[str, str]:
  """"true": TIES beats task arithmetic (p < 0.05); "partly": some method does. Else "false"."""
  # The average is task arithmetic at one scale of the grid: what rounding alone tells apart is equal.
  up = lambda t: t.mean_difference > 1e-6 and t.p_value < 0.05
  better = [name for name, t in against.items() if up(t)]
  helped = [name for name, t in depth.items() if up(t)]
  ranked = sorted((n for n in values if WITH not in n), key=lambda n: -values[n].mean())
  sentence = (
      "Share of the experts' scores kept: " + "; ".join(f"{n} {values[n].mean():.3f}" for n in ranked) +
      f". TIES differs from task arithmetic by {against[METHOD]}; better than it (p < 0.05): "
      f"{', '.join(better) or 'none'}. LiNeS raises (p < 0.05): {', '.join(helped) or 'none'}.")
  if METHOD not in better and values["average"].mean() > 0.95:
    sentence += (
        " The tasks hardly interfere, as the plain average keeps nearly all of the experts' scores: trimming and "
        "electing signs find little to repair.")
  return ("true" if METHOD in better else "partly" if better else "false"), sentence


def report(result: Result, stem: Path) -> tuple[Path, Path]:
  """The table and the plot of a result."""
  import matplotlib

  matplotlib.use("Agg")  # no display
  import matplotlib.pyplot as plt

  arms = {arm.name: arm for arm in (result.baseline, result.method, *result.arms)}
  names = [name for name in MERGES if name in arms]
  out = Report("Five fine-tunes of one encoder, merged")
  out.text(result.conclusion)
  tasks = result.details["by_task"]
  rows = [(name, f"{arms[name].mean:.3f} ± {arms[name].std:.3f}", *(f"{x:.3f}" for x in tasks[name]))
          for plain in names for name in (plain, plain + WITH)]
  out.table(("method", "kept", *result.details["tasks"]), rows)
  figure, axes = plt.subplots(figsize=(8, 4))
  x = np.arange(len(names))
  for shift, suffix, color in ((-0.2, "", "#9db4d6"), (0.2, WITH, "#1f4e9c")):
    shown = [arms[name + suffix] for name in names]
    label = suffix.strip(" +") or "plain"
    axes.bar(x + shift, [a.mean for a in shown], 0.38, yerr=[a.std for a in shown], color=color, label=label)
  axes.set_xticks(x, names, rotation=30, ha="right")
  axes.set(ylabel=result.metric.partition(",")[0])
  axes.set_ylim(bottom=min(a.mean for a in arms.values()) - 0.1)
  axes.legend()
  figure.tight_layout()
  out.figure(figure, "Mean and standard deviation over the seeds.")
  return out.write(stem)


EXPERIMENT = Experiment(
    slug="merging-baselines", title="TIES-Merging, task arithmetic and the other standard merges", arxiv="2306.01708",
    areas=("merging",), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  if "--report" in sys.argv:
    parser = argparse.ArgumentParser()
    parser.add_argument("--report", type=Path, metavar="STEM", required=True)
    print(*report(committed("merging-baselines"), parser.parse_args().report))
  else:
    main(EXPERIMENT)
