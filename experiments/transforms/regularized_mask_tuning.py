"""R-AMT: does gradient dropout by agreement keep more of what a model knew while masks teach it a new domain?

    jaxft run regularized-mask-tuning            seven minutes on one core
    jaxft run regularized-mask-tuning --smoke    seconds

An MLP that reads upright digits, from one half of the training images, is adapted to mirrored ones with a few images of
the other half by deleting weights of its hidden layers: a score for each, thresholded straight through. The regularizer
drops coordinates of the task's gradient at random where a second gradient, of staying with the pretrained predictions,
objects; lambda is the share of a dropped coordinate that is lost. Batches are small and images shift by up to a pixel,
so that signs of gradients change from step to step and few weights go.

A smaller learning rate keeps more of the old domain as well, at the new one's cost. What decides is therefore the mean
of both accuracies, in which a test image counts upright and mirrored, and each arm has the rate at which its own is
highest. Controls: full fine-tuning, and dropout by the second gradient with rows and columns of each matrix permuted,
which knows nothing of an entry. A seed draws the base model, the few images, the batches and what is dropped.
"""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from experiments.tasks.digits_views import (
  Gradient,
  Images,
  Params,
  few_shot,
  fit,
  load_images,
  logits,
  loss,
  pretrain,
  seen,
)
from jaxft.leaves import materialize
from jaxft.losses import sum_of_norms
from jaxft.optimizers import agreement_dropout
from jaxft.studies.study import Arm, Claim, Front, Premise, Score, Study, higher, not_lower
from jaxft.transforms import ParamTransform, binary_mask, full, masked_fraction


@dataclasses.dataclass(frozen=True)
class Config:
  widths: tuple[int, ...] = (256, 256)
  base_steps: int = 500
  steps: int = 200
  batch_size: int = 16
  shots: int = 16
  norm_weight: float = 1e-4
  mask_rates: tuple[float, ...] = (7e-5, 1e-4, 1.4e-4, 2e-4, 2.8e-4)
  full_rates: tuple[float, ...] = (2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3)
  seeds: tuple[int, ...] = tuple(range(24))
  tuning_seeds: tuple[int, ...] = (100, 101, 102, 103)


SMOKE = Config(
    widths=(16,), base_steps=20, steps=4, batch_size=4, mask_rates=(1e-2, 2e-2), full_rates=(1e-3, 3e-3), seeds=(0, 1),
    tuning_seeds=(100,))

FULL, PLAIN, WEAK, METHOD, PERMUTED = (
    "full", "masks, lambda 0", "masks, lambda 0.3", "masks, lambda 1", "masks, lambda 1, permuted")
STRENGTHS = {PLAIN: 0.0, WEAK: 0.3, METHOD: 1.0, PERMUTED: 1.0}


def shifted(key: Array, images: Images) -> Images:
  """Each image moved by up to one pixel along both axes; a border that leaves comes in at the other side."""
  moves = jax.random.randint(key, (len(images.digits), 2), -1, 2)
  return images._replace(pixels=jax.vmap(lambda x, by: jnp.roll(x, by, axis=(0, 1)))(images.pixels, moves))


def full_gradient(join: Callable[[Any], Params], trainable: Any, batch: Images, key: Array) -> Any:
  """Of the cross-entropy on shifted images."""
  batch = shifted(key, batch)
  return jax.grad(lambda t: jnp.mean(loss(join(t), batch)))(trainable)


def gated_gradient(base: Params, strength: float, norm_weight: float, *, permuted: bool) -> Gradient:
  """Of the cross-entropy and the scores' norms, gated by that of the divergence from the base model's predictions."""

  def gradient(join: Callable[[Any], Params], scores: Any, batch: Images, key: Array) -> Any:
    of_shift, of_dropout, of_order = jax.random.split(key, 3)
    batch = shifted(of_shift, batch)
    before = jax.nn.softmax(logits(base, batch.pixels))

    def losses(scores: Any) -> tuple[Array, Array]:
      z = logits(join(scores), batch.pixels)
      task = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z, batch.digits))
      return task + norm_weight * sum_of_norms(scores), jnp.mean(optax.softmax_cross_entropy(z, before))

    # One forward pass, pulled back twice.
    _, pull = jax.vjp(losses, scores)
    (task,), (knowledge,) = pull((jnp.ones(()), jnp.zeros(()))), pull((jnp.zeros(()), jnp.ones(())))
    if permuted:
      of_rows, of_columns = jax.random.split(of_order)
      order = lambda x: jax.random.permutation(of_columns, jax.random.permutation(of_rows, x), axis=1)
      knowledge = jax.tree.map(order, knowledge)
    return agreement_dropout(of_dropout, task, knowledge, strength=strength)

  return gradient


def adapt(
    config: Config, arm: str, key: Array, base: Params, images: Images, rate: Float[Array, ""]
) -> tuple[Params, Float[Array, ""]]:
  """The params after training by masks or in full, and the share of the hidden layers' weights that was deleted."""
  of_shots, of_fit = jax.random.split(key)
  images = few_shot(of_shots, images, config.shots)
  transform: ParamTransform = full()
  gradient = full_gradient
  if arm != FULL:
    transform = binary_mask("hidden_*/kernel")
    gradient = gated_gradient(base, STRENGTHS[arm], config.norm_weight, permuted=arm == PERMUTED)
  frozen, trained = fit(of_fit, base, images, steps=config.steps, rate=rate, batch_size=config.batch_size,
                        transform=transform, gradient=gradient)
  return materialize(transform.join(frozen, trained)), jnp.zeros(()) if arm == FULL else masked_fraction(trained)


def right(params: Params, images: Images) -> Bool[Array, " n"]:
  """Which images are told right."""
  return jnp.argmax(logits(params, images.pixels), axis=-1) == images.digits


class World:
  """Images, and the base model of each seed."""

  def __init__(self, config: Config):
    train = load_images("train")
    # Even rows are the base model's, odd ones the new domain's.
    even, odd = (jax.tree.map(lambda x: x[first::2], train) for first in (0, 1))
    self.odd = seen(odd, "mirrored")
    read = jax.jit(lambda seed: pretrain(jax.random.key(seed), even, widths=config.widths, steps=config.base_steps))
    self.base = cache(read)
    self._adapt = jax.jit(partial(adapt, config), static_argnums=0)
    self._right = jax.jit(right)

  def start(self, rate: None, seed: int, split: str) -> dict[str, np.ndarray]:
    """The base model."""
    return self._scores(self.base(seed), 0.0, split)

  def tuned(self, arm: str, rate: float, seed: int, split: str) -> dict[str, np.ndarray]:
    """Adapted by one arm."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    params, deleted = self._adapt(arm, key, self.base(seed), self.odd, rate)
    return self._scores(params, float(deleted), split)

  def _scores(self, params: Params, deleted: float, split: str) -> dict[str, np.ndarray]:
    held = load_images(split)
    new, old = (np.asarray(self._right(params, seen(held, view)), np.float64) for view in ("mirrored", "upright"))
    return {"both": (new + old) / 2, "new": new, "old": old, "deleted": np.float64(deleted)}


def arms(config: Config) -> dict[str, Arm]:
  """The base model, full fine-tuning, and masks."""
  world = World(config)
  return {
      "start": Arm(world.start), FULL: Arm(partial(world.tuned, FULL), config.full_rates),
      **{arm: Arm(partial(world.tuned, arm), config.mask_rates) for arm in STRENGTHS}}


STUDY = Study(
    slug="regularized-mask-tuning",
    title="Regularized Mask Tuning: Uncovering Hidden Knowledge in Pre-trained Vision-Language Models",
    arxiv="2307.15049", question="keep old skills",
    use_when="a few images of a new domain are learned by deleting weights, one bit each, and the old domain must stay",
    setting="an MLP of 64-256-256-10 that reads upright digits learns mirrored ones from 16 images of each",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("both", "accuracy on upright and mirrored digits, the mean"),
        Score("new", "accuracy on mirrored digits"),
        Score("old", "accuracy on upright digits"),
        Score("deleted", "share of the hidden layers' weights that is deleted", higher_is_better=False)),
    choose_by="both", baseline=PLAIN, method=METHOD, start="start", best=FULL, kept="old",
    premises=(
        Premise("masks learn the new domain", lambda s: s[PLAIN].new - s["start"].new, at_least=0.1),
        Premise("masks forget the old domain", lambda s: s["start"].old - s[PLAIN].old, at_least=0.05)),
    claims=(
        Claim("gradient dropout has the higher mean of both domains", higher("both"), smallest=0.01),
        Claim("it keeps more of the old domain", higher("old"), smallest=0.01),
        Claim("its new domain is not lower", not_lower("new"), smallest=0.01),
        Claim("it has a higher mean than dropout by a permuted gradient", higher("both", METHOD, PERMUTED),
              smallest=0.01)),
    plot=Front("old", "new"))
