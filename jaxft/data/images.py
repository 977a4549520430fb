"""Pictures with an alpha channel as pictures without."""

from typing import Any

import numpy as np
from jaxtyping import UInt8


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
