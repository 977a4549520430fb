"""The main job, end to end: a public checkpoint, fine-tuned, scaled by depth, and reported.

    python -m experiments.demo [--smoke] [--report STEM]          (make demo)

all-MiniLM-L6-v2 learns to find a function's description from its signature, by GIST's guided contrastive loss through
LoRA. LiNeS then scales the update with depth, beside the same update scaled uniformly, and the report draws what each
keeps of the target against what it gives back of the controls. One seed: see the experiments `gistembed` and `lines`
for the comparison over seeds.
"""

import argparse
import dataclasses
import resource
import time
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from tqdm import tqdm

from experiments.tasks import docstring_search as task
from jaxft.compilation import use_compilation_cache
from jaxft.formats import load
from jaxft.host_memory import keep_freed_memory
from jaxft.merging import lines
from jaxft.report import Report
from jaxft.transforms import lora
from jaxft.tree import apply_task_vector, count, task_vector

matplotlib.use("Agg")  # no display
import matplotlib.pyplot as plt


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of the run; all are in the report."""

  model: str = "minilm-l6"
  steps: int = 60
  batch_size: int = 64
  rank: int = 8
  alpha: float = 16.0
  learning_rate: float = 1e-3
  temperature: float = 0.05
  scales: tuple[float, ...] = (0.3, 0.6)
  queries: int = 200
  probe: int = 80
  corpus: int | None = 1000
  max_length: int = 128  # tokens of a text that is embedded
  seed: int = 0


SMOKE = Config(steps=3, batch_size=8, scales=(0.5,), queries=24, probe=12, corpus=24, max_length=24)


class Curve:
  """Keeps the metrics of every step in memory; a writer of the training loop."""

  def __init__(self):
    self.steps: list[int] = []
    self.losses: list[float] = []
    self.rates: list[float] = []

  def write(self, step: int, values: dict[str, float]) -> None:
    if "loss" in values:
      self.steps.append(step)
      self.losses.append(values["loss"])
      self.rates.append(values["examples_per_second"])

  def rewind(self, step: int) -> None:
    del step  # never resumed

  def close(self) -> None:
    pass


def main(config: Config, stem: Path) -> dict[str, task.Scores]:
  """Runs the job and writes the report; returns the scores of every checkpoint."""
  keep_freed_memory()
  use_compilation_cache()
  start = time.perf_counter()
  print(f"fine-tuning {config.model} to find a function's description from its signature, {config.steps} steps of "
        f"{config.batch_size}, then scaling the update by depth: a few minutes on two cores", flush=True)
  model = load(config.model)
  pairs = task.load_pairs("train")
  evaluation = task.load_evaluation("test", queries=config.queries, probe=config.probe, corpus=config.corpus)

  curve, embed = Curve(), task.Embedder(model, max_length=config.max_length)
  transform = lora("layers/**/kernel", rank=config.rank, alpha=config.alpha)
  batches = task.PackageBatches(pairs, model, batch_size=config.batch_size, seed=config.seed)
  drawn = np.concatenate([batches.rows(t) for t in range(config.steps)])
  batches = batches.guided_by(task.guide_embeddings(embed, model.params, pairs, drawn))
  training = time.perf_counter()
  finetuner = task.Finetuner(
      model, transform, batch_size=config.batch_size, temperature=config.temperature,
      learning_rate=config.learning_rate, steps=config.steps)
  tuned = finetuner(batches, seed=config.seed, writers=(curve,))
  training = time.perf_counter() - training

  delta = task_vector(model.params, tuned)
  checkpoints: dict[str, Any] = {"before": model.params, "after": tuned}
  for s in config.scales:
    checkpoints[f"uniform {s:g}"] = apply_task_vector(model.params, delta, scale=s)
  for a in (0.0, *config.scales):
    checkpoints[f"LiNeS {a:g}"] = apply_task_vector(model.params, lines(delta, alpha=a, beta=1.0 - a))
  score = task.evaluator(embed)
  scores = {name: score(params, evaluation) for name, params in tqdm(checkpoints.items(), desc="evaluating")}

  trained = count(jax.eval_shape(lambda p: transform.split(jax.random.key(0), p)[1], model.params))
  facts = {
      "trained parameters": f"{trained:,} of {count(model.params):,} ({trained / count(model.params):.2%})",
      "training pairs": f"{len(pairs.anchors):,}",
      "held-out packages": ", ".join(sorted(set(task.load_pairs("test").groups))),
      "training": f"{training:.0f} s, {np.median(curve.rates):.0f} examples/s",
      "whole run": f"{time.perf_counter() - start:.0f} s",
      "peak memory": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB",
      "device": f"{jax.devices()[0].device_kind}, JAX {jax.__version__}",
  }
  page, markdown = report(config, facts, curve, scores).write(stem)
  width = max(map(len, scores))
  print(f"{'':<{width}}  target nDCG@10  neighbours nDCG@10  sentiment r")
  for name, s in scores.items():
    print(f"{name:<{width}}  {s.ndcg:14.4f}  {s.neighbours:18.4f}  {s.sentiment:11.4f}")
  print(f"wrote {page}, the report with its plots, and {markdown}; next: jaxft finetune --help, jaxft list")
  return scores


def report(config: Config, facts: dict[str, str], curve: Curve, scores: dict[str, task.Scores]) -> Report:
  """The page: what was run, how training went, what each checkpoint reaches, and the fronts."""
  out = Report("Fine-tuning a text encoder with GIST and LoRA, scaled by depth with LiNeS")
  before, after = scores["before"], scores["after"]
  out.text(
      f"Target: find the first sentence of a function's docstring from its signature, on packages never trained on: "
      f"nDCG@10 {before.ndcg:.4f} before, {after.ndcg:.4f} after. Controls, not trained on: the next sentence of a "
      f"news editorial (nDCG@10 {before.neighbours:.4f} before, {after.neighbours:.4f} after) and a ridge probe of "
      f"sentiment on four domains (Pearson's r {before.sentiment:.4f} before, {after.sentiment:.4f} after).")
  out.heading("Settings")
  out.table(("setting", "value"), [(k, str(v)) for k, v in (dataclasses.asdict(config) | facts).items()])
  out.heading("Training")
  out.figure(_curve_figure(curve), "GIST loss (nats) at each step; the line is a running mean of ten steps.")
  out.heading("Target against control")
  out.text("Uniform scaling multiplies the whole update by one factor. LiNeS a grows the factor linearly with depth, "
           "from a in the first layer to 1 in the last. Up and to the right is better.")
  out.figure(_front_figure(scores), "Each point is one checkpoint; the lines join the points of one schedule.")
  out.table(
      ("checkpoint", "target nDCG@10", "target recall@10", "neighbours nDCG@10", "sentiment r"),
      [(name, s.ndcg, s.recall, s.neighbours, s.sentiment) for name, s in scores.items()])
  out.heading("Sources")
  for line in CITATIONS:
    out.text(line)
  return out


CITATIONS = (
    "GIST: Solatorio 2024, GISTEmbed: Guided In-sample Selection of Training Negatives (arXiv 2402.16829).",
    "LoRA: Hu et al. 2021, Low-Rank Adaptation of Large Language Models (arXiv 2106.09685).",
    "LiNeS: Wang et al. 2024, Post-training Layer Scaling Prevents Forgetting (arXiv 2410.17146).",
    "MiniLM: Wang et al. 2020 (arXiv 2002.10957); sentence embeddings: Reimers and Gurevych 2019 (arXiv 1908.10084).",
    "Sentiment: Hutto and Gilbert 2014, VADER, ICWSM.",
)


def _curve_figure(curve: Curve) -> plt.Figure:
  figure, axes = plt.subplots(figsize=(7, 3.2))
  axes.plot(curve.steps, curve.losses, color="#9db4d6", linewidth=1)
  width = min(10, len(curve.losses))
  smooth = np.convolve(curve.losses, np.ones(width) / width, mode="valid")
  axes.plot(curve.steps[width - 1 :], smooth, color="#1f4e9c", linewidth=2)
  axes.set(xlabel="step", ylabel="loss (nats)")
  axes.grid(alpha=0.3)
  return figure


def _front_figure(scores: dict[str, task.Scores]) -> plt.Figure:
  figure, panels = plt.subplots(1, 2, figsize=(10, 4.2))
  controls = (("neighbours", "neighbouring sentence, nDCG@10"), ("sentiment", "sentiment probe, Pearson's r"))
  for axes, (field, label) in zip(panels, controls, strict=True):
    point = lambda name: (getattr(scores[name], field), scores[name].ndcg)
    # Uniform scaling by 0 is the model before; LiNeS from 0 still keeps the last layer's update.
    for kind, color, marker, start in (("uniform", "#c0562f", "o", ["before"]), ("LiNeS", "#1f4e9c", "s", [])):
      names = [*start, *(n for n in scores if n.startswith(kind)), "after"]
      xs, ys = zip(*map(point, names), strict=True)
      axes.plot(xs, ys, color=color, marker=marker, label=kind)
    for name in ("before", "after"):
      axes.annotate(name, point(name), textcoords="offset points", xytext=(6, -12))
    axes.set(xlabel=label, ylabel="target nDCG@10")
    axes.locator_params(nbins=6)
    axes.margins(0.12)
    axes.grid(alpha=0.3)
  panels[0].legend()
  figure.tight_layout()
  return figure


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--smoke", action="store_true", help="a few steps and a few texts")
  parser.add_argument("--report", type=Path, default=Path("report"), metavar="STEM", help="writes STEM.html, STEM.md")
  args = parser.parse_args()
  main(SMOKE if args.smoke else Config(), args.report)
