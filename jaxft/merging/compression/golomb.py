"""Golomb-Rice coding of sparse signs: gaps between what is kept, within 2% of the entropy where that is random.

Three streams of bits, one after the other: the signs of the kept entries, one bit each; the low b bits of the gaps
before them, b bits each; and the quotients `gap >> b` in unary, as many zeros and a one. Apart, each is coded and
decoded by whole arrays; the length is that of codes in turn.
"""

import math

import numpy as np
from jaxtyping import Int8

from jaxft.signatures import explain_errors

GOLDEN = (math.sqrt(5) + 1) / 2
MAX_BITS = 48  # of b: gaps are shorter


@explain_errors
def rice_parameter(density: float) -> int:
  """The best b for entries kept independently: `max(0, 1 + floor(log2(log(phi - 1) / log(1 - density))))`.

  >>> [rice_parameter(density) for density in (0.5, 0.1, 0.01)]
  [0, 3, 6]

  Args:
    density: share of the entries that are kept, in [0, 1]; at 0 nothing is coded.

  Source: Kiely 2004, Selecting the Golomb Parameter in Rice Coding; used by Sattler et al. 2019 (arXiv 1903.02891).
  """
  if not 0 <= density <= 1:
    raise ValueError(f"density must lie in [0, 1]; got {density}")
  if density in (0, 1):
    return 0
  b = 1 + math.floor(math.log2(math.log(GOLDEN - 1) / math.log1p(-density)))
  return min(max(b, 0), MAX_BITS)


@explain_errors
def golomb_encode(signs: Int8[np.ndarray, " d"], *, b: int | None = None) -> bytes:
  """The code of a vector of -1, 0 and 1; `golomb_decode` also needs d, b and the number of entries kept.

  >>> golomb_encode(np.array([0, 0, 1, 0, -1], np.int8), b=1).hex()
  '96'

  Args:
    signs: the vector.
    b: how many low bits of a gap are written as they are; None takes `rice_parameter` of the density.

  Raises:
    ValueError: signs is not a vector of -1, 0 and 1, or b is out of range.
  """
  signs = np.asarray(signs)
  check_signs(signs)
  kept = np.flatnonzero(signs)
  b = rice_parameter(len(kept) / max(1, signs.size)) if b is None else _check_b(b)
  gaps = np.diff(kept, prepend=-1) - 1
  low = (gaps[:, None] >> np.arange(b) & 1).astype(bool)
  ends = np.cumsum((gaps >> b) + 1)
  unary = np.zeros(ends[-1] if len(ends) else 0, bool)
  unary[ends - 1] = True
  return np.packbits(np.concatenate([signs[kept] > 0, low.ravel(), unary])).tobytes()


@explain_errors
def golomb_decode(data: bytes, size: int, *, b: int, count: int) -> Int8[np.ndarray, " size"]:
  """The vector that was encoded.

  >>> code = golomb_encode(np.array([0, 0, 1, 0, -1], np.int8), b=1)
  >>> golomb_decode(code, 5, b=1, count=2)
  array([ 0,  0,  1,  0, -1], dtype=int8)

  Args:
    data: what `golomb_encode` gave, no longer and no shorter.
    size: d.
    b: as it was encoded.
    count: number of entries that are not 0.

  Raises:
    ValueError: the data are not the code of such a vector.
  """
  _check_b(b)
  if not 0 <= count <= size:
    raise ValueError(f"count must lie in 0..{size}, the number of entries; got {count}")
  bits = np.unpackbits(np.frombuffer(data, np.uint8))
  fixed = count * (1 + b)
  ends = np.flatnonzero(bits[fixed:])
  used = fixed + (int(ends[-1]) + 1 if len(ends) else 0)
  if len(ends) != count or len(bits) < fixed or len(data) != -(-used // 8):
    raise ValueError(f"data of {len(data)} bytes are not the code of {count} entries with b = {b}")
  low = bits[count:fixed].reshape(count, b).astype(np.int64) @ (1 << np.arange(b))
  quotients = np.diff(ends, prepend=-1) - 1
  # Looked at before the shift, which could overflow.
  kept = np.cumsum((quotients << b) + low + 1) - 1 if not count or quotients.max() <= size >> b else [size]
  if count and kept[-1] >= size:
    raise ValueError(f"data reach beyond the {size} entries")
  signs = np.zeros(size, np.int8)
  signs[kept] = bits[:count].astype(np.int8) * 2 - 1
  return signs


@explain_errors
def golomb_bits(signs: Int8[np.ndarray, " d"], *, b: int | None = None) -> int:
  """The length of the code in bits, without making it: `sum over kept entries of (gap >> b) + 1 + b + 1`.

  >>> golomb_bits(np.array([0, 0, 1, 0, -1], np.int8), b=1)
  7
  """
  check_signs(np.asarray(signs))
  kept = np.flatnonzero(signs)
  b = rice_parameter(len(kept) / max(1, np.size(signs))) if b is None else _check_b(b)
  return int(((np.diff(kept, prepend=-1) - 1) >> b).sum() + len(kept) * (b + 2))


def check_signs(signs: np.ndarray) -> None:
  """Raises ValueError where an array is no vector of -1, 0 and 1."""
  integers = np.issubdtype(signs.dtype, np.integer)
  if signs.ndim != 1 or not integers or signs.size and not -1 <= int(signs.min()) <= int(signs.max()) <= 1:
    raise ValueError(f"signs must be a vector of -1, 0 and 1; got shape {signs.shape} of {signs.dtype}")


def _check_b(b: int) -> int:
  if not (isinstance(b, int) and 0 <= b <= MAX_BITS):
    raise ValueError(f"b must be an integer in 0..{MAX_BITS}; got {b!r}")
  return b
