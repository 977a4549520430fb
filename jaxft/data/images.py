"""Pictures from files and arrays as a model of images takes them: red, green and blue, square."""

import os
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxft.checks import in_range
from jaxft.models.pixels import FILTERS, Framing
from jaxft.signatures import explain_errors

# By Pillow's modes: nothing says which number is white.
_ENDLESS = {"I": "integers of 32 bits", "F": "floats"}


@explain_errors
def on_background(
    images: UInt8[np.ndarray, "*batch height width 4"], color: tuple[int, int, int] = (255, 255, 255)
) -> UInt8[np.ndarray, "*batch height width 3"]:
  """Red, green and blue of pictures laid over one color: another color is another view of the same thing.

  >>> on_background(np.array([[[200, 0, 0, 255], [200, 0, 0, 0]]], np.uint8)).tolist()
  [[[200, 0, 0], [255, 255, 255]]]

  Args:
    images: bytes, the last of four channels alpha, such as `emoji`, `clipart` and `avatars` have.
    color: of the background, 0 to 255.
  """
  alpha: Any = images[..., 3:].astype(np.float32) / 255
  laid = images[..., :3] * alpha + np.asarray(color, np.float32) * (1 - alpha)
  return np.rint(laid).astype(np.uint8)


def read_image(image: Any, size: int, framing: Framing | None = None) -> UInt8[np.ndarray, "size size 3"]:
  """A picture as a square: its shorter side is resized to `size` and the middle cut out, if the framing says no other.

  What is transparent becomes white, and what a camera held sideways is turned upright, as its file says.

  >>> read_image(np.zeros((4, 6, 1), np.uint8), 2).shape
  (2, 2, 3)

  Args:
    image: the path of a file of any format that Pillow reads, a picture of Pillow's, or bytes `[height, width, 1, 3 or
      4]`.
    size: of the result's sides.
    framing: None takes `Framing()`. The sides are rounded as transformers and torchvision do it.

  Raises:
    ValueError: the file is none, or no picture, or the array has another shape or dtype, or size is below 1.
    TypeError: it is none of these.
    ImportError: there is no Pillow.
  """
  from PIL import Image, ImageOps  # imported where it is used: data sets of text need none

  in_range("size", size, "[1, inf)")
  framing = framing or Framing()
  if isinstance(image, np.ndarray):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3, 4) or not image.size:
      raise ValueError(f"image must be bytes [height, width, 1, 3 or 4]; got {image.dtype} {list(image.shape)}")
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
  elif isinstance(image, Image.Image):
    picture = image
  elif isinstance(image, (str, os.PathLike)):
    if (problem := image_problem(image)) is not None:
      raise ValueError(problem)
    picture = ImageOps.exif_transpose(Image.open(image))
  else:
    raise TypeError(f"image must be a path, a picture of Pillow's or an array of bytes; got {image!r:.60}")
  pixels = on_background(np.asarray(_eight_bits(picture).convert("RGBA")))
  shorter_side, shortest = framing.shorter_side or size, min(picture.size)
  width, height = (size, size) if framing.stretch else (shorter_side * side // shortest for side in picture.size)
  resized = Image.fromarray(pixels).resize((width, height), FILTERS.index(framing.resample))
  left, top = (width - size) // 2, (height - size) // 2
  return np.asarray(resized.crop((left, top, left + size, top + size)))


def _eight_bits(picture: Any) -> Any:
  """A picture of 16 bits a pixel as one of 8, which Pillow would cut off at 255."""
  if picture.mode in _ENDLESS:
    raise ValueError(f"image must have 8 or 16 bits a channel; got {_ENDLESS[picture.mode]}")
  if not picture.mode.startswith("I;16"):
    return picture
  from PIL import Image

  return Image.fromarray(np.rint(np.asarray(picture).astype(np.float32) / 257).astype(np.uint8))


def image_problem(path: str | os.PathLike) -> str | None:
  """What keeps a path from being that of a picture, by its file's head; None where nothing does.

  >>> image_problem("none.png")
  'image must be a file; there is none at none.png'

  Raises:
    ImportError: there is no Pillow.
  """
  from PIL import Image, UnidentifiedImageError

  if not os.path.isfile(path):
    return f"image must be a file; there is none at {os.fspath(path)}"
  try:
    with Image.open(path) as picture:
      picture.load()
      if picture.mode in _ENDLESS:
        return f"image must have 8 or 16 bits a channel; {os.fspath(path)} has {_ENDLESS[picture.mode]}"
  except UnidentifiedImageError:
    return f"image must be a picture that Pillow reads; {os.fspath(path)} is none"
  except Image.DecompressionBombError as e:
    return f"image must be of a size that Pillow opens; {os.fspath(path)} is not: {e}"
  except (OSError, SyntaxError, ValueError) as e:  # what Pillow's formats raise of broken files
    return f"image must be a whole picture; {os.fspath(path)} is not: {e}"
  return None
