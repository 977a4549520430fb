"""The pretrained ImageNet ConvNet that studies of pictures share: its last block and a new head are tuned.

A picture goes through all blocks before the last one once, and what comes out is kept, so that a step of training is
one inverted bottleneck, forwards and backwards, and yet one of real fine-tuning: `states` are what enters the last
block, `features` the mean over places of what leaves it.

    net = load_convnet("efficientnet-lite0")
    passed = frozen_pass(net, fashion("train", 960).pixels, size=64)
    features(net, net.last, passed.states)    # [960, 320]
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from jaxft.data import source
from jaxft.data.class_splits import few_shot
from jaxft.formats.pretrained import load
from jaxft.losses import normalize
from jaxft.models import efficientnet
from jaxft.models.efficientnet import EfficientNetConfig
from jaxft.models.linear import linear
from jaxft.models.pixels import standardize
from jaxft.models.sites import Replace

Params = dict[str, Any]
BATCH = 64  # of the pass that is not trained


class ConvNet(NamedTuple):
  """The model."""

  params: Params
  config: EfficientNetConfig

  @property
  def last(self) -> Params:
    """The pretrained params of the last block."""
    return self.params["blocks"][str(self.config.num_layers - 1)]

  @property
  def dim(self) -> int:
    """Of the features."""
    return self.config.blocks[-1].outputs


class Pictures(NamedTuple):
  """Pictures as bytes, and their classes."""

  pixels: UInt8[np.ndarray, "n height width 3"]
  labels: Int[np.ndarray, " n"]


class Passed(NamedTuple):
  """What the frozen blocks make of pictures.

  Attributes:
    states: what enters the last block.
    taps: the means over places at the sites that were asked for.
  """

  states: Float[Array, "n rows columns channels"]
  taps: tuple[Float[Array, "n _"], ...]


@cache
def load_convnet(name: str) -> ConvNet:
  """A preset; `:tiny` for smoke runs."""
  model = load(name)
  assert isinstance(model.config, EfficientNetConfig)
  return ConvNet(model.params, model.config)


@cache
def fashion(split: str, count: int) -> Pictures:
  """The first `count` pictures of a split of Fashion-MNIST, gray in three channels."""
  records = source("fashion-mnist", split).__getitems__(range(count))
  gray = np.stack([r["image"] for r in records])
  return Pictures(np.repeat(gray, 3, axis=-1), np.array([r["label"] for r in records], np.int32))


def frozen_pass(
    net: ConvNet, pixels: UInt8[np.ndarray, "n height width 3"], *, size: int, taps: Sequence[str] = ()
) -> Passed:
  """Pictures, resized to squares of `size`, as the last block and the taps see them."""
  run = jax.jit(partial(_frozen, net.config, size, tuple(taps)))
  parts = []
  for start in range(0, len(pixels), BATCH):
    batch = pixels[start : start + BATCH]
    filled = np.zeros((BATCH, *pixels.shape[1:]), np.uint8)  # one program for the rest as well
    filled[: len(batch)] = batch
    parts.append(jax.tree.map(np.asarray, run(net.params, filled)))
  return jax.tree.map(lambda *x: jax.device_put(np.concatenate(x)[: len(pixels)]), *parts)


def _frozen(config: EfficientNetConfig, size: int, taps: tuple[str, ...], params: Params, pixels: Array) -> Passed:
  x = standardize(pixels, mean=config.mean, std=config.std)
  x = jax.image.resize(x, (len(x), size, size, 3), "cubic")
  cut = f"blocks/{config.num_layers - 2}/out"
  recorded = efficientnet.hidden_states(params, config, x, record=(cut, *taps))[1]
  return Passed(recorded[cut], tuple(jnp.mean(recorded[site], axis=(1, 2)) for site in taps))


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


def batches(seed: int, size: int, *, steps: int, batch_size: int) -> Int[np.ndarray, "steps batch"]:
  """Rows of each step's batch: in every pass over the data each row is met once, in a new order."""
  rng = np.random.default_rng(seed)
  passes = -(-steps * batch_size // size)
  return np.concatenate([rng.permutation(size) for _ in range(passes)])[: steps * batch_size].reshape(steps, batch_size)


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
