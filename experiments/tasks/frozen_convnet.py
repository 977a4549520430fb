"""What the pretrained ConvNet sees of pictures: its features, which studies read once and leave as they are.

EfficientNet-Lite0, pretrained on ImageNet, is a stem that does not train: `pooled` has one vector a picture, `tokens`
one for each place of a grid, a 16th of the picture's sides.
"""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxft.formats.pretrained import load
from jaxft.models import efficientnet
from jaxft.models.efficientnet import EfficientNetConfig
from jaxft.models.pixels import standardize
from jaxft.signatures import AnyArray

BATCH = 100


@cache
def reader(model: str, size: int, *, grid: bool = False) -> Callable[[AnyArray], Array]:
  """From pictures of bytes, gray or in color, to features; `model` is a preset, `size` what their sides become."""
  loaded = load(model)
  config = loaded.config
  if not isinstance(config, EfficientNetConfig):
    raise ValueError(f"model must be an EfficientNet; got {model}")
  # The last block before the stride of 32.
  last = max(i for i, block in enumerate(config.blocks) if block.stride == 2) - 1

  @jax.jit
  def read(images: AnyArray) -> Array:
    x = jax.image.resize(images.astype(jnp.float32) / 255, (len(images), size, size, images.shape[-1]), "cubic")
    x = jnp.broadcast_to(jnp.clip(x, 0.0, 1.0), (*x.shape[:-1], config.channels))
    x = standardize(x, mean=config.mean, std=config.std)
    if not grid:
      return efficientnet.embed(loaded.params, config, x)
    _, seen = efficientnet.hidden_states(loaded.params, config, x, record=(f"blocks/{last}/out",))
    return seen[f"blocks/{last}/out"].reshape(len(x), -1, config.blocks[last].outputs)

  return read


def pooled(images: UInt8[np.ndarray, "n height width channels"], *, model: str, size: int) -> Float[np.ndarray, "n d"]:
  """The mean of the last features of each picture."""
  return _read(reader(model, size), images)


def tokens(
    images: UInt8[np.ndarray, "n height width channels"], *, model: str, size: int
) -> Float[np.ndarray, "n places d"]:
  """The features at each place of the grid, row by row."""
  return _read(reader(model, size, grid=True), images)


def _read(read: Callable[[AnyArray], Array], images: np.ndarray) -> np.ndarray:
  """In batches of one shape, the last one padded by the first picture."""
  count = -len(images) % min(BATCH, len(images))
  padded = np.concatenate([images, np.repeat(images[:1], count, axis=0)])
  batch = min(BATCH, len(images))
  return np.concatenate([np.asarray(read(padded[i : i + batch])) for i in range(0, len(padded), batch)])[: len(images)]
