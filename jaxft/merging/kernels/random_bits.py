"""Random numbers that depend on a seed, a leaf's path, a model's index and an entry's position, and on nothing else.

A counter-based generator: `bits(stream, position) = mix(position * stream[0] + stream[1])` on 32-bit integers, where
`mix` is an invertible hash of two multiplications and two shifts (the constants of C. Wellons' `lowbias32`, 2018,
public domain), of which the upper 24 bits are taken. NumPy and JAX compute the same, block by block or sharded. It is
for dropping entries of weights, not for cryptography.
"""

import zlib

import numpy as np

from jaxft.merging.kernels.blocks import positions
from jaxft.merging.kernels.namespace import ArrayLike, is_numpy

# Probabilities are compared as integers: a multiple of 2**-24 is exact in float32.
ONE = 1 << 24


def stream(seed: int, path: str, model: int, layer: int = 0) -> np.ndarray:
  """`uint32[2]`: the generator of one leaf of one model.

  Args:
    seed: any integer.
    path: of the leaf, without its layer where layers share one path.
    model: index among the models.
    layer: the layer's index.
  """
  words = np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, zlib.crc32(path.encode()), model, layer], np.uint32)
  state = np.array([0x243F6A88, 0x85A308D3], np.uint32)
  for word in words:
    state = _mix(state ^ word) * np.array([0x9E3779B1, 0x85EBCA77], np.uint32) + np.uint32(0x3C6EF372)
  state = _mix(state)
  return (state ^ state >> np.uint32(16)) | np.array([1, 0], np.uint32)  # an odd factor permutes the positions


def random_integers(stream: ArrayLike, start: int, x: ArrayLike) -> ArrayLike:
  """Integers uniform in [0, 2**24), uint32, one for each entry of a block.

  Args:
    stream: `uint32[2]`, as from `stream`.
    start: flat index of the block in its leaf.
    x: the block; only its shape and kind are read.
  """
  if is_numpy(x):
    first = np.uint32((start * int(stream[0]) + int(stream[1])) & 0xFFFFFFFF)
    numbers = positions(0, x) * stream[0]
    numbers += first
  else:
    numbers = positions(start, x) * stream[0] + stream[1]
  return _mix(numbers) >> np.uint32(8)


def _mix(x: ArrayLike) -> ArrayLike:
  """A hash of each number, in its upper bits. NumPy arrays are written over: fresh memory would double the time."""
  spare = np.empty_like(x) if is_numpy(x) else None
  for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
    x ^= x >> np.uint32(shift) if spare is None else np.right_shift(x, np.uint32(shift), out=spare)
    x *= np.uint32(factor)
  return x


def probability(p: float) -> int:
  """The integer threshold of a probability: an integer below it is drawn with the nearest multiple of 2**-24 to p."""
  return round(p * ONE)
