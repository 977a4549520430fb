"""Tuning the last block of the pretrained ConvNet and a new head, which studies of pictures share.

A picture goes through all blocks before the last one once, and what comes out is kept, so that a step of training is
one inverted bottleneck, forwards and backwards, and yet one of real fine-tuning: `states` are what enters the last
block, `features` the mean over places of what leaves it.

    net = load_convnet("efficientnet-lite0")
    passed = frozen_pass(net, fashion("train", 960).pixels, size=64)
    features(net, net.last, passed.states)    # [960, 320]
"""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from experiments.tasks.convnet.frozen import ConvNet, Params, frozen_pass
from jaxft.data import source
from jaxft.data.class_splits import few_shot
from jaxft.losses import normalize
from jaxft.models import efficientnet
from jaxft.models.linear import linear
from jaxft.models.sites import Replace


@dataclasses.dataclass(frozen=True)
class Settings:
  """What these studies have alike.

  Attributes:
    model: a preset of `load_convnet`.
    image_size: of the squares that the ConvNet reads.
    validation, test: pictures that are held out.
    shots: pictures of training.
    steps, batch_size: of training.
    rates: that an arm chooses from which tunes the last block.
    head_rates: for the head alone, and for small parts that start from scratch.
    seeds, tuning_seeds: of the runs.
  """

  model: str = "efficientnet-lite0"
  image_size: int = 64
  validation: int = 400
  test: int = 1000
  shots: int = 16
  steps: int = 100
  batch_size: int = 32
  rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
  head_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
  seeds: tuple[int, ...] = tuple(range(12))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


# Of smoke runs.
SMALL: dict[str, Any] = {
    "model": "efficientnet-lite0:tiny", "image_size": 16, "batch_size": 8, "seeds": (0, 1), "tuning_seeds": (100,)}


class Pictures(NamedTuple):
  """Pictures as bytes, and their classes."""

  pixels: UInt8[np.ndarray, "n height width 3"]
  labels: Int[np.ndarray, " n"]


@cache
def fashion(split: str, count: int) -> Pictures:
  """The first `count` pictures of a split of Fashion-MNIST, gray in three channels."""
  records = source("fashion-mnist", split).__getitems__(range(count))
  gray = np.stack([r["image"] for r in records])
  return Pictures(np.repeat(gray, 3, axis=-1), np.array([r["label"] for r in records], np.int32))


class Labelled(NamedTuple):
  """Pictures as the last block sees them, as they are and, where they are to train, mirrored, and their classes."""

  states: Float[Array, "n views rows columns channels"]
  labels: Int[Array, " n"]


def passed(net: ConvNet, pictures: Pictures, *, size: int, mirrored: bool) -> Labelled:
  """What is kept of pictures, with or without their mirror images."""
  views = [pictures.pixels, pictures.pixels[:, :, ::-1]][: 1 + mirrored]
  states = [frozen_pass(net, pixels, size=size).states for pixels in views]
  return Labelled(jnp.stack(states, axis=1), jax.device_put(pictures.labels))


def draw_shots(pool: Labelled, shots: int, *, seed: int) -> Labelled:
  """`shots` of each class."""
  rows = few_shot(np.asarray(pool.labels), shots, seed=seed)
  return jax.tree.map(lambda x: x[rows], pool)


def one_view(
    key: Array, states: Float[Array, "n views rows columns channels"]
) -> Float[Array, "n rows columns channels"]:
  """Of each picture itself or its mirror image, drawn."""
  return states[jnp.arange(len(states)), jax.random.randint(key, (len(states),), 0, states.shape[1])]


def features(net: ConvNet, last: Params, states: Float[Array, "n rows columns channels"]) -> Float[Array, "n dim"]:
  """The mean over places of what the last block, with these params, makes of states."""
  index, (rows, columns) = net.config.num_layers - 1, states.shape[1:3]
  params = {**net.params, "blocks": {**net.params["blocks"], str(index): last}}
  # Images that nobody sees: the states take the place of what would be computed from them.
  scale = 2 ** (1 + sum(block.stride == 2 for block in net.config.blocks[:-1]))
  blank = jnp.zeros((len(states), rows * scale, columns * scale, net.config.channels))
  out = f"blocks/{index}/out"
  recorded = efficientnet.hidden_states(
      params, net.config, blank, edits={f"blocks/{index - 1}/out": Replace(states)}, record=(out,))[1]
  return jnp.mean(recorded[out], axis=(1, 2))


def init_head(key: Array, dim: int, classes: int) -> Params:
  """A linear classifier that starts near zero."""
  return {"kernel": 0.01 * jax.random.normal(key, (dim, classes)), "bias": jnp.zeros(classes)}


class Judged(NamedTuple):
  """What a tuned model makes of held-out pictures.

  Attributes:
    right: which are told right, 0 or 1.
    within: the share of the variance of their features that lies within classes.
    drift: one minus the cosine of their features with those of the pretrained model, the mean.
  """

  right: Float[Array, " n"]
  within: Float[Array, ""]
  drift: Float[Array, ""]


def judge(net: ConvNet, params: Params, pictures: Labelled, *, classes: int) -> Judged:
  """The pictures as they are, by a model of a `last` block and a `head`."""
  states = pictures.states[:, 0]
  before, x = features(net, net.last, states), features(net, params["last"], states)
  member = jax.nn.one_hot(pictures.labels, classes)
  means = member.T @ x / jnp.maximum(jnp.sum(member, axis=0), 1)[:, None]
  within = jnp.sum(jnp.square(x - member @ means)) / jnp.sum(jnp.square(x - jnp.mean(x, axis=0)))
  right = jnp.argmax(linear(x, params["head"]), axis=-1) == pictures.labels
  drift = 1 - jnp.mean(jnp.sum(normalize(before) * normalize(x), axis=1))
  return Judged(right.astype(jnp.float32), within, drift)


def fit(
    loss: Callable[[Params, Any, Array], Array], params: Params, data: Any, rows: Int[Array, "steps batch"],
    keys: Array, rate: float | Float[Array, ""],
) -> Params:
  """Adam on a scalar `loss(params, batch, key)`, its rate falling linearly to zero; one step for each row of rows."""
  update = optax.adam(optax.linear_schedule(rate, 0.0, len(rows)))

  def step(carry: Any, at: tuple[Array, Array]) -> tuple[Any, None]:
    params, state = carry
    grads = jax.grad(loss)(params, jax.tree.map(lambda x: x[at[0]], data), at[1])
    updates, state = update.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), None

  return jax.lax.scan(step, (params, update.init(params)), (rows, keys))[0][0]
