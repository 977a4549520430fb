"""Pictures from files and arrays as a model of images takes them: red, green and blue, square."""

import os
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxft.signatures import explain_errors


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


def read_image(image: str | os.PathLike | np.ndarray, size: int) -> UInt8[np.ndarray, "size size 3"]:
  """The middle of a picture as a square: its shorter side is resized to `size`, what is transparent is white.

  >>> read_image(np.zeros((4, 6, 1), np.uint8), 2).shape
  (2, 2, 3)

  Args:
    image: the path of a file of any format that Pillow reads, or bytes `[height, width, 1, 3 or 4]`.
    size: of the result's sides.

  Raises:
    ValueError: the file is none, or no picture, or the array has another shape or dtype.
    ImportError: there is no Pillow.
  """
  from PIL import Image  # imported where it is used: data sets of text need none

  if isinstance(image, np.ndarray):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3, 4):
      raise ValueError(f"image must be bytes [height, width, 1, 3 or 4]; got {image.dtype} {list(image.shape)}")
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
  else:
    if (problem := image_problem(image)) is not None:
      raise ValueError(problem)
    picture = Image.open(image)
  pixels = on_background(np.asarray(picture.convert("RGBA")))
  scale = size / min(picture.size)
  width, height = (max(size, round(side * scale)) for side in picture.size)
  resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
  left, top = (width - size) // 2, (height - size) // 2
  return np.asarray(resized.crop((left, top, left + size, top + size)))


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
  except UnidentifiedImageError:
    return f"image must be a picture that Pillow reads; {os.fspath(path)} is none"
  except (OSError, SyntaxError, ValueError) as e:  # what Pillow's formats raise of broken files
    return f"image must be a whole picture; {os.fspath(path)} is not: {e}"
  return None
