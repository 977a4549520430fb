"""A leaf in pieces: NumPy goes through it block by block, in cache; JAX takes it whole and leaves that to the compiler.

A *function of a block*, `f(start, *blocks) -> array`, is elementwise, or row-wise where blocks hold whole rows; `start`
is the flat index of a block's first entry, for what depends on the position. It gives the same for a leaf in one piece
and in many, which is why one function serves the streaming engine and the sharded arrays. A row runs along the last
axis. A leaf has at least one axis here: a number is a vector of one.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from jaxft.merging.kernels.namespace import ArrayLike, is_numpy

# 256 KiB of float32: a few temporaries stay in the second-level cache, and a call of NumPy costs little beside what it
# does. Sums depend on it: see `reductions`.
BLOCK = 1 << 16


class LeafMerge(NamedTuple):
  """A merge of one leaf, once what it needs of the whole leaf is known.

  Attributes:
    combine: `(start, models, base) -> float32`, a function of a block of each model and of the base (or None).
    rows: whether blocks must hold whole rows.
    carries: whether an entry of a model that is not finite leaves one of the result that is not.
  """

  combine: Callable[[int, Sequence[ArrayLike], ArrayLike | None], ArrayLike]
  rows: bool = False
  carries: bool = False


def blocks(arrays: Sequence[ArrayLike | None], *, rows: bool = False) -> Iterator[tuple[int, list[Any]]]:
  """The pieces of arrays of one shape, in order: `(flat index of the first entry, pieces)`.

  Args:
    arrays: of one shape; None stays None.
    rows: NumPy's pieces are `[some, length of the last axis]`, of at least one row, rather than flat.
  """
  first = next(x for x in arrays if x is not None)
  if not is_numpy(first):
    yield 0, list(arrays)
    return
  if first.size >= 1 << 32:
    raise ValueError(f"a leaf must have fewer than 2**32 entries; got {first.shape}")
  width = first.shape[-1] if rows else 1
  step = max(BLOCK // max(width, 1), 1)
  pieces = [x if x is None else x.reshape(-1, width) if rows else x.reshape(-1) for x in arrays]
  for start in range(0, first.size // max(width, 1), step):
    yield start * width, [x if x is None else x[start:start + step] for x in pieces]


def positions(start: int, x: ArrayLike) -> ArrayLike:
  """The flat index of each entry of a block in its leaf, uint32."""
  if is_numpy(x):
    flat = _range(x.size).reshape(x.shape)
    return flat + np.uint32(start) if start else flat
  import jax

  flat, stride = 0, 1
  for axis in reversed(range(x.ndim)):
    flat = flat + jax.lax.broadcasted_iota(np.uint32, x.shape, axis) * np.uint32(stride)
    stride *= x.shape[axis]
  return flat


def of_rows(part: ArrayLike | None, start: int, x: ArrayLike) -> ArrayLike | None:
  """Of an array with one number for each row of a leaf, those of a block, to multiply it with; numbers as they are."""
  if part is None or not np.ndim(part):
    return part
  if not is_numpy(part):
    return part.reshape(*x.shape[:-1], 1)
  first = start // x.shape[-1]
  return part.reshape(-1, 1)[first:first + len(x)]


@cache
def _range(size: int) -> np.ndarray:
  numbers = np.arange(size, dtype=np.uint32)
  numbers.flags.writeable = False
  return numbers
