"""LiNeS on merged models: does scaling a merged update with depth cut the interference of the tasks?

    jaxft run lines-merging            about seven minutes on two cores, and six for the experts where they are not kept
    jaxft run lines-merging --smoke    seconds

all-MiniLM-L6-v2 is tuned on the ratings of four domains, one expert each (`tasks/sentiment_experts.py`), and the
four updates are merged, by their sum (task arithmetic) and by TIES. Each merged update is scaled in three ways: by one
factor for all layers, as those methods do it; by LiNeS, whose first factor is the source's heuristic and whose slope is
searched; and by the reversed schedule, which shrinks the last layers as LiNeS shrinks the first. Factor and slope come
from the same grid, chosen on validation sentences by the mean over the domains of the merged model's Pearson's r over
the expert's own; the score is that mean on test sentences. `experiments/merging/lines.py` has the setting of one task.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.tasks.sentiment_experts import LEARNT_SMOKE, Experts, Recipe
from experiments.tasks.sentiment_rating import DOMAINS, Scorer, load_sentences
from jaxft.evaluation import normalized_accuracy, paired_test
from jaxft.merging import depth_schedule, lines, lines_alpha, scale_by_depth, ties
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.tree import apply_task_vector, num_layers, task_vector


@dataclasses.dataclass(frozen=True)
class Config:
  recipe: Recipe = Recipe()
  density: float = 0.2  # of TIES
  grid: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
  splits: tuple[str, str] = ("validation", "test")
  validation: int | None = 40  # sentences of a domain
  sentences: int | None = None  # of a domain's test split; None takes all
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


SMOKE = Config(
    recipe=LEARNT_SMOKE, grid=(0.3,), splits=("train", "train"), validation=LEARNT_SMOKE.limit,
    sentences=LEARNT_SMOKE.limit, seeds=(0, 1))

UNIFORM, LINES, REVERSED = "uniform", "LiNeS", "reversed"
Tree = Any


def schedules(summed: Tree, merged: Tree, models: int) -> dict[str, Callable[[float], Tree]]:
  """Each way to scale a merged update, as a function of its searched number."""
  alpha = float(lines_alpha(summed, merged, num_models=models))
  depth = num_layers(merged)

  def reverse(beta: float) -> Tree:
    return scale_by_depth(merged, depth_schedule(depth, first=alpha + beta, last=alpha), outside=alpha)

  return {
      UNIFORM: lambda scale: scale_by_depth(merged, depth_schedule(depth, first=scale, last=scale), outside=scale),
      LINES: lambda beta: lines(merged, alpha=alpha, beta=beta), REVERSED: reverse,
  }


def run(config: Config) -> Result:
  """Merges the experts of each seed by both methods, scales by every schedule, chooses on validation."""
  ledger = Ledger("lines-merging", config)
  experts = Experts(config.recipe)
  # On the host, where NumPy merges faster than JAX does without an accelerator.
  base, score = jax.device_get(experts.base), Scorer(experts.model)
  split = lambda name, limit: {
      domain: load_sentences(experts.model, domain, name, limit=limit, length=config.recipe.length)
      for domain in DOMAINS}
  sizes = config.validation, config.sentences
  held = {
      name: split(part, limit)
      for name, part, limit in zip(("validation", "test"), config.splits, sizes, strict=True)}
  each = lambda params, name: np.array([score(params, held[name][domain]) for domain in DOMAINS])

  def one(seed: int) -> dict[str, Any]:
    tuned = jax.device_get([experts(domain, seed) for domain in DOMAINS])
    own = {name: np.array([score(t, held[name][d]) for t, d in zip(tuned, DOMAINS, strict=True)]) for name in held}
    deltas = [task_vector(base, t) for t in tuned]
    summed = deltas[0]
    for delta in deltas[1:]:
      summed = apply_task_vector(summed, delta)
    merged = {
        "task arithmetic": summed,
        "TIES": task_vector(base, ties(tuned, base, density=config.density)),
    }
    out: dict[str, Any] = {"own": own["test"].tolist()}
    for method, update in merged.items():
      for name, scaled in schedules(summed, update, len(tuned)).items():
        params = lambda x: apply_task_vector(base, scaled(x))
        found = {x: normalized_accuracy(each(params(x), "validation"), own["validation"]) for x in config.grid}
        best = max(found, key=found.get)
        rs = each(params(best), "test")
        out[f"{method}, {name}"] = {
            "chosen": best, "validation": {f"{x:g}": v for x, v in found.items()}, "r": rs.tolist(),
            "normalized": normalized_accuracy(rs, own["test"])}
    return out

  runs = [ledger(f"seed {seed}", lambda: one(seed)) for seed in config.seeds]
  names = [name for name in runs[0] if name != "own"]
  values = {name: np.array([r[name]["normalized"] for r in runs]) for name in names}
  arms = {
      name: Arm(name, tuple(scores.tolist()), {"chosen": [r[name]["chosen"] for r in runs]})
      for name, scores in values.items()}
  tests = {
      method: {other: paired_test(values[f"{method}, {LINES}"], values[f"{method}, {other}"])
               for other in (UNIFORM, REVERSED)} for method in ("task arithmetic", "TIES")}
  supports, conclusion = conclude(values, tests)
  result = Result(
      slug="lines-merging", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric="Pearson's r of the merged model over each expert's own, mean of four domains, test",
      higher_is_better=True, baseline=arms.pop(f"task arithmetic, {UNIFORM}"),
      method=arms.pop(f"task arithmetic, {LINES}"),
      arms=tuple(arms.values()), seeds=config.seeds, command="", supports_paper=supports, conclusion=conclusion,
      details={
          "domains": DOMAINS, "experts": [r["own"] for r in runs], "tests": tests,
          "by_domain": {name: np.mean([r[name]["r"] for r in runs], axis=0).tolist() for name in names},
          "validation": {name: [r[name]["validation"] for r in runs] for name in names},
      })
  ledger.clear()
  return result


def conclude(values: dict[str, np.ndarray], tests: dict[str, Any]) -> tuple[str, str]:
  """"true": LiNeS beats one factor with both merges (p < 0.05); "partly": with one of them and loses with none."""
  sign = {m: t[UNIFORM].sign for m, t in tests.items()}
  lines_of = lambda m: (
      f"{m}: {values[f'{m}, {UNIFORM}'].mean():.4f} by one factor, {values[f'{m}, {LINES}'].mean():.4f} by LiNeS, "
      f"{tests[m][UNIFORM]}; against the reversed schedule {tests[m][REVERSED]}")
  sentence = "Share of the experts' r that the merged model keeps. " + "; ".join(map(lines_of, tests)) + "."
  if max(sign.values()) < 1 and values[f"task arithmetic, {UNIFORM}"].mean() > 1:
    sentence += (
        " One factor already gives more than the experts have: the domains help each other, so that there is no "
        "interference for a schedule to cut.")
  if min(sign.values()) == 1:
    return "true", sentence
  return ("partly" if max(sign.values()) == 1 and min(sign.values()) == 0 else "false"), sentence


EXPERIMENT = Experiment(
    slug="lines-merging", title="LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging",
    arxiv="2410.17146", areas=("merging",), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
