"""Sums whose order is written down, so that NumPy, XLA, and any sharding give the same bits.

    fold(x) = fold(x[:h] + x[h:]),   h half the length rounded up (the odd one out is carried over),   fold([x]) = x

over each block of the flattened entries, the last one padded with zeros if it is not the only one, and then over the
sums of the blocks. Pairwise, so that the error grows with the logarithm of the length.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxft.merging.kernels.blocks import BLOCK, blocks
from jaxft.merging.kernels.namespace import ArrayLike, is_numpy, namespace


def tree_sums(
    f: Callable[..., Sequence[ArrayLike]], arrays: Sequence[ArrayLike | None], *, rows: bool = False
) -> list[ArrayLike]:
  """The sums of several functions of a leaf, in one pass over it.

  Args:
    f: `(start, *blocks) -> float32 arrays`, each of the shape of a block.
    arrays: of one shape; None stays None.
    rows: one sum for each row, `[..., 1]`, rather than one for all entries.
  """
  first = next(x for x in arrays if x is not None)
  if is_numpy(first) and not rows:
    sums = [fold(_padded(np.stack(f(start, *xs)), start))[:, 0] for start, xs in blocks(arrays)]
    return list(fold(np.stack(sums, axis=-1))[:, 0])
  parts = [f(start, *xs) for start, xs in blocks(arrays, rows=rows)]
  if rows:
    xp, shape = namespace(first), (*first.shape[:-1], 1)
    in_rows = lambda x: fold(x.reshape(-1, first.shape[-1]))
    return [xp.concatenate([in_rows(x) for x in column]).reshape(shape) for column in zip(*parts, strict=True)]
  return [fold(_block_sums(x.reshape(-1))) for x in parts[0]]


def counts(
    f: Callable[..., Sequence[ArrayLike]], arrays: Sequence[ArrayLike | None], *, rows: bool = False
) -> list[ArrayLike]:
  """How often each of several conditions holds in a leaf, int32 in JAX.

  Args:
    f: `(start, *blocks) -> booleans`, each of the shape of a block.
    arrays: of one shape; None stays None.
    rows: whether blocks must hold whole rows.
  """
  parts = [f(start, *xs) for start, xs in blocks(arrays, rows=rows)]
  if is_numpy(parts[0][0]):
    return [np.int64(sum(np.count_nonzero(x) for x in column)) for column in zip(*parts, strict=True)]
  return [namespace(x).sum(x, dtype=np.int32) for x in parts[0]]


def fold(x: ArrayLike) -> ArrayLike:
  """The sum over the last axis, halved again and again; a number for a vector, `[rows, 1]` for rows."""
  keep, x = x.ndim > 1, x.reshape(-1, x.shape[-1])
  length, copied = x.shape[-1], False
  while length > 1:
    half = (length + 1) // 2
    if not is_numpy(x):
      upper = x[:, half:] if length % 2 == 0 else namespace(x).pad(x[:, half:], ((0, 0), (0, 1)))
      x = x[:, :half] + upper
    elif not copied:
      rest, x, copied = x[:, half:], x[:, :half].copy(), True
      x[:, :length - half] += rest
    else:
      x[:, :length - half] += x[:, half:length]
    length = half
  return x[:, :1] if keep else x[0, 0]


def _padded(x: np.ndarray, start: int) -> np.ndarray:
  """A block that is not the first, at its full length."""
  missing = BLOCK - x.shape[-1]
  return np.pad(x, ((0, 0), (0, missing))) if start and missing else x


def _block_sums(x: ArrayLike) -> ArrayLike:
  """`[blocks]`: what `fold` gives of each block of a flat array."""
  if x.shape[0] <= BLOCK:
    return fold(x)[None]
  xp = namespace(x)
  count = -(-x.shape[0] // BLOCK)
  return fold(xp.pad(x, (0, count * BLOCK - x.shape[0])).reshape(count, BLOCK))[:, 0]
