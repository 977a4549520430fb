"""Intrinsic dimension: does pretraining lower the number of dimensions in which a task can be learned?

    jaxft run intrinsic-dimension            a quarter of an hour on one core
    jaxft run intrinsic-dimension --smoke    seconds

The task is to read mirrored digits, by an MLP that was pretrained on six other views, for all or a hundredth of the
steps, or not at all. Pretraining and task take the even and the odd half of the training images, so that no image is
seen twice. Training moves the weights, head included, in a random subspace of d dimensions, by Fastfood or by a dense
Gaussian, for d = 16 and its doublings. d90 is the smallest d, between those measured linear in log d, at which accuracy
is nine tenths of what full fine-tuning from the same start reaches; twice the largest where none does. Smaller
subspaces lie in the larger ones: their vectors are the first entries. Where a curve ends near nine tenths, a few items
decide over an octave, and the intervals, which leave out one item at a time, are wide.

Mirrored strokes are strokes that pretraining has seen elsewhere. Inverted digits, bright where all of pretraining was
dark, are the control: a task that has little to do with it.

A seed draws the pretrained weights, the projections and the batches, the same for all arms. Of an arm two rates are
chosen: that of d = 64, which others follow as `(64 / d)^0.75`, and that of full fine-tuning.
"""

import dataclasses
import math
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from experiments.tasks.digits_views import Images, Params, finetune, init, load_images, logits, pretrain, seen
from jaxft.analysis import intrinsic_dimension
from jaxft.leaves import materialize
from jaxft.studies.study import Arm, Bars, Claim, Contrast, Premise, Score, Study, lower
from jaxft.transforms import ParamTransform, dense_projection, random_subspace

SMALLEST = 16  # dimensions


@dataclasses.dataclass(frozen=True)
class Config:
  widths: tuple[int, ...] = (64, 64)
  base_views: tuple[str, ...] = ("upright", "flipped", "turned", "turned twice", "turned back", "transposed")
  view: str = "mirrored"
  far_view: str = "inverted"
  base_steps: int = 4000
  short_base_steps: int = 40
  base_rate: float = 2e-3
  steps: int = 300
  batch_size: int = 32
  subspaces: int = 5  # of 16, 32, ... dimensions
  rates: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8)
  full_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
  seeds: tuple[int, ...] = tuple(range(16))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    widths=(12,), base_steps=20, short_base_steps=2, steps=3, subspaces=2, rates=(0.05, 0.1), full_rates=(1e-3, 3e-3),
    seeds=(0, 1), tuning_seeds=(100,))

# How long the start was pretrained, the projection, and whether the view is the far one.
PRETRAINED, SHORT, RANDOM = "pretrained", "a hundredth of the pretraining", "random init"
ARMS = {
    **{start: (start, "fastfood", False) for start in (RANDOM, SHORT, PRETRAINED)},
    **{f"{start}, dense": (start, "dense", False) for start in (RANDOM, PRETRAINED)},
    **{f"{start}, far view": (start, "fastfood", True) for start in (RANDOM, PRETRAINED)},
}


def projections(key: Array, params: Params, dim: int, kind: str) -> Params:
  """The matrices of a `random_subspace`, `[*shape, dim]` for each tensor of the params.

  Its first d columns are a subspace of d dimensions. Drawing them again in every step, as the transform does to save
  memory, would cost a tiny model most of its time.
  """
  transform = random_subspace(dim, projection=dense_projection) if kind == "dense" else random_subspace(dim)
  frozen, trainable = transform.split(key, jax.tree.map(jnp.zeros_like, params))
  return jax.jacfwd(lambda vector: materialize(transform.join(frozen, {"vector": vector})))(trainable["vector"])


def within(matrices: Params) -> ParamTransform:
  """Training in the subspace that the matrices span."""
  dim = jax.tree.leaves(matrices)[0].shape[-1]
  move = lambda params, vector: jax.tree.map(lambda w, p: w + p @ vector, params, matrices)
  return ParamTransform(lambda key, params: (params, jnp.zeros(dim)), move)


def log2_d90(rows: Float[np.ndarray, "items columns"]) -> float:
  """Of what is told right after full fine-tuning and in each subspace."""
  full, *by_d = rows.mean(0).tolist()
  scores = {SMALLEST << i: score for i, score in enumerate(by_d)}
  return math.log2(intrinsic_dimension(scores, full, interpolate=True) or 2 * max(scores))


def right(params: Params, images: Images) -> Bool[Array, " n"]:
  """Which images are told right."""
  return jnp.argmax(logits(params, images.pixels), axis=-1) == images.digits


class World:
  """The starts of each seed, and what was learned from them; each is made once."""

  def __init__(self, config: Config):
    self.config = c = config
    train = load_images("train")
    even, odd = (jax.tree.map(lambda x: x[first::2], train) for first in (0, 1))
    self._task = {far: seen(odd, c.far_view if far else c.view) for far in (False, True)}
    pretrained = jax.jit(partial(
        pretrain, images=seen(even, *c.base_views), widths=c.widths, batch_size=c.batch_size, rate=c.base_rate),
        static_argnames="steps")
    self._starts = {
        # Where pretraining begins.
        RANDOM: lambda key: init(jax.random.split(key)[0], c.widths),
        SHORT: partial(pretrained, steps=c.short_base_steps), PRETRAINED: partial(pretrained, steps=c.base_steps)}
    options = {"steps": c.steps, "batch_size": c.batch_size}
    self._tune = jax.jit(lambda key, params, images, rate: finetune(key, params, images, rate=rate, **options))
    self._tune_within = jax.jit(lambda key, params, images, rate, matrices: finetune(
        key, params, images, rate=rate, transform=within(matrices), **options))
    self._projections = jax.jit(projections, static_argnames=("dim", "kind"))
    self._right = jax.jit(right)
    self.start, self.full, self.curve = cache(self._start), cache(self._full), cache(self._curve)

  def _start(self, start: str, seed: int) -> Params:
    return self._starts[start](jax.random.key(seed))

  def _full(self, start: str, far: bool, rate: float, seed: int) -> Params:
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return self._tune(key, self.start(start, seed), self._task[far], rate)

  def _curve(self, start: str, kind: str, far: bool, rate: float, seed: int) -> list[Params]:
    """Learned in each subspace, the smallest first."""
    key, params = jax.random.fold_in(jax.random.key(seed), 1), self.start(start, seed)
    dims = [SMALLEST << i for i in range(self.config.subspaces)]
    matrices = self._projections(jax.random.fold_in(key, 1), params, dims[-1], kind)
    part = lambda d: jax.tree.map(lambda p: p[..., :d], matrices)
    return [self._tune_within(key, params, self._task[far], rate * (64 / d) ** 0.75, part(d)) for d in dims]

  def run(self, arm: str, rates: dict[str, float], seed: int, split: str) -> dict[str, Any]:
    """Full fine-tuning, and all subspaces of an arm."""
    start, kind, far = ARMS[arm]
    c, held = self.config, load_images(split)
    view = seen(held, c.far_view if far else c.view)
    tuned = [self.full(start, far, rates["full"], seed), *self.curve(start, kind, far, rates["subspace"], seed)]
    rows = np.stack([self._right(params, view) for params in tuned], axis=1)
    before = self.start(start, seed)
    base = np.mean([self._right(before, seen(held, v)) for v in c.base_views], axis=0)
    return {
        "d90": rows, "accuracy": rows.mean(1), "full": rows[:, 0], "before": self._right(before, view), "base": base}


def arms(config: Config) -> dict[str, Arm]:
  """Starts and projections, on the near and the far view."""
  world, rates = World(config), {"subspace": config.rates, "full": config.full_rates}
  return {arm: Arm(partial(world.run, arm), rates) for arm in ARMS}


def fall(s: Any, suffix: str) -> np.ndarray:
  """By how many octaves pretraining lowers d90."""
  return s[RANDOM + suffix].d90 - s[PRETRAINED + suffix].d90


STUDY = Study(
    slug="intrinsic-dimension",
    title="Intrinsic Dimensionality Explains the Effectiveness of Language Model Fine-Tuning", arxiv="2012.13255",
    question="little memory", use_when="a pretrained model is near its task, and hundreds of numbers may train",
    setting="an MLP of 64-64-64-10, pretrained on six views of digits, learns mirrored ones in 16 to 256 dimensions",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("d90", "log2 of the dimensions that reach nine tenths of full fine-tuning's accuracy", of=log2_d90,
              higher_is_better=False),
        Score("accuracy", "mean accuracy of full fine-tuning and all subspaces"),
        Score("full", "accuracy of full fine-tuning"),
        Score("before", "accuracy before"),
        Score("base", "accuracy before on the views of pretraining")),
    choose_by="accuracy", baseline=RANDOM, method=PRETRAINED,
    premises=(
        Premise("pretraining learned its own views", lambda s: s[PRETRAINED].base, at_least=0.85),
        Premise("full fine-tuning learns the task from a random init", lambda s: s[RANDOM].full, at_least=0.8),
        Premise("the largest subspace has octaves to spare for every arm",
                lambda s: 4 + 4 - max(s[arm].d90 for arm in ARMS), at_least=0.1)),
    claims=(
        Claim("pretraining lowers d90, in octaves", lower("d90"), smallest=0.25),
        Claim("it does so by dense projections", lower("d90", f"{PRETRAINED}, dense", f"{RANDOM}, dense"),
              smallest=0.25),
        Claim("a hundredth of it lowers d90 less", lower("d90", PRETRAINED, SHORT), smallest=0.25),
        Claim("it lowers d90 of the near view more than of the far one",
              Contrast(lambda s, study: fall(s, "") - fall(s, ", far view"), "higher"), smallest=0.25)),
    plot=Bars("d90"))
