"""Intrinsic dimension: does pretraining lower the number of dimensions in which a task can be learned?

    jaxft run intrinsic-dimension            about thirteen minutes on two cores
    jaxft run intrinsic-dimension --smoke    seconds

The task is to read mirrored digits, by an MLP that was pretrained on five other views, on all or a hundredth of the
steps, or not at all. Pretraining and task take the even and the odd half of the training images, so that no image is
seen twice. Training moves the weights, head included, in a random subspace of d dimensions: by Fastfood (DID), by
Fastfood with a scale for each tensor (SAID), or by a dense Gaussian. d90 is the smallest d, between those measured
linear in log d, at which test accuracy is nine tenths of what full fine-tuning from the same start reaches.

Mirrored strokes are strokes that pretraining has seen elsewhere. Inverted digits, bright where all of pretraining was
dark, are the control: a task that has little to do with it.

For each arm and d, and for full fine-tuning, the learning rate is that of the best mean accuracy on validation images,
as the source chooses it; scores are on test images. A seed draws the pretrained weights, the projections and batches.
"""

import dataclasses
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.tasks.digits_views import Images, Params, accuracy, finetune, init, load_images, pretrain, seen
from jaxft.analysis import intrinsic_dimension
from jaxft.evaluation import PairedTest, paired_test
from jaxft.leaves import materialize
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.result import Arm, Result
from jaxft.transforms import ParamTransform, dense_projection, random_subspace


@dataclasses.dataclass(frozen=True)
class Config:
  widths: tuple[int, ...] = (128, 128)
  base_views: tuple[str, ...] = ("upright", "turned", "turned twice", "turned back", "transposed")
  view: str = "mirrored"
  far_view: str = "inverted"
  base_steps: int = 4000
  short_base_steps: int = 40
  base_rate: float = 2e-3
  steps: int = 300
  batch_size: int = 32
  dims: tuple[int, ...] = (32, 64, 90, 128, 180, 256)
  rates: tuple[float, ...] = (0.1, 0.3, 0.9)
  full_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
  seeds: tuple[int, ...] = tuple(range(6))


SMOKE = Config(
    widths=(12,), base_steps=20, short_base_steps=2, steps=3, dims=(8,), rates=(0.05,), full_rates=(1e-3,),
    seeds=(0, 1))

STARTS = RANDOM, SHORT, PRETRAINED = "random init", "a hundredth of the pretraining", "pretrained"
SUBSPACES = {
    "DID, Fastfood": random_subspace,
    "SAID, Fastfood": partial(random_subspace, structured=True),
    "DID, dense": partial(random_subspace, projection=dense_projection),
}
DID, SAID, DENSE = SUBSPACES
FAR = "DID, Fastfood, far view"


def with_kept_projection(key: jax.Array, params: Params, transform: ParamTransform) -> ParamTransform:
  """The same map as a `random_subspace`, its projections kept as matrices `[*shape, d]` that all starts share.

  Drawing them again in every step, as the transform does to save memory, would cost a tiny model most of its time.
  """
  frozen, trainable = transform.split(key, params)
  move = lambda vector: materialize(transform.join(frozen, trainable | {"vector": vector}))
  projections = jax.jacfwd(move)(trainable["vector"])

  def join(params: Params, t: Any) -> Params:
    scales = t.get("scales", jax.tree.map(lambda _: 1.0, params))
    return jax.tree.map(lambda w, p, scale: w + scale * (p @ t["vector"]), params, projections, scales)

  return ParamTransform(lambda key, params: (params, trainable), join)


def starts(key: jax.Array, config: Config, images: Images) -> Params:
  """The weights of each of `STARTS`, stacked; the untrained ones are those that pretraining began with."""
  options = {"widths": config.widths, "batch_size": config.batch_size, "rate": config.base_rate}
  trained = [pretrain(key, images, steps=n, **options) for n in (config.short_base_steps, config.base_steps)]
  return jax.tree.map(lambda *x: jnp.stack(x), init(jax.random.split(key)[0], config.widths), *trained)


def learn(
    key: jax.Array, bases: Params, rates: jax.Array, images: Images, held_out: tuple[Images, Images], config: Config,
    subspace: Any = None,
) -> jax.Array:
  """Accuracies on validation and test images, `[starts, rates, 2]`, of tuning from each start at each rate."""
  options = {"steps": config.steps, "batch_size": config.batch_size}
  if subspace is not None:
    options["transform"] = with_kept_projection(key, jax.tree.map(lambda x: x[0], bases), subspace)

  def one(params: Params, rate: jax.Array) -> jax.Array:
    tuned = finetune(key, params, images, rate=rate, **options)
    return jnp.stack([accuracy(tuned, h) for h in held_out])

  return jax.vmap(lambda params: jax.vmap(partial(one, params))(rates))(bases)


class Curves(NamedTuple):
  """Test accuracies of one arm on one view, `[starts, seeds]`, at the rates chosen on validation images."""

  full: Float[np.ndarray, "starts seeds"]
  by_d: dict[int, Float[np.ndarray, "starts seeds"]]
  rates: dict[str, dict[str, float]]  # by start, by d

  def d90(self, full: np.ndarray | None = None) -> Float[np.ndarray, "starts seeds"]:
    """Between the dimensions of the grid; the largest where none reached nine tenths of `full`."""
    full = self.full if full is None else full
    one = lambda *at: intrinsic_dimension({d: float(scores[at]) for d, scores in self.by_d.items()}, float(full[at]),
                                          interpolate=True) or float(max(self.by_d))
    return np.array([[one(i, j) for j in range(full.shape[1])] for i in range(full.shape[0])])

  @property
  def missed(self) -> list[int]:
    """For how many seeds no d of the grid reached nine tenths, by start."""
    return (np.max(list(self.by_d.values()), axis=0) < 0.9 * self.full).sum(axis=1).tolist()


def run(config: Config) -> Result:
  """Pretrains for each seed, tunes from each start in all subspaces and measures d90."""
  train, *held_out = (load_images(split) for split in ("train", "validation", "test"))
  even, odd = (jax.tree.map(lambda x: x[first::2], train) for first in (0, 1))
  keys = [jax.random.key(seed) for seed in config.seeds]
  start = jax.jit(partial(starts, config=config, images=seen(even, *config.base_views)))
  bases = [start(key) for key in keys]

  def best(view: str, rates: tuple[float, ...], subspace: Any = None) -> tuple[np.ndarray, list[float]]:
    """Test accuracies `[starts, seeds]` at each start's best rate on validation images, and those rates."""
    run = jax.jit(partial(learn, images=seen(odd, view), held_out=tuple(seen(h, view) for h in held_out),
                          config=config, subspace=subspace))
    scores = np.stack([
        run(jax.random.fold_in(key, 1), base, jnp.array(rates)) for key, base in zip(keys, bases, strict=True)])
    at = scores[..., 0].mean(axis=0).argmax(axis=-1)
    return np.stack([scores[:, i, j, 1] for i, j in enumerate(at)]), [rates[j] for j in at]

  def curves(view: str, names: Iterable[str]) -> dict[str, Curves]:
    full, full_rates = best(view, config.full_rates)
    out = {}
    for name in names:
      found = {d: best(view, config.rates, SUBSPACES[name](d)) for d in config.dims}
      rates = {s: {"full": full_rates[i]} | {str(d): f[1][i] for d, f in found.items()} for i, s in enumerate(STARTS)}
      out[name] = Curves(full, {d: scores for d, (scores, _) in found.items()}, rates)
    return out

  near, far = curves(config.view, SUBSPACES), curves(config.far_view, [DID])[DID]
  d90 = {name: curve.d90() for name, curve in near.items()} | {FAR: far.d90()}
  arms = {
      (start, name): Arm(f"{start}, {name}", tuple(d90[name][i].tolist()), {"rates": curve.rates[start]})
      for name, curve in {**near, FAR: far}.items() for i, start in enumerate(STARTS)
  }
  baseline, method = arms.pop((RANDOM, DID)), arms.pop((PRETRAINED, DID))
  supports, conclusion = conclude(d90, near[DID])
  by_start = lambda values: {start: np.asarray(x).tolist() for start, x in zip(STARTS, values, strict=True)}
  zero_shot = np.array([jax.vmap(accuracy, (0, None))(base, seen(held_out[1], config.view)) for base in bases])
  same_full = near[DID].full[[-1] * len(STARTS)]
  return Result(
      slug="intrinsic-dimension", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric=f"d90 of reading {config.view} digits, DID by Fastfood, test images", higher_is_better=False,
      baseline=baseline, method=method, arms=tuple(arms.values()), seeds=config.seeds, command="",
      supports_paper=supports, conclusion=conclusion,
      details={
          "params": sum(x[0].size for x in jax.tree.leaves(bases[0])), "dims": config.dims,
          "accuracy_before": by_start(zero_shot.mean(axis=0)),
          "accuracy_full": by_start(near[DID].full.mean(axis=1)), "accuracy_full_far": by_start(far.full.mean(axis=1)),
          "accuracy_by_d": {name: by_start(np.mean(list(curve.by_d.values()), axis=2).T)
                            for name, curve in {**near, FAR: far}.items()},
          "d90": {name: by_start(values) for name, values in d90.items()},
          "d90_by_the_full_accuracy_of_pretrained": by_start(near[DID].d90(same_full)),
          "seeds_that_missed": {name: by_start(curve.missed) for name, curve in {**near, FAR: far}.items()},
          "pretrained_against_random": {name: compare(values[2], values[0]) for name, values in d90.items()},
          "short_against_random": {name: compare(values[1], values[0]) for name, values in d90.items()},
          "pretrained_against_short": {name: compare(values[2], values[1]) for name, values in d90.items()},
          "said_against_did": compare_by_start(d90[SAID], d90[DID]),
          "dense_against_fastfood": compare_by_start(d90[DENSE], d90[DID]),
      })


def compare(a: np.ndarray, b: np.ndarray) -> PairedTest:
  """A paired test of log2 d90: differences are in octaves."""
  return paired_test(np.log2(a), np.log2(b))


def compare_by_start(a: np.ndarray, b: np.ndarray) -> dict[str, PairedTest]:
  """Paired tests of two subspaces, one for each start."""
  return {start: compare(*both) for start, *both in zip(STARTS, a, b, strict=True)}


def conclude(d90: dict[str, np.ndarray], did: Curves) -> tuple[str, str]:
  """Whether pretraining lowers d90 of the near task, and the sentence that says so.

  "true": in all three subspaces (p < 0.05). "partly": by DID with Fastfood alone. Else "false".
  """
  tests = {name: compare(values[2], values[0]) for name, values in d90.items()}
  lower = {name: t.sign < 0 for name, t in tests.items()}
  middle = {name: 2 ** np.log2(values).mean(axis=1) for name, values in d90.items()}
  say = lambda name: " to ".join(f"{d:.0f}" for d in middle[name]) + f" (p = {tests[name].p_value:.2g})"
  gains = {d: float((scores[2] - scores[0]).mean()) for d, scores in did.by_d.items()}
  most = max(gains, key=gains.get)
  said = compare(d90[SAID][2], d90[DID][2])
  sentence = (
      f"From no pretraining over a hundredth of it to all of it, d90 goes from {say(DID)} by DID, {say(SAID)} by SAID "
      f"and {say(DENSE)} by a dense projection; on the view far from pretraining from {say(FAR)}. Pretraining gains "
      f"most accuracy at d = {most}, {gains[most]:+.3f}. A scale for each tensor changes the pretrained d90 by a "
      f"factor of {2 ** said.mean_difference:.2f} (p = {said.p_value:.2g}).")
  if all(lower[name] for name in SUBSPACES):
    return "true", sentence
  return ("partly" if lower[DID] else "false"), sentence


EXPERIMENT = Experiment(
    slug="intrinsic-dimension",
    title="Intrinsic Dimensionality Explains the Effectiveness of Language Model Fine-Tuning", arxiv="2012.13255",
    areas=("transforms", "analysis"), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
