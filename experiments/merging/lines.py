"""LiNeS: does scaling an update with depth keep the target and give back the controls better than scaling it uniformly?

    jaxft run lines            about 25 minutes on two cores
    jaxft run lines --smoke    seconds

all-MiniLM-L6-v2 is fine-tuned in full on the search of descriptions from signatures. Its update is then scaled by three
schedules: uniformly by s, by LiNeS from a in the first layer to 1 in the last, and in reverse from 1 to a. For each
schedule the coefficient is chosen on validation data by the source's trade-off with the weight 2 for the target,

    2 * target / target_tuned + mean_control(control / control_pretrained),

and the trade-off at that coefficient is reported on test data; the fronts of all coefficients are in the details.
"""

import dataclasses
from functools import cache
from typing import Any

import jax
import numpy as np

from experiments.tasks import docstring_search as task
from jaxft.evaluation.uncertainty import paired_test
from jaxft.formats import load
from jaxft.merging import lines
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.transforms import full
from jaxft.tree import apply_task_vector, task_vector


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "minilm-l6"
  steps: int = 40
  batch_size: int = 64
  temperature: float = 0.05
  learning_rates: tuple[float, ...] = (5e-5, 2e-4)
  coefficients: tuple[float, ...] = (0.0, 0.3, 0.6)
  target_weight: float = 2.0
  queries: int = 200
  probe: int = 80
  corpus: int | None = None
  max_length: int = 128  # tokens of a text that is embedded
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  tuning_seed: int = 100


SMOKE = Config(
    model="minilm-l6:tiny", steps=2, batch_size=8, learning_rates=(1e-4,), coefficients=(0.5,), queries=16, probe=12,
    corpus=16, max_length=16, seeds=(0, 1))

SCHEDULES = {
    "uniform scaling": lambda delta, c: lines(delta, alpha=c, beta=0.0),
    "LiNeS": lambda delta, c: lines(delta, alpha=c, beta=1.0 - c),
    "reversed": lambda delta, c: lines(delta, alpha=1.0, beta=c - 1.0),
}


def trade_off(scores: task.Scores, tuned: task.Scores, pretrained: task.Scores, weight: float) -> float:
  """The source's choice rule: the normalized target, weighted, and the mean of the normalized controls."""
  controls = (scores.neighbours / pretrained.neighbours, scores.sentiment / pretrained.sentiment)
  return weight * scores.ndcg / tuned.ndcg + float(np.mean(controls))


def run(config: Config) -> Result:
  """Fine-tunes once a seed, scales each update by every schedule, chooses on validation and reports on test."""
  ledger = Ledger("lines", config)
  model, pairs = load(config.model), task.load_pairs("train")
  score = task.evaluator(task.Embedder(model, max_length=config.max_length))
  sizes = {"queries": config.queries, "probe": config.probe, "corpus": config.corpus}
  splits = {split: task.load_evaluation(split, **sizes) for split in ("validation", "test")}

  @cache
  def finetuner(rate: float) -> task.Finetuner:
    return task.Finetuner(
        model, full(), batch_size=config.batch_size, temperature=config.temperature, learning_rate=rate,
        steps=config.steps)

  # On the host, where NumPy scales and adds trees faster than JAX does without an accelerator.
  base = jax.device_get(model.params)

  def finetune(rate: float, seed: int) -> Any:
    batches = task.PackageBatches(pairs, model, batch_size=config.batch_size, seed=seed)
    return jax.device_get(finetuner(rate)(batches, seed=seed))

  def tune(rate: float) -> list[float]:
    return list(score(finetune(rate, config.tuning_seed), splits["validation"]))

  tuning = {rate: ledger(f"tune {rate}", lambda: tune(rate))[0] for rate in config.learning_rates}
  rate = max(tuning, key=tuning.get)
  both = lambda params: {split: list(score(params, evaluation)) for split, evaluation in splits.items()}
  pretrained = ledger("pretrained", lambda: both(base))

  def sweep(seed: int) -> dict[str, Any]:
    tuned = finetune(rate, seed)
    delta = task_vector(base, tuned)
    return {"tuned": both(tuned)} | {
        name: {
            f"{c:g}": both(apply_task_vector(base, schedule(delta, c))) for c in config.coefficients
            # A uniform 0 is the pretrained model, the same for all seeds.
            if not (name == "uniform scaling" and c == 0)
        } for name, schedule in SCHEDULES.items()
    }

  sweeps = [ledger(f"seed {s}", lambda: sweep(s)) for s in config.seeds]
  for s in sweeps:
    s["uniform scaling"]["0"] = pretrained
  values = {name: [] for name in SCHEDULES}
  chosen: dict[str, list[str]] = {name: [] for name in SCHEDULES}
  for s in sweeps:
    value = lambda point, split: trade_off(
        task.Scores(*point[split]), task.Scores(*s["tuned"][split]), task.Scores(*pretrained[split]),
        config.target_weight)
    for name in SCHEDULES:
      points = s[name] | {"1": s["tuned"]}  # 1 is no scaling, open to every schedule
      best = max(points, key=lambda c: value(points[c], "validation"))
      chosen[name].append(best)
      values[name].append(value(points[best], "test"))

  arms = {name: Arm(name, tuple(v), {"chosen_coefficient": chosen[name]}) for name, v in values.items()}
  baseline, method, reverse = arms.values()
  against = paired_test(method.values, baseline.values)
  against_reverse = paired_test(method.values, reverse.values)
  supports = "true" if against.sign > 0 else (
      "partly" if against.mean_difference > 0 or against_reverse.mean_difference > 0 else "false")
  loss = np.mean([s["tuned"]["test"][2:] for s in sweeps], axis=0) - np.array(pretrained["test"][2:])
  conclusion = (
      f"LiNeS differs from uniform scaling by {against} and from the "
      f"reversed schedule by {against_reverse} in the trade-off; "
      f"fine-tuning itself changed the controls by {loss[0]:+.4f} (neighbours) and {loss[1]:+.4f} (sentiment).")
  result = Result(
      slug="lines", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric="trade-off 2 target + control, normalized (3 is both kept whole), test", higher_is_better=True,
      baseline=baseline, method=method, arms=(reverse,), seeds=config.seeds, command="", supports_paper=supports,
      conclusion=conclusion,
      details={
          "fields": list(task.Scores._fields), "pretrained": pretrained, "fronts": sweeps, "learning_rate": rate,
          "validation_ndcg@10": {f"{r:g}": v for r, v in tuning.items()},
          "paired_test_against_reversed": against_reverse,
      })
  ledger.clear()
  return result


EXPERIMENT = Experiment(
    slug="lines", title="LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging",
    arxiv="2410.17146", areas=("merging", "transforms"), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
