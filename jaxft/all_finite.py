"""NaN and infinity in NumPy's arrays: found in one or two passes, without a copy. Imports no JAX."""

import math

import numpy as np

# Of the formats of two bytes, the bits of +infinity: NaN and infinity are the integers from there on, and, as unsigned
# ones, from those of -infinity on.
_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80}
_NEGATIVE = 0x8000


def all_finite(x: np.ndarray) -> bool:
  """Whether an array of floating point holds neither NaN nor infinity.

  >>> all_finite(np.float32([1, -2])), all_finite(np.float32([1, np.nan]))
  (True, False)
  """
  if not x.size:
    return True
  if (infinity := _INFINITY.get(x.dtype.name)) is not None:
    return bool(x.view(np.int16).max() < infinity and x.view(np.uint16).max() < infinity + _NEGATIVE)
  # NaN and infinity make the sum so; where it overflows of itself, the entries are looked at one by one.
  if x.dtype in (np.float32, np.float64) and math.isfinite(np.einsum("i->", x.ravel(order="K"))):
    return True
  return count_not_finite(x) == 0


def count_not_finite(x: np.ndarray) -> int:
  """How many entries are NaN or infinite.

  >>> count_not_finite(np.float32([1, np.nan, np.inf]))
  2
  """
  return int(x.size - np.count_nonzero(np.isfinite(x)))
