"""PNG files of one size from pictures in any format, for what TFDS stores as images."""

import io
from typing import IO

import numpy as np


def square_png(picture: bytes | IO[bytes], size: int, *, trim: bool = False) -> bytes:
  """A picture as a PNG of `size` x `size` pixels with red, green, blue and alpha, in the middle, its shape kept.

  Args:
    picture: a file of any format that Pillow reads.
    size: of the sides, in pixels.
    trim: cut off first what is transparent around it.

  Raises:
    ImportError: there is no Pillow.
  """
  image = _pillow().open(io.BytesIO(picture) if isinstance(picture, bytes) else picture).convert("RGBA")
  if trim:
    image = image.crop(image.getchannel("A").getbbox())
  if image.size == (size, size):
    square = image
  else:
    width, height = (max(1, round(side * size / max(image.size))) for side in image.size)
    square = _pillow().new("RGBA", (size, size))
    fitted = image.resize((width, height), _pillow().Resampling.LANCZOS)
    square.paste(fitted, ((size - width) // 2, (size - height) // 2))
  out = io.BytesIO()
  square.save(out, "PNG")
  return out.getvalue()


def is_blank(png: bytes) -> bool:
  """Whether a PNG has one color alone, or nothing that is not transparent."""
  pixels = np.asarray(_pillow().open(io.BytesIO(png)).convert("RGBA"))
  seen = pixels[pixels[..., 3] > 0]
  return not len(seen) or bool((pixels == pixels[0, 0]).all())


def _pillow():
  try:
    from PIL import Image
  except ImportError:
    raise ImportError("a data set of images needs Pillow: pip install 'jaxft[experiments]'") from None
  return Image
