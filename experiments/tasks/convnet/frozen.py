"""What the pretrained ConvNet sees of pictures while its params stay as they are; studies read it once.

    net = load_convnet("efficientnet-lite0")
    pooled(net, pictures, size=56)                       one vector a picture, [n, 1280]
    tokens(net, pictures, size=96)                       one for each place of a grid, a 16th of the sides
    frozen_pass(net, pictures, size=64).states           what enters the last block, for studies that tune it

Pictures are bytes, gray or in color, and resized to squares of `size`. `tasks.picture_features` is the same as
`pooled` for splits of emoji and drawings, kept on disk.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxft.evaluation.embed import embed_images
from jaxft.formats.pretrained import load
from jaxft.models import efficientnet
from jaxft.models.efficientnet import EfficientNetConfig
from jaxft.models.pixels import resize, standardize
from jaxft.signatures import AnyArray

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class ConvNet:
  """The model; one is another than any other, so that what is compiled for it is found again."""

  params: Params
  config: EfficientNetConfig

  @property
  def last(self) -> Params:
    """The pretrained params of the last block."""
    return self.params["blocks"][str(self.config.num_layers - 1)]

  @property
  def dim(self) -> int:
    """Of the features that leave the last block."""
    return self.config.blocks[-1].outputs


class Passed(NamedTuple):
  """What the frozen blocks make of pictures.

  Attributes:
    states: what enters the last block.
    taps: the means over places at the sites that were asked for.
  """

  states: Float[Any, "n rows columns channels"]
  taps: tuple[Float[Any, "n _"], ...]


@cache
def load_convnet(name: str) -> ConvNet:
  """A preset; `:tiny` for smoke runs."""
  model = load(name)
  if not isinstance(model.config, EfficientNetConfig):
    raise ValueError(f"name must be of an EfficientNet; got {name}")
  return ConvNet(model.params, model.config)


@cache
def _reader(
    see: Callable[..., Any], net: ConvNet, size: int, *, clip: bool, **options: Any
) -> Callable[[AnyArray], Any]:
  """From pictures to what `see` takes from them, compiled once."""
  config = net.config

  @jax.jit
  def read(params: Params, images: AnyArray) -> Any:
    x = resize(images, size, clip=clip)
    x = jnp.broadcast_to(x, (*x.shape[:-1], config.channels))
    return see(params, config, standardize(x, mean=config.mean, std=config.std), **options)

  return lambda images: read(net.params, images)


def pooled(
    net: ConvNet, images: UInt8[np.ndarray, "n height width channels"], *, size: int
) -> Float[np.ndarray, "n dim"]:
  """The mean of the last features of each picture."""
  return embed_images(_reader(efficientnet.embed, net, size, clip=True), images)


def tokens(
    net: ConvNet, images: UInt8[np.ndarray, "n height width channels"], *, size: int
) -> Float[np.ndarray, "n places dim"]:
  """The features at each place of the grid, row by row."""
  # The last block before the stride of 32.
  last = max(i for i, block in enumerate(net.config.blocks) if block.stride == 2) - 1
  site = f"blocks/{last}/out"
  grid = embed_images(_reader(_recorded, net, size, clip=True, sites=(site,)), images)[site]
  return grid.reshape(len(grid), -1, grid.shape[-1])


def frozen_pass(
    net: ConvNet, images: UInt8[np.ndarray, "n height width channels"], *, size: int, taps: Sequence[str] = ()
) -> Passed:
  """What the last block and the taps see; values beyond black and white, which a resize makes, are not clipped."""
  cut = f"blocks/{net.config.num_layers - 2}/out"
  read = _reader(_states, net, size, clip=False, cut=cut, taps=tuple(taps))
  return jax.tree.map(jax.device_put, embed_images(read, images))


def _recorded(params: Params, config: EfficientNetConfig, x: Array, *, sites: tuple[str, ...]) -> dict[str, Array]:
  return dict(efficientnet.hidden_states(params, config, x, record=sites)[1])


def _states(params: Params, config: EfficientNetConfig, x: Array, *, cut: str, taps: tuple[str, ...]) -> Passed:
  recorded = _recorded(params, config, x, sites=(cut, *taps))
  return Passed(recorded[cut], tuple(jnp.mean(recorded[site], axis=(1, 2)) for site in taps))
