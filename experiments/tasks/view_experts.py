"""Experts that studies on digits share: an MLP that reads some views, tuned on each of others, for each seed.

The base learns from the even rows of the training images and its experts from the odd ones. An expert that sees its
own view alone forgets the others so far that an average of four keeps half of what they gained; one that sees all
views alike gains less and the average keeps everything. `Recipe.own` is the dial between them.

    experts = Experts(Recipe())
    base, tuned = experts(0)
    experts.right(merging.average(tuned), "validation")    # [views, images], of 0 and 1
"""

import dataclasses
from collections.abc import Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.tasks.digits_views import Images, Params, finetune, load_images, logits, pretrain, seen


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a base and its experts are made.

  Attributes:
    seen: views that the base reads.
    views: one expert each.
    own: how often an expert sees its own view for each time that it sees one of the others; 0: its own alone.
    base_steps, base_rate: of the base's training.
    steps, rate: of an expert's.
  """

  seen: tuple[str, ...] = ("upright", "turned")
  views: tuple[str, ...] = ("mirrored", "flipped", "transposed", "inverted")
  own: int = 3
  base_steps: int = 600
  base_rate: float = 2e-3
  steps: int = 200
  rate: float = 1e-3


def rows(images: Images, start: int) -> Images:
  """Every second image."""
  return Images(images.pixels[start::2], images.digits[start::2])


class Experts:
  """The base and the experts of each seed, made once."""

  def __init__(self, recipe: Recipe):
    images = load_images("train")
    self.recipe, self.of_base, self.of_experts = recipe, rows(images, 0), rows(images, 1)
    self._pretrain = jax.jit(lambda key: pretrain(
        key, seen(self.of_base, *recipe.seen), steps=recipe.base_steps, rate=recipe.base_rate))
    self._tune = jax.jit(lambda key, params, images: finetune(
        key, params, images, steps=recipe.steps, rate=recipe.rate))
    self._right = jax.jit(lambda params, images: jnp.argmax(logits(params, images.pixels), axis=-1) == images.digits)
    self._held = cache(lambda split, view: seen(load_images(split), view))
    self._made = cache(self._make)

  def __call__(self, seed: int) -> tuple[Params, list[Params]]:
    """The base of a seed and an expert for each view, on the host, where NumPy merges small trees fastest."""
    return self._made(seed)

  def _make(self, seed: int) -> tuple[Params, list[Params]]:
    key = jax.random.key(seed)
    base = self._pretrain(key)
    tuned = [self._tune(jax.random.fold_in(key, i), base, self.training(view))
             for i, view in enumerate(self.recipe.views)]
    return jax.device_get((base, tuned))

  def training(self, view: str) -> Images:
    """What the expert of a view sees."""
    own = self.recipe.own
    others = [other for other in self.recipe.views if other != view] if own else []
    return seen(self.of_experts, *[view] * max(own, 1), *others)

  def right(self, params: Params, split: str, *views: str) -> Float[np.ndarray, "views images"]:
    """Which images are told right in each view, those of the experts where none are named."""
    told = [self._right(params, self._held(split, view)) for view in views or self.recipe.views]
    return np.stack(told).astype(np.float64)

  def own(self, models: Sequence[Params], split: str) -> Float[np.ndarray, "views images"]:
    """As `right`, of one model for each view."""
    return np.stack([self.right(m, split, view)[0] for m, view in zip(models, self.recipe.views, strict=True)])

  def share_of_gain(
      self, seed: int, split: str, right: Float[np.ndarray, "views images"]
  ) -> Float[np.ndarray, " items"]:
    """What is kept of the experts' gains over the base: an item each image and view, whose mean is the share.

    The share of a view is that of the gain of its own expert on the same images; views count alike.
    """
    base, tuned = self(seed)
    start = self.right(base, split)
    gain = (self.own(tuned, split) - start).mean(axis=1, keepdims=True)
    return ((right - start) / gain).ravel()
