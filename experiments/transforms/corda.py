"""CorDA: do components that a context orients keep more of it than other starts of LoRA, and learn faster?

    jaxft run corda            six minutes on one core
    jaxft run corda --smoke    seconds

A network of six residual layers that reads 8x8 digits in three views learns flipped ones by a head of its own
(`tasks/labelings.py`); outside of that task lies the reading of digits in the old views. All arms train factors of one
rank on both matrices of all layers, and differ in where these start:

    LoRA                             a at random, b at zero
    PiSSA                            at the leading components of the plain SVD
    CorDA preserved                  at the smallest components, oriented by images of the old views
    smallest, oriented by scale      by the magnitude of each input alone, as ASVD does
    smallest, no context             of the plain SVD
    LoRA, PiSSA, CorDA previewed with few steps: the last at the leading components, oriented by the task's images

The scale of the update is 1, as the paper's. Rates are chosen by the task. A seed draws the base, the head, the images
that orient, LoRA's start and the batches. `through` is the share of the outputs that old views have in a matrix, by
energy, that passes through the components at the start: what the paper wants small for what is to be kept.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.tasks.digits_views import load_images, seen
from experiments.tasks.labelings import TASKS, Recipe, Trunks, learn, logits, of_task
from experiments.tasks.view_experts import rows
from jaxft.analysis import scaled_svd
from jaxft.leaves import materialize
from jaxft.studies.study import Arm, Claim, Front, Premise, Score, Study, higher, not_lower
from jaxft.transforms import ParamTransform, chain, corda, input_covariances, lora, pissa
from jaxft.transforms.low_rank.inits import uniform_then_zero


@dataclasses.dataclass(frozen=True)
class Config:
  recipe: Recipe = Recipe()
  task: str = "flipped digits"
  rank: int = 8
  context: int = 256  # images that orient
  steps: int = 150
  few: int = 15
  rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
  few_rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2, 1e-1)
  seeds: tuple[int, ...] = tuple(range(20))
  tuning_seeds: tuple[int, ...] = (100, 101, 102, 103)


SMOKE = Config(
    recipe=Recipe(layers=2, dim=16, base_steps=30), rank=2, context=8, steps=10, few=4, rates=(1e-2, 3e-2),
    few_rates=(1e-2, 3e-2), seeds=(0, 1), tuning_seeds=(100,))

MATRICES, KINDS = "layers/**/kernel", ("up", "down")
LORA, PISSA, METHOD, BY_SCALE, MINOR = (
    "LoRA", "PiSSA", "CorDA preserved", "smallest, oriented by scale", "smallest, no context")
FEW = FEW_LORA, FEW_PISSA, PREVIEW = "LoRA, few steps", "PiSSA, few steps", "CorDA previewed, few steps"


def smallest_by_scale(key: Array, w: Any, rank: int, scale: float, statistic: Any) -> tuple[Array, Array, Array]:
  """An init of `lora`: the smallest components by ASVD; an input's magnitude is its root mean square."""
  del key
  magnitude = jnp.sqrt(jnp.diag(statistic) / jnp.max(jnp.diag(statistic)))
  inputs, s, outputs = scaled_svd(w, jnp.sqrt(magnitude) + 1e-6)
  root = jnp.sqrt(s[-rank:] / scale)
  a, b = inputs[:, -rank:] * root, root[:, None] * outputs[-rank:]
  return w - scale * a @ b, a, b


# What starts the factors, and what orients them: images of the old views, of the task, or nothing.
PRESERVE = corda("preserve")
STARTS = {
    LORA: (uniform_then_zero, None), PISSA: (pissa, None), METHOD: (PRESERVE, "old"),
    BY_SCALE: (smallest_by_scale, "old"), MINOR: (PRESERVE, "isotropic"),
    FEW_LORA: (uniform_then_zero, None), FEW_PISSA: (pissa, None), PREVIEW: (corda("preview"), "task")}


def through(w: Any, a: Array, b: Array, covariance: Any) -> Float[Array, " layers"]:
  """Of the outputs of a matrix for inputs of a covariance the share that the factors give, by energy."""
  energy = lambda w: jnp.einsum("lmn,lmk,lkn->l", w, covariance, w)
  return energy(a @ b) / energy(w)


class World:
  """Bases, and their tunings from each start."""

  def __init__(self, config: Config):
    self.config, self.trunks = config, Trunks(config.recipe)
    self._task = of_task(self.trunks.of_tasks, TASKS[config.task])
    self._old = seen(rows(load_images("train"), 0), *config.recipe.views)
    self._covariances = jax.jit(lambda params, pixels: input_covariances(
        lambda params: logits(params, params["head"]["kernel"], pixels), params, MATRICES, by_example=True))
    self._split, self._through = jax.jit(self._split_one, static_argnums=(0, 1)), jax.jit(through)
    self._learn = jax.jit(self._tune, static_argnames="steps")
    self.started = cache(self._started)

  def transforms(self, init: Any, statistics: Any = None) -> list[ParamTransform]:
    """Factors whose product is the update, of each kind of matrix."""
    rank = self.config.rank
    return [lora(f"layers/{kind}/kernel", rank=rank, alpha=float(rank), init=init, statistics=statistics)
            for kind in KINDS]

  def _split_one(self, init: Any, kind: int, key: Array, params: Any, statistics: Any) -> tuple[Any, Any]:
    return self.transforms(init, statistics)[kind].split(key, params)

  def _started(self, init: Any, orients: str | None, seed: int) -> tuple[Any, Any, float]:
    """Both sides of a start, and what of the old views passes through its factors."""
    base, rng = self.trunks.base(seed), np.random.default_rng(seed)
    draw = lambda images: images.pixels[rng.choice(len(images.digits), self.config.context, replace=False)]
    of = {name: self._covariances(base, draw(images)) for name, images in (("old", self._old), ("task", self._task))}
    of["isotropic"] = jax.tree.map(lambda c: jnp.broadcast_to(jnp.eye(c.shape[-1]), c.shape), of["old"])
    frozen, factors, shares = base, [], []
    for i, kind in enumerate(KINDS):
      key = jax.random.fold_in(jax.random.key(seed), 1000 + i)
      # One kind at a time: on two cores XLA may wait for ever where one program solves two stacks of equations at once.
      frozen, trainable = jax.block_until_ready(self._split(init, i, key, frozen, of.get(orients)))
      factors.append(trainable)
      shares.append(self._through(
          base["layers"][kind]["kernel"], **trainable["layers"][kind]["kernel"],
          covariance=of["old"]["layers"][kind]["kernel"]))
    return frozen, tuple(factors), float(jnp.mean(jnp.concatenate(shares)))

  def _tune(self, key: Array, frozen: Any, trainable: Any, head: Array, rate: Any, *, steps: int) -> Any:
    join = chain(*self.transforms(uniform_then_zero)).join  # the same for all starts
    return materialize(join(frozen, learn(key, join, frozen, trainable, head, self._task, steps=steps, rate=rate)))

  def run(self, arm: str, rate: float, seed: int, split: str) -> dict[str, Any]:
    """The scores of a tuning from an arm's start."""
    c, head = self.config, self.trunks.head(seed, self.config.task)
    frozen, trainable, share = self.started(*STARTS[arm], seed)
    key, steps = jax.random.fold_in(jax.random.key(seed), 1000 + len(KINDS)), c.few if arm in FEW else c.steps
    return self.scores(self._learn(key, frozen, trainable, head, rate, steps=steps), seed, split) | {"through": share}

  def start(self, rate: None, seed: int, split: str) -> dict[str, Any]:
    return self.scores(self.trunks.base(seed), seed, split) | {"through": 0.0}

  def scores(self, params: Any, seed: int, split: str) -> dict[str, Any]:
    return {"task": self.trunks.right(seed, params, split, self.config.task),
            "outside": self.trunks.right_before(params, split).ravel()}


def arms(config: Config) -> dict[str, Arm]:
  """The base, and tunings that differ in their starts."""
  world = World(config)
  rates = lambda arm: config.few_rates if arm in FEW else config.rates
  return {"base": Arm(world.start)} | {arm: Arm(partial(world.run, arm), rates(arm)) for arm in STARTS}


STUDY = Study(
    slug="corda", arxiv="2406.05223",
    title="CorDA: Context-Oriented Decomposition Adaptation of Large Language Models for Task-Aware PEFT",
    question="keep old skills", use_when="there are inputs of what is to be kept, and an adapter forgets it",
    setting="six residual layers that read digits in three views, tuned on flipped ones by a head of their own",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("task", "accuracy on flipped digits"),
        Score("outside", "accuracy of digits in the old views"),
        Score("through", "share of the old views' outputs that passes through the factors at the start",
              higher_is_better=False)),
    choose_by="task", baseline=LORA, method=METHOD, start="base", kept="outside",
    premises=(
        Premise("LoRA learns the task", lambda s: s[LORA].task - s["base"].task, at_least=0.3),
        Premise("LoRA loses outside of it", lambda s: s["base"].outside - s[LORA].outside, at_least=0.1),
        Premise("the context orders components otherwise: through the smallest of the plain SVD passes more, times",
                lambda s: s[MINOR].through / s[METHOD].through, at_least=2.0)),
    claims=(
        Claim("preserved CorDA keeps more outside than LoRA", higher("outside"), smallest=0.02),
        Claim("more than the smallest components by ASVD", higher("outside", than=BY_SCALE), smallest=0.02),
        Claim("it learns the task no worse than LoRA", not_lower("task"), smallest=0.01),
        Claim("previewed CorDA learns more than LoRA in few steps", higher("task", PREVIEW, FEW_LORA),
              smallest=0.02)),
    plot=Front("outside", "task"))
