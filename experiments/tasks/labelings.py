"""The model that experiments on depth share: six residual layers that read 8x8 digits, tuned to label them otherwise.

The base reads the ten digits in three views. A task is a view and a rule that makes labels of digits, read by a random
head of its own that never trains, as the text heads of CLIP do not; embedding and the base's head stay too, so that a
tuning moves the layers alone. The base learns from the even rows of the training images and the tasks from the odd.

    trunks = Trunks(Recipe())
    base, tuned = trunks.base(0), trunks.tuned(0, "parity and half")
    trunks.right(0, tuned, "validation", "parity and half")    # [images], of 0 and 1
"""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.tasks.digits_views import Images, load_images, seen
from experiments.tasks.view_experts import rows
from jaxft.leaves import materialize
from jaxft.models.linear import linear
from jaxft.models.norms import rms_norm
from jaxft.transforms import ParamTransform, full, train

Params = dict[str, Any]
LABELS = 10


class Task(NamedTuple):
  """A view, and what is told of a digit in it."""

  view: str
  label: Callable[[Int[Array, " n"]], Int[Array, " n"]]


TASKS = {
    "parity and half": Task("upright", lambda digit: digit % 2 * 2 + digit // 5),
    "flipped digits": Task("flipped", lambda digit: digit),
    "transposed, in pairs": Task("transposed", lambda digit: digit // 2),
    "turned, modulo three": Task("turned", lambda digit: digit % 3),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a base and its tunings are made."""

  views: tuple[str, ...] = ("upright", "turned", "mirrored")
  layers: int = 6
  dim: int = 96
  base_steps: int = 1200
  base_rate: float = 2e-3
  steps: int = 150
  rate: float = 3e-3


def init(key: Array, recipe: Recipe) -> Params:
  """Random params, layers stacked."""
  keys = jax.random.split(key, 4)
  dense = lambda key, *shape: {"kernel": jax.random.normal(key, shape) * shape[-2] ** -0.5}
  dim, layers = recipe.dim, recipe.layers
  down = dense(keys[2], layers, 2 * dim, dim)["kernel"] * 0.3
  return {"embed": dense(keys[0], 64, dim), "layers": {"up": dense(keys[1], layers, dim, 2 * dim),
          "down": {"kernel": down}}, "head": dense(keys[3], dim, LABELS)}


def logits(params: Params, head: Float[Array, "dim labels"], pixels: Float[Array, "n 8 8"]) -> Float[Array, "n labels"]:
  """Norm, up, GELU, down, added to the stream in each layer."""
  norm = partial(rms_norm, params={"scale": jnp.ones(head.shape[0])}, eps=1e-6)

  def layer(x: Array, params: Params) -> tuple[Array, None]:
    return x + linear(jax.nn.gelu(linear(norm(x), params["up"])), params["down"]), None

  x, _ = jax.lax.scan(layer, pixels.reshape(-1, 64) @ params["embed"]["kernel"], params["layers"])
  return norm(x) @ head


def learn(
    key: Array, join: Callable[[Any, Any], Params], frozen: Any, trainable: Any,
    head: Float[Array, "dim labels"] | None, images: Images, *, steps: int, rate: Float[Array, ""] | float,
) -> Any:
  """What a transform trains, after Adam, read by `head`, or by the params' own where it is None."""
  optimizer = optax.adam(optax.linear_schedule(rate, 0.0, steps))

  def loss(trainable: Any, batch: Images) -> Array:
    params = join(frozen, trainable)
    read = params["head"]["kernel"] if head is None else head
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits(params, read, batch.pixels), batch.digits))

  def step(carry: Any, key: Array) -> tuple[Any, None]:
    trainable, state = carry
    drawn = jax.random.randint(key, (32,), 0, len(images.digits))
    updates, state = optimizer.update(jax.grad(loss)(trainable, jax.tree.map(lambda x: x[drawn], images)), state)
    return (optax.apply_updates(trainable, updates), state), None

  return jax.lax.scan(step, (trainable, optimizer.init(trainable)), jax.random.split(key, steps))[0][0]


def fit(
    key: Array, params: Params, transform: ParamTransform, head: Float[Array, "dim labels"] | None, images: Images,
    **options: Any,
) -> Params:
  """As `learn`, from params to plain params."""
  of_split, of_batches = jax.random.split(key)
  frozen, trainable = transform.split(of_split, params)
  learnt = learn(of_batches, transform.join, frozen, trainable, head, images, **options)
  return materialize(transform.join(frozen, learnt))


def of_task(images: Images, task: Task) -> Images:
  """The images as a task shows and labels them."""
  return Images(seen(images, task.view).pixels, task.label(images.digits))


class Trunks:
  """The base of each seed and its tunings, made once, on the host, where NumPy adds small trees fastest."""

  def __init__(self, recipe: Recipe):
    images = load_images("train")
    self.recipe, self.of_tasks = recipe, rows(images, 1)
    of_base = seen(rows(images, 0), *recipe.views)

    @jax.jit
    def pretrain(key: Array) -> Params:
      of_init, of_fit = jax.random.split(key)
      params = init(of_init, recipe)
      return fit(of_fit, params, full(), None, of_base, steps=recipe.base_steps, rate=recipe.base_rate)

    @jax.jit
    def tune(key: Array, params: Params, head: Array, images: Images) -> Params:
      return fit(key, params, train("layers/**"), head, images, steps=recipe.steps, rate=recipe.rate)

    self._right = jax.jit(lambda params, head, images: (
        jnp.argmax(logits(params, head, images.pixels), axis=-1) == images.digits))
    self._held = cache(lambda split, task: of_task(load_images(split), TASKS[task]))
    self._views = cache(lambda split: seen(load_images(split), *recipe.views))
    key = lambda seed, task: jax.random.fold_in(jax.random.key(seed), 1 + list(TASKS).index(task))
    self.base = cache(lambda seed: jax.device_get(pretrain(jax.random.key(seed))))
    self.head = cache(lambda seed, task: jax.random.normal(key(seed, task), (recipe.dim, LABELS)) * recipe.dim**-0.5)
    self.tuned = cache(lambda seed, task: jax.device_get(tune(
        key(seed, task), self.base(seed), self.head(seed, task), of_task(self.of_tasks, TASKS[task]))))

  def right(self, seed: int, params: Params, split: str, task: str) -> Float[np.ndarray, " images"]:
    """Which images are labelled right in a task."""
    told = self._right(params, self.head(seed, task), self._held(split, task))
    return np.asarray(told, np.float64)

  def right_before(self, params: Params, split: str) -> Float[np.ndarray, "views images"]:
    """Which digits are told right in the base's views, by its own head."""
    told = self._right(params, params["head"]["kernel"], self._views(split))
    return np.asarray(told, np.float64).reshape(len(self.recipe.views), -1)
