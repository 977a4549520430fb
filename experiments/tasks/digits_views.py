"""The model that experiments on digits share: an MLP pretrained on some views of 8x8 images and tuned on another.

A view is a fixed map of the pixels: mirrored, turned, inverted. Views of the same images are tasks with one head, so
that checkpoints may be compared and merged, and what is left of the first view after learning a second is forgetting.

Everything from `pretrain` to `accuracy` is a pure function of arrays, so that one compiled program serves all seeds:

    base = jax.jit(jax.vmap(lambda key: pretrain(key, seen(images, "upright", "turned"), steps=500)))(keys)
    tune = lambda key, params: finetune(key, params, seen(images, "mirrored"), steps=200)
    tuned = jax.jit(jax.vmap(tune))(keys, base)
    jax.vmap(lambda params: accuracy(params, seen(held_out, "mirrored")))(tuned)
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxft.data import source
from jaxft.leaves import materialize
from jaxft.models.linear import linear
from jaxft.transforms import ParamTransform, full

Params = dict[str, Any]

VIEWS: dict[str, Callable[[Float[Array, "n 8 8"]], Float[Array, "n 8 8"]]] = {
    "upright": lambda x: x,
    "mirrored": lambda x: x[:, :, ::-1],
    "flipped": lambda x: x[:, ::-1, :],
    "turned": lambda x: jnp.rot90(x, 1, axes=(1, 2)),
    "turned twice": lambda x: jnp.rot90(x, 2, axes=(1, 2)),
    "turned back": lambda x: jnp.rot90(x, 3, axes=(1, 2)),
    "transposed": lambda x: jnp.swapaxes(x, 1, 2),
    "inverted": lambda x: 1.0 - x,
}


class Images(NamedTuple):
  """Images and their digits."""

  pixels: Float[Array, "n 8 8"]
  digits: Int[Array, " n"]


# (join: trainable -> params, trainable, batch, key of this step) -> gradient like trainable
Gradient = Callable[[Callable[[Any], Params], Any, Images, Array], Any]

FULL = full()


@cache
def load_images(split: str, *, limit: int | None = None) -> Images:
  """A split of the digits, upright; the first `limit` of them."""
  records = source("digits", split)
  rows = records.__getitems__(range(len(records) if limit is None else min(limit, len(records))))
  pixels = np.stack([r["image"][..., 0] for r in rows])
  return Images(jnp.asarray(pixels), jnp.array([r["label"] for r in rows], jnp.int32))


def seen(images: Images, *views: str) -> Images:
  """The images in each of the views, one after the other."""
  return Images(jnp.concatenate([VIEWS[v](images.pixels) for v in views]), jnp.tile(images.digits, len(views)))


def few_shot(key: Array, images: Images, shots: int) -> Images:
  """`shots` images of each digit, drawn by the key."""
  order = jax.random.permutation(key, len(images.digits))
  digits = images.digits[order]
  first = lambda digit: order[jnp.argsort(digits != digit, stable=True)[:shots]]
  rows = jax.vmap(first)(jnp.arange(10)).ravel()
  return jax.tree.map(lambda x: x[rows], images)


def init(key: Array, widths: Sequence[int] = (256, 256)) -> Params:
  """Random params of an MLP from 64 pixels to 10 digits with layers of the given widths between."""
  sizes = (64, *widths, 10)
  names = [f"hidden_{i}" for i in range(len(widths))] + ["head"]
  matrices = [jax.nn.initializers.he_normal()(k, (m, n))
              for k, (m, n) in zip(jax.random.split(key, len(names)), pairwise(sizes), strict=True)]
  return {name: {"kernel": w, "bias": jnp.zeros(w.shape[1])} for name, w in zip(names, matrices, strict=True)}


def logits(params: Params, pixels: Float[Array, "n 8 8"]) -> Float[Array, "n 10"]:
  """The MLP, with rectifiers."""
  x = pixels.reshape(-1, 64)
  for i in range(len(params) - 1):
    x = jax.nn.relu(linear(x, params[f"hidden_{i}"]))
  return linear(x, params["head"])


def loss(params: Params, images: Images) -> Float[Array, " n"]:
  """Cross-entropy of each image."""
  return optax.softmax_cross_entropy_with_integer_labels(logits(params, images.pixels), images.digits)


def accuracy(params: Params, images: Images) -> Float[Array, ""]:
  """The share of digits that are told right."""
  return jnp.mean(jnp.argmax(logits(params, images.pixels), axis=-1) == images.digits)


def task_gradient(join: Callable[[Any], Params], trainable: Any, batch: Images, key: Array) -> Any:
  """The gradient of the mean cross-entropy."""
  del key
  return jax.grad(lambda trainable: jnp.mean(loss(join(trainable), batch)))(trainable)


def fit(
    key: Array, params: Params, images: Images, *, steps: int, rate: Float[Array, ""] | float = 1e-3,
    batch_size: int = 32, transform: ParamTransform = FULL, gradient: Gradient = task_gradient,
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation] = optax.adam,
) -> tuple[Any, Any]:
  """Trains from `params`; returns what the transform left frozen and what it trained.

  Args:
    key: of the batches and, apart from them, of the transform and the gradient: arms with one key see the same batches.
    params: where training starts.
    images: rows of a batch are drawn from them with repetition.
    steps: of training.
    rate: peak learning rate, the first; it decays linearly to zero. It may be traced.
    batch_size: images in a step.
    transform: what trains.
    gradient: another loss, or another use of its gradient; see `Gradient`.
    optimizer: of a schedule.
  """
  of_batches, of_transform, of_gradient = jax.random.split(key, 3)
  frozen, trainable = transform.split(of_transform, params)
  update = optimizer(optax.linear_schedule(rate, 0.0, steps))

  def step(carry: Any, keys: tuple[Array, Array]) -> tuple[Any, None]:
    trainable, state = carry
    rows = jax.random.randint(keys[0], (batch_size,), 0, len(images.digits))
    batch = jax.tree.map(lambda x: x[rows], images)
    grads = gradient(lambda t: transform.join(frozen, t), trainable, batch, keys[1])
    updates, state = update.update(grads, state, trainable)
    return (optax.apply_updates(trainable, updates), state), None

  keys = jax.random.split(of_batches, steps), jax.random.split(of_gradient, steps)
  return frozen, jax.lax.scan(step, (trainable, update.init(trainable)), keys)[0][0]


def finetune(
    key: Array, params: Params, images: Images, *, transform: ParamTransform = FULL, **options: Any
) -> Params:
  """As `fit`, but returns the plain tuned params."""
  return materialize(transform.join(*fit(key, params, images, transform=transform, **options)))


def pretrain(key: Array, images: Images, *, widths: Sequence[int] = (256, 256), **options: Any) -> Params:
  """Params trained from a random start drawn by the key; options as for `fit`."""
  of_init, of_fit = jax.random.split(key)
  return finetune(of_fit, init(of_init, widths), images, **options)
