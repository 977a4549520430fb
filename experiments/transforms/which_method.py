"""Which method? Twenty ways to fine-tune at their usual sizes, on one task and one budget, and what each forgets.

    jaxft run which_method                         about half an hour on one core
    jaxft run which_method --smoke                 seconds
    python -m experiments.transforms.which_method --report    makes the page from the committed result

all-MiniLM-L6-v2 learns to rate movie reviews; the protocol, the same for all, is `tasks/method_comparison.py`.
Methods have the sizes that they are commonly used at, not equal ones: `transforms/peft_survey.py` has equal ones. The
question is what a user asks: which one, when quality, forgetting and cost all count? Token embeddings are frozen in
all of them. HFT and S2FT draw what trains once for all seeds; on a stack of layers, as here, HFT saves state and no
operations. FourierFT adapts queries and values alone, as in its paper.

Baseline is the tuning of all layers, method is LoRA.
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.tasks.method_comparison import SMOKE, Comparison, Method, Protocol, Scores, compare
from jaxft.adapters import bottleneck, prefix
from jaxft.choices import random_module_mask, s2ft_units
from jaxft.evaluation import paired_test
from jaxft.formats import Pretrained, load
from jaxft.report import Report
from jaxft.studies.experiment import Experiment, committed, main, results_folder
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.transforms import (
  chain,
  dora,
  fourier_ft,
  hra,
  ia3,
  loha,
  lokr,
  lora,
  miss,
  oft,
  on,
  pissa,
  quantize,
  shira,
  submatrix,
  train,
  vera,
)

SELECT = "layers/**/kernel"
BASELINE, METHOD, HEAD = "full", "LoRA", "head alone"


def methods(model: Pretrained) -> dict[str, Method]:
  """The methods at their usual sizes, by family."""
  key, config = jax.random.key(0), model.config
  head_dim = config.dim // config.num_heads
  lora_file = {"peft_type": "LORA"}
  return {
      HEAD: Method("none", 0.0),
      BASELINE: Method("full", 1e-4, train("layers/**")),
      "HFT": Method("selective", 2e-4, on("layers/**", train(partial(random_module_mask, key)))),
      "BitFit": Method("selective", 3e-3, train("layers/**/bias")),
      "norms": Method("selective", 3e-3, train("layers/{attention_norm,mlp_norm}/*"), peft_type="LN_TUNING"),
      "S2FT": Method("selective", 1e-3, submatrix(partial(
          s2ft_units, key, head_dim=head_dim, heads=1 / config.num_heads, channels=0.05, scope="layer"))),
      "SHiRA": Method("selective", 3e-3, shira(SELECT, rank=8)),
      "adapter": Method("additive", 2e-3, adapter=bottleneck(config, 16, insertion="sequential")),
      "prefix": Method("prompt", 3e-2, adapter=prefix(config, 8, stddev=0.02), peft_type="PREFIX_TUNING"),
      METHOD: Method("low rank", 1e-3, lora(SELECT, rank=8), **lora_file),
      "DoRA": Method("low rank", 1e-3, dora(SELECT, rank=8), **lora_file),
      "PiSSA": Method("low rank", 5e-4, lora(SELECT, rank=8, alpha=8.0, init=pissa), **lora_file),
      "QLoRA": Method("low rank", 1e-3, chain(lora(SELECT, rank=8), quantize(SELECT, format="nf4", double=True))),
      "VeRA": Method("low rank", 3e-2, vera(SELECT, rank=64), peft_type="VERA"),
      "LoHa": Method("structured", 3e-3, loha(SELECT, rank=8), peft_type="LOHA", settings={"alpha": 8.0}),
      "LoKr": Method("structured", 1e-3, lokr(SELECT), peft_type="LOKR"),
      "MiSS": Method("structured", 1e-3, miss(SELECT, rank=8), peft_type="MISS"),
      "FourierFT": Method("structured", 1e-2, fourier_ft("layers/attention/{query,value}/kernel")),
      "OFT": Method("multiplicative", 1e-3, oft(SELECT), peft_type="OFT", settings={"use_cayley_neumann": False}),
      "HRA": Method("multiplicative", 1e-3, hra(SELECT, rank=8), peft_type="HRA"),
      "IA3": Method("multiplicative", 1e-2, ia3()),
  }


@dataclasses.dataclass(frozen=True)
class Config(Protocol):
  domain: str = "movies"


def run(config: Config) -> Result:
  """Compares the methods."""
  ledger, model = Ledger("which_method", config), load(config.model)
  found = compare(config, model, methods(model), ledger)
  target = found.values("target")
  supports, conclusion = conclude(found)
  arms = {name: Arm(name, tuple(scores), {"learning_rate": found.rates[name]}) for name, scores in target.items()}
  result = Result(
      slug="which_method", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric=f"Pearson's r on {config.domain}, test", higher_is_better=True, baseline=arms[BASELINE],
      method=arms[METHOD], arms=tuple(arm for name, arm in arms.items() if name not in (BASELINE, METHOD)),
      seeds=config.seeds, command="", supports_paper=supports, conclusion=conclusion,
      details={
          **found.details(),
          "family": {name: method.family for name, method in methods(model).items() if name in found.rates},
          "against_full": {
              score: {name: paired_test(values[name], values[BASELINE]) for name in values if name != BASELINE}
              for score, values in ((s, found.values(s)) for s in Scores._fields)},
          "front": front(found)})
  ledger.clear()
  return result


def front(found: Comparison) -> list[str]:
  """The methods that no other one beats in the mean of both the target and what is kept, best target first."""
  means = {name: np.mean([(run.target, run.kept) for run in runs], axis=0) for name, runs in found.scores.items()}
  beaten = lambda name: any((other >= means[name]).all() and (other > means[name]).any() for other in means.values())
  return sorted((name for name in means if not beaten(name)), key=lambda name: -means[name][0])


def conclude(found: Comparison) -> tuple[str, str]:
  """Whether the survey is supported, by a rule, and the sentences that say so.

  The survey holds that parameter-efficient methods come close to full tuning at a fraction of its cost and forget less.
  "true": LoRA is not worse in the target than tuning all layers and keeps more (both by p < 0.05). "partly": one of the
  two. Else "false".
  """
  values = {score: found.values(score) for score in Scores._fields}
  test = {score: paired_test(by_name[METHOD], by_name[BASELINE]) for score, by_name in values.items()}
  claims = test["target"].sign >= 0, test["kept"].sign > 0
  mean = lambda score, name: float(np.mean(values[score][name]))
  best = {score: max(by_name, key=lambda name: mean(score, name)) for score, by_name in values.items()}
  lost = max((name for name in values["kept"]), key=lambda name: found.before - mean("kept", name))
  costs = found.costs
  sentence = (
      f"LoRA differs from tuning all layers by {test['target']} in the target, {test['elsewhere']} in the "
      f"other domains and {test['kept']} in nDCG@10 of the next sentence ({found.before:.4f} before), with "
      f"{costs[METHOD].share:.1%} of their numbers and {costs[METHOD].flops / costs[BASELINE].flops:.0%} of the "
      f"operations. The best target has {best['target']} ({mean('target', best['target']):.4f}; the head alone "
      f"{mean('target', HEAD):.4f}), the best other domains {best['elsewhere']} "
      f"({mean('elsewhere', best['elsewhere']):.4f}); {lost} forgets most ({mean('kept', lost):.4f}). Beaten by none "
      f"in both target and memory: {', '.join(front(found))}.")
  if highest := found.highest():
    sentence += (
        f" The steps are few: {len(highest)} of {len(found.rates)} methods take the highest rate tried and may not "
        f"have gone far enough ({', '.join(highest)}).")
  return ("true" if all(claims) else "partly" if any(claims) else "false"), sentence


# The report


def rows(result: Result) -> list[dict[str, Any]]:
  """One row for each method, best target first, from a result file alone."""
  d, out = result.details, []
  for name, costs in d["costs"].items():
    mean = {score: float(np.mean(d[score][name])) for score in Scores._fields}
    std = {f"{score}_std": float(np.std(d[score][name], ddof=1)) for score in Scores._fields}
    out.append({
        "name": name, "family": d["family"][name], **mean, **std, **costs, "rate": d["learning_rates"][name],
        "forgotten": d["next_sentence_before"] - mean["kept"]})
  return sorted(out, key=lambda row: -row["target"])


def report(result: Result, stem: Path) -> tuple[Path, Path]:
  """Writes the page of a result: the table and two plots, as HTML and as Markdown."""
  page = Report(result.title)
  page.text(result.conclusion)
  page.text(
      f"{result.metric}; mean ± standard deviation over {len(result.seeds)} seeds. Elsewhere: mean of Pearson's r in "
      f"the other three domains, forgotten the loss of nDCG@10 in finding the next sentence of an editorial "
      f"({result.details['next_sentence_before']:.4f} before). FLOPs: of a training step, per token and number of the "
      "layers; state is all that is held between steps; the file is what ships beside the pretrained encoder, without "
      f"the head: PEFT's where it has a format for the method, else the bare numbers. Made by `{result.command}` on "
      f"{result.device}.")
  plus = lambda row, score: f"{row[score]:.3f} ± {row[f'{score}_std']:.3f}"
  header = (
      "method", "family", "target", "elsewhere", "forgotten", "trained", "share of layers", "FLOPs", "state (MiB)",
      "file (KiB)", "learning rate")
  page.table(header, [(
      row["name"], row["family"], plus(row, "target"), plus(row, "elsewhere"),
      f"{row['forgotten']:+.3f} ± {row['kept_std']:.3f}", f"{row['trained']:,}", f"{row['share']:.3%}",
      f"{row['flops']:.2f}", f"{row['state_bytes'] / 2**20:.0f}",
      f"{row['file_bytes'] / 2**10:,.0f} {row['file'] if row['file'] != 'none' else ''}".strip(), f"{row['rate']:g}")
      for row in rows(result)])
  page.figure(plots(result), "Target against what is forgotten, and against the numbers that train")
  return page.write(stem)


def plots(result: Result) -> Any:
  """Target against forgetting, and against the size of what trains."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(1, 2, figsize=(13, 5.2), sharey=True)
  table = rows(result)
  families = list(dict.fromkeys(row["family"] for row in table))
  for axis, x, label in (
      (axes[0], "forgotten", "forgotten: loss of nDCG@10, next sentence"), (axes[1], "trained", "numbers that train"),
  ):
    for family, color in zip(families, plt.get_cmap("tab10").colors, strict=False):  # ten colors, fewer families
      members = [row for row in table if row["family"] == family and row[x] is not None and (x != "trained" or row[x])]
      axis.errorbar(
          [row[x] for row in members], [row["target"] for row in members],
          yerr=[row["target_std"] for row in members], fmt="o", color=color, label=family, elinewidth=0.8, alpha=0.85)
      for row in members:
        axis.annotate(row["name"], (row[x], row["target"]), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axis.set_xlabel(label)
    axis.grid(alpha=0.3)
  axes[1].set_xscale("log")
  axes[0].set_ylabel(result.metric)
  axes[0].legend(fontsize=8)
  figure.tight_layout()
  return figure


EXPERIMENT = Experiment(
    slug="which_method", title="Which method? Twenty ways to fine-tune, side by side", arxiv="2501.13787",
    areas=("transforms", "adapters", "analysis"), config=Config,
    smoke=Config(**SMOKE, methods=(HEAD, BASELINE, METHOD, "prefix")), run=run)

if __name__ == "__main__":
  if "--report" in sys.argv:
    print("wrote", *report(committed("which_method"), results_folder() / "which_method"))
  else:
    main(EXPERIMENT)
