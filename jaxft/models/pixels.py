"""Images on their way into a vision model: resized, cropped, and standardized as the model was trained."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jaxft.checks import one_of
from jaxft.signatures import AnyArray

# Pillow's filters, in the order of its numbers, which files of Hugging Face hold.
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


@dataclasses.dataclass(frozen=True)
class Framing:
  """How a picture of any sides becomes the square that a model reads.

  Attributes:
    shorter_side: what its shorter side is resized to before the middle is cut out; None: the sides of the square.
    stretch: resize both sides to those of the square, and cut nothing off.
    resample: Pillow's filter: "nearest", "lanczos", "bilinear", "bicubic", "box" or "hamming".
  """

  shorter_side: int | None = None
  stretch: bool = False
  resample: str = "bicubic"

  def __post_init__(self):
    one_of("resample", self.resample, FILTERS)
    if self.stretch and self.shorter_side is not None:
      raise ValueError(f"shorter_side must be None where pictures are stretched; got {self.shorter_side}")


def standardize(
    images: Num[AnyArray, "*batch height width channels"], *, mean: Sequence[float], std: Sequence[float],
    dtype: Any = jnp.float32,
) -> Float[Array, "*batch height width channels"]:
  """`(x - mean) / std` per channel, with x in [0, 1].

  >>> standardize(np.full((1, 1, 1, 1), 255, np.uint8), mean=(0.5,), std=(0.25,)).item()
  2.0

  Args:
    images: in [0, 1] where floating, in [0, 255] where integer.
    mean, std: one for each channel, those of the model's config.
    dtype: of the result.

  Raises:
    ValueError: there are not as many means and deviations as channels.
  """
  if not len(mean) == len(std) == images.shape[-1]:
    raise ValueError(f"mean and std must have one entry for each of {images.shape[-1]} channels; got {mean} and {std}")
  x = _unit_range(images)
  return ((x - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)).astype(dtype)


def resize(
    images: Num[AnyArray, "batch height width channels"], size: int, *, method: str = "cubic", clip: bool = True
) -> Float[Array, "batch size size channels"]:
  """Images as squares, stretched where they are none; an integer image's values become floats in [0, 1].

  >>> resize(np.full((2, 4, 6, 3), 255, np.uint8), 8).shape
  (2, 8, 8, 3)

  Args:
    images: in [0, 1] where floating, in [0, 255] where integer.
    size: of the result's sides.
    method: of `jax.image.resize`.
    clip: to [0, 1], as image libraries do: a cubic resize goes beyond black and white beside an edge.

  Raises:
    ValueError: size below 1.
  """
  if size < 1:
    raise ValueError(f"size must be at least 1; got {size}")
  x = jax.image.resize(_unit_range(images), (len(images), size, size, images.shape[-1]), method)
  return jnp.clip(x, 0.0, 1.0) if clip else x


def resize_and_crop(
    image: Num[AnyArray, "height width channels"], size: int, *, crop: float = 0.875, method: str = "cubic"
) -> Float[Array, "size size channels"]:
  """The middle of an image as a square: its shorter side is resized to `size / crop`, then `size` is cut out.

  The evaluation of ImageNet models. Values keep their range, an integer image's become floats in [0, 1].

  >>> resize_and_crop(np.zeros((40, 60, 3), np.uint8), 16).shape
  (16, 16, 3)

  Args:
    image: in [0, 1] where floating, in [0, 255] where integer.
    size: of the result's sides.
    crop: the share of the shorter side that is kept, in (0, 1].
    method: of `jax.image.resize`.

  Raises:
    ValueError: crop outside (0, 1].
  """
  if not 0 < crop <= 1:
    raise ValueError(f"crop must lie in (0, 1]; got {crop}")
  x = _unit_range(image)
  height, width = x.shape[:2]
  scale = round(size / crop) / min(height, width)
  shape = (max(round(height * scale), size), max(round(width * scale), size), x.shape[2])
  x = jax.image.resize(x, shape, method)
  top, left = ((side - size) // 2 for side in shape[:2])
  return jnp.clip(x[top : top + size, left : left + size], 0.0, 1.0)


def _unit_range(images: Any) -> Array:
  """Floats in [0, 1], which integers in [0, 255] become."""
  x = jnp.asarray(images, jnp.float32)
  return x / 255.0 if jnp.issubdtype(images.dtype, jnp.integer) else x
