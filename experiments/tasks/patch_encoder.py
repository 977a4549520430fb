"""An encoder of 8x8 digits that studies of depth and modules share: jaxft's own, over four patches in place of tokens.

The base reads ten digits in some views, by the head `old`. A task is learnt by the head `new`, which is zero at the
start: digits in a new view, or in the old ones by another code for each. The base learns from the even rows of the
training images and the task from the odd.

    digits = Digits(Recipe())
    base = digits.base(0)
    digits.right(base, "validation")["old"]    # [images], in the mean over the base's views
"""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.tasks.digits_views import Images, load_images, seen
from experiments.tasks.view_experts import rows
from jaxft.models import encoder
from jaxft.models.linear import linear
from jaxft.models.sites import Edits, Replace
from jaxft.tree import unstack_layers

Params = dict[str, Any]
LABELS = 10


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The encoder, how its base is made, and the task that it learns then."""

  views: tuple[str, ...] = ("upright", "turned", "mirrored")
  task: str = "inverted"
  dim: int = 32
  layers: int = 4
  heads: int = 4
  base_steps: int = 1000
  base_rate: float = 3e-3
  steps: int = 150
  batch_size: int = 32


def of_task(images: Images, recipe: Recipe) -> Images:
  """The images as the task shows and labels them: in a view of its own, or "coded"."""
  if recipe.task != "coded":
    return seen(images, recipe.task)
  images, n = seen(images, *recipe.views), len(images.digits)
  return images._replace(digits=(images.digits + 3 * (jnp.arange(len(images.digits)) // n)) % LABELS)


def shape(recipe: Recipe) -> encoder.EncoderConfig:
  return encoder.EncoderConfig(
      vocab_size=1, dim=recipe.dim, num_layers=recipe.layers, num_heads=recipe.heads, mlp_dim=2 * recipe.dim,
      max_length=4, normalize=False)


def init(key: Array, recipe: Recipe) -> Params:
  """The encoder, a map of 4x4 patches, and the heads."""
  of_encoder, of_patches, of_head = jax.random.split(key, 3)
  dense = lambda key, m, n: {"kernel": jax.random.normal(key, (m, n)) * m**-0.5}
  params = encoder.init(of_encoder, shape(recipe), stddev=recipe.dim**-0.5)
  params["embed"]["patches"] = dense(of_patches, 16, recipe.dim)
  return params | {"old": dense(of_head, recipe.dim, LABELS), "new": {"kernel": jnp.zeros((recipe.dim, LABELS))}}


def logits(
    params: Params, recipe: Recipe, pixels: Float[Array, "n 8 8"], head: str, edits: Edits | None = None
) -> Float[Array, "n labels"]:
  """What a head tells, of the mean over the patches."""
  patches = pixels.reshape(-1, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 4, 16)
  if not any(name[0].isdigit() for name in params["layers"]):
    params = unstack_layers(params)  # small layers: a loop over them takes longer than what is in it
  x = encoder.embed(params, shape(recipe), jnp.zeros(patches.shape[:2], jnp.int32), remat="none", edits={
      **(edits or {}), "embed": Replace(linear(patches, params["embed"]["patches"]))})
  return linear(x, params[head])


def loss(params: Params, recipe: Recipe, images: Images, head: str) -> Float[Array, " n"]:
  """Cross-entropy of each image."""
  z = logits(params, recipe, images.pixels, head)
  return optax.softmax_cross_entropy_with_integer_labels(z, images.digits)


def fit(
    optimizer: optax.GradientTransformation, value: Callable[[Any, Images], Array], start: Any, images: Images,
    rows: Int[Array, "steps batch"],
) -> Any:
  """What trains, after a step on each row of image numbers."""

  def step(carry: Any, row: Int[Array, " batch"]) -> tuple[Any, None]:
    trained, state = carry
    gradient = jax.grad(value)(trained, jax.tree.map(lambda x: x[row], images))
    updates, state = optimizer.update(gradient, state, trained)
    return (optax.apply_updates(trained, updates), state), None

  return jax.lax.scan(step, (start, optimizer.init(start)), rows)[0][0]


class Digits:
  """The base of each seed, the images of the task, and what a tuned model tells right."""

  def __init__(self, recipe: Recipe):
    images = load_images("train")
    self.recipe = recipe
    self.of_base, self.of_task = seen(rows(images, 0), *recipe.views), of_task(rows(images, 1), recipe)

    @jax.jit
    def pretrain(key: Array, images: Images, rows: Int[Array, "steps batch"]) -> Params:
      optimizer = optax.adam(optax.linear_schedule(recipe.base_rate, 0.0, recipe.base_steps))
      return fit(optimizer, lambda params, batch: jnp.mean(loss(params, recipe, batch, "old")), init(key, recipe),
                 images, rows)

    self.base = cache(lambda seed: pretrain(
        jax.random.key(seed), self.of_base, self._rows(self.of_base, recipe.base_steps, seed)))
    self._tell = jax.jit(partial(self._told, recipe))
    self._held = cache(lambda split: {
        "new": of_task(load_images(split), recipe), "old": seen(load_images(split), *recipe.views)})

  @staticmethod
  def _told(recipe: Recipe, params: Params, held: dict[str, Images]) -> dict[str, Array]:
    return {head: jnp.argmax(logits(params, recipe, images.pixels, head), axis=-1) == images.digits
            for head, images in held.items()}

  def _rows(self, images: Images, steps: int, seed: int) -> Int[np.ndarray, "steps batch"]:
    return np.random.default_rng(seed).integers(0, len(images.digits), (steps, self.recipe.batch_size))

  def batches(self, seed: int) -> Int[np.ndarray, "steps batch"]:
    """Rows of the task's images."""
    return self._rows(self.of_task, self.recipe.steps, seed)

  def right(self, params: Params, split: str) -> dict[str, Float[np.ndarray, " images"]]:
    """Which images are told right in the task and in the old views, in the mean over the views that an image has."""
    n = len(load_images(split).digits)
    told = self._tell(params, self._held(split))
    return {head: np.asarray(right, np.float64).reshape(-1, n).mean(0) for head, right in told.items()}
