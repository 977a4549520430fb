"""Intruder dimensions: does LoRA leave leading directions that the pretrained matrix lacks, and full tuning none?

    jaxft run intruder-dimensions            a few minutes on two cores
    jaxft run intruder-dimensions --smoke    seconds

The spectra of `transforms/lora_vs_full.py` on a model whose tuning goes far: an MLP with two hidden layers of 256 that
reads digits in three views, tuned on inverted ones, by both hidden matrices or by LoRA on them with rank 1, 4, 16 or 64
and alpha = 2r; the head trains in all arms, as in the source. A seed draws the model, factors and batches.

Each arm's learning rate is the best of its grid by accuracy on validation images, the mean over seeds of their own.
Intruders are counted among the ten leading singular vectors of each hidden matrix on the side of the outputs, at the
source's threshold of 0.5 and at others. Control: the share of the leading vectors that lies outside the span of the
pretrained matrix's thirty leading ones, as vectors of near-equal singular values may turn among themselves. Mitigation:
the singular values of rank 4's intruders scaled after training, and what that gives in the old views and costs in the
new one.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.tasks.digits_views import accuracy, finetune, load_images, pretrain, seen
from jaxft.analysis import effective_rank, singular_overlap
from jaxft.evaluation import PairedTest, paired_test
from jaxft.merging import reduce_intruders
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.result import Arm, Result
from jaxft.transforms import ParamTransform, chain, lora, train


@dataclasses.dataclass(frozen=True)
class Config:
  widths: tuple[int, ...] = (256, 256)
  views: tuple[str, ...] = ("upright", "turned", "mirrored")
  target: str = "inverted"
  base_steps: int = 1500
  steps: int = 400
  ranks: tuple[int, ...] = (1, 4, 16, 64)
  mitigated_rank: int = 4
  factors: tuple[float, ...] = (0.75, 0.5, 0.25, 0.0)
  full_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
  lora_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
  k: int = 10
  near: int = 30  # leading vectors of the base whose span is the control
  thresholds: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
  images: int | None = None  # of each split; None takes all
  seeds: tuple[int, ...] = tuple(range(8))
  tuning_seeds: tuple[int, ...] = (100, 101, 102, 103)


SMOKE = Config(
    widths=(32, 32), base_steps=4, steps=3, ranks=(1, 4), factors=(0.5,), full_rates=(1e-2,), lora_rates=(1e-1,),
    k=4, near=8, images=40, seeds=(0, 1), tuning_seeds=(100,))

FULL, HIDDEN, EPS = "full", "hidden_*/kernel", 0.5


class Spectrum(NamedTuple):
  """Of one checkpoint, means over its hidden matrices."""

  intruders: list[float]  # for each threshold
  outside: float  # share of the leading vectors that lie outside the span, by squared length
  effective_rank: float
  change: float  # of the matrices, relative to their norm


def arms(config: Config) -> dict[str, tuple[ParamTransform, tuple[float, ...]]]:
  """What trains, and the grid of rates."""
  adapted = lambda rank: chain(train("head/**"), lora(HIDDEN, rank=rank, alpha=2.0 * rank))
  return {FULL: (train([HIDDEN, "head/**"]), config.full_rates)} | {
      f"LoRA, rank {rank}": (adapted(rank), config.lora_rates) for rank in config.ranks}


def spectrum(base: Float[Array, "m n"], tuned: Float[Array, "m n"], config: Config) -> dict[str, Array]:
  """Of one matrix."""
  vectors = lambda w: jnp.linalg.svd(w, full_matrices=False)[2]
  inside = jnp.sum((vectors(tuned)[: config.k] @ vectors(base)[: config.near].T) ** 2, axis=-1)
  cosines = singular_overlap(base, tuned).cosines[: config.k]
  return {
      "intruders": jnp.sum(cosines < jnp.array(config.thresholds)[:, None], axis=-1),
      "outside": jnp.mean(1 - inside), "effective_rank": effective_rank(tuned - base),
      "change": jnp.linalg.norm(tuned - base) / jnp.linalg.norm(base)}


def run(config: Config) -> Result:
  """Chooses rates on validation images, tunes every seed of every arm, and compares spectra and what was forgotten."""
  images = {split: load_images(split, limit=config.images) for split in ("train", "validation", "test")}
  target = {split: seen(part, config.target) for split, part in images.items()}
  control = seen(images["test"], *config.views)
  old = seen(images["train"], *config.views)

  @jax.jit
  @jax.vmap
  def start(key: Array) -> Any:
    return pretrain(key, old, widths=config.widths, steps=config.base_steps)

  keys = lambda seeds: jax.vmap(jax.random.key)(jnp.array(seeds))
  further = lambda seeds: jax.vmap(partial(jax.random.fold_in, data=1))(keys(seeds))
  bases = {seeds: start(keys(seeds)) for seeds in (config.tuning_seeds, config.seeds)}
  score = jax.jit(jax.vmap(accuracy, in_axes=(0, None)))

  rates, tuning, tuned = {}, {}, {}
  for arm, (transform, grid) in arms(config).items():

    @jax.jit
    @partial(jax.vmap, in_axes=(0, 0, None))
    def tune(key: Array, params: Any, rate: Array) -> Any:
      return finetune(key, params, target["train"], transform=transform, steps=config.steps, rate=rate)

    at = lambda seeds, rate: tune(further(seeds), bases[seeds], rate)
    validated = [float(score(at(config.tuning_seeds, rate), target["validation"]).mean()) for rate in grid]
    rates[arm] = grid[int(np.argmax(validated))]
    tuning[arm] = dict(zip(map(str, grid), validated, strict=True))
    tuned[arm] = at(config.seeds, rates[arm])

  base = bases[config.seeds]
  names = [name for name in base if name != "head"]
  of_seeds = jax.jit(jax.vmap(lambda a, b: spectrum(a, b, config)))
  found = {arm: mean_over_matrices([of_seeds(base[n]["kernel"], params[n]["kernel"]) for n in names])
           for arm, params in tuned.items()}
  mitigated = f"LoRA, rank {config.mitigated_rank}"
  edited = {1.0: tuned[mitigated]} | {
      factor: reduce_intruders(base, tuned[mitigated], k=config.k, eps=EPS, factor=factor, select=HIDDEN)
      for factor in config.factors}

  values = lambda params: {"target": score(params, target["test"]), "control": score(params, control)}
  scores = {arm: jax.tree.map(np.asarray, values(params)) for arm, params in tuned.items()}
  mitigation = {factor: jax.tree.map(np.asarray, values(params)) for factor, params in edited.items()}
  before = {name: float(accuracies.mean()) for name, accuracies in values(base).items()}
  at = config.thresholds.index(EPS)
  made = {
      arm: Arm(arm, tuple(s.intruders[at] for s in spectra), {"learning_rate": rates[arm]})
      for arm, spectra in found.items()}
  supports, conclusion = conclude(found, scores, mitigation, before, config)
  listed = lambda by_view: {name: x.tolist() for name, x in by_view.items()}
  return Result(
      slug="intruder-dimensions", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric=f"intruder dimensions among the {config.k} leading singular vectors, per matrix, at {EPS} "
             "(the paper: LoRA has more)", higher_is_better=False,
      baseline=made.pop(FULL), method=made.pop(mitigated), arms=tuple(made.values()), seeds=config.seeds, command="",
      supports_paper=supports, conclusion=conclusion,
      details={
          "before": before, "validation": tuning, "thresholds": config.thresholds,
          "spectra": {arm: [s._asdict() for s in spectra] for arm, spectra in found.items()},
          "scores": {arm: listed(by_view) for arm, by_view in scores.items()},
          "mitigation_of": mitigated, "mitigation": {f"{f:g}": listed(by_view) for f, by_view in mitigation.items()},
          "mitigation_against_none": {
              f"{f:g}": {name: paired_test(x, mitigation[1.0][name]) for name, x in by_view.items()}
              for f, by_view in mitigation.items() if f != 1.0},
      })


def mean_over_matrices(parts: list[dict[str, Array]]) -> list[Spectrum]:
  """One spectrum a seed."""
  mean = {name: np.mean([np.asarray(part[name]) for part in parts], axis=0) for name in parts[0]}
  return [Spectrum(i.tolist(), float(o), float(r), float(c)) for i, o, r, c in zip(
      mean["intruders"], mean["outside"], mean["effective_rank"], mean["change"], strict=True)]


def conclude(
    found: dict[str, list[Spectrum]], scores: dict[str, dict[str, np.ndarray]],
    mitigation: dict[float, dict[str, np.ndarray]], before: dict[str, float], config: Config,
) -> tuple[str, str]:
  """Which of the paper's findings hold, by a rule, and the sentence that says so.

  Three claims (each p < 0.05): LoRA of every rank to 16 has more intruders than full tuning; it has a lower effective
  rank; shrinking the intruders raises the accuracy in the old views. "true": all three. "partly": one at least.
  """
  at = config.thresholds.index(EPS)
  low = [f"LoRA, rank {rank}" for rank in config.ranks if rank <= 16]
  column = lambda arm, field: [getattr(s, field) for s in found[arm]]
  count = {arm: [s.intruders[at] for s in spectra] for arm, spectra in found.items()}
  more = {arm: paired_test(count[arm], count[FULL]) for arm in low}
  lower = {arm: paired_test(column(arm, "effective_rank"), column(FULL, "effective_rank")) for arm in low}
  back: dict[float, PairedTest] = {
      f: paired_test(x["control"], mitigation[1.0]["control"]) for f, x in mitigation.items() if f != 1.0}
  listed = lambda values, form: ", ".join(f"{np.mean(v):{form}} ({arm})" for arm, v in values.items())
  strictest = {arm: [s.intruders[0] for s in spectra] for arm, spectra in found.items()}
  sentence = (
      f"Intruders per matrix, of which an update of rank r can make r: {listed(count, '.2f')}; at a threshold of "
      f"{config.thresholds[0]:g}, far from what vectors of {config.widths[-1]} numbers have by chance: "
      f"{listed(strictest, '.2f')}. Effective rank of the update: "
      f"{listed({arm: column(arm, 'effective_rank') for arm in found}, '.1f')}. Accuracy in the new view: "
      f"{listed({arm: s['target'] for arm, s in scores.items()}, '.3f')}; in the old ones, {before['control']:.3f} "
      f"before: {listed({arm: s['control'] for arm, s in scores.items()}, '.3f')}. Scaling the intruders of rank "
      f"{config.mitigated_rank} changes the old views and the new one " + ", ".join(
          f"at {f:g} by {test} and {np.mean(mitigation[f]['target'] - mitigation[1.0]['target']):+.4f}"
          for f, test in back.items()) + ".")
  claims = [all(t.sign > 0 for t in more.values()), all(t.sign < 0 for t in lower.values()),
            any(t.sign > 0 for t in back.values())]
  return ("true" if all(claims) else "partly" if any(claims) else "false"), sentence


EXPERIMENT = Experiment(
    slug="intruder-dimensions", title="LoRA vs Full Fine-tuning: An Illusion of Equivalence", arxiv="2410.21228",
    areas=("analysis", "merging", "transforms"), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
