"""One text for NumPy and JAX, and the operations in which the two need help to agree bit for bit.

NumPy's and XLA's float32 additions, multiplications, divisions and comparisons are the same IEEE operations. Two things
that XLA's compiler does to them are not, and the leaf-wise merges are written around both:

- it contracts `a * b + c` to one fused operation with one rounding: a product that feeds a sum is passed to `rounded`;
- it turns a division by a broadcast number into a product with its reciprocal: a merge does so itself.

Numbers below the smallest normal one, 1.2e-38, are flushed to zero by XLA and kept by NumPy.

Importing this module, or calling it with NumPy arrays, does not import JAX.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np

ArrayLike = Any


def is_numpy(x: ArrayLike) -> bool:
  """True for an array or number that NumPy computes with."""
  return isinstance(x, (np.ndarray, np.generic, int, float))


def namespace(x: ArrayLike) -> Any:
  """`numpy` for a NumPy array, `jax.numpy` for one of JAX."""
  if is_numpy(x):
    return np
  import jax.numpy as jnp

  return jnp


def float32(x: ArrayLike) -> ArrayLike:
  """Widens to float32: exact for float16 and bfloat16."""
  if not is_numpy(x):
    return x.astype(np.float32)
  if x.dtype == np.float32:
    return x
  if _is_bfloat16(x.dtype):  # the upper half of a float32; a shift is twice as fast as the cast
    wide = x.view(np.uint16).astype(np.uint32)
    return np.left_shift(wide, 16, out=wide).view(np.float32)
  return x.astype(np.float32)


def number(x: ArrayLike) -> ArrayLike:
  """A Python number as float32, since NumPy's product of booleans with it would be float64; arrays as they are."""
  return np.float32(x) if isinstance(x, (int, float)) else x


def rounded(x: ArrayLike) -> ArrayLike:
  """The same float32 numbers, in JAX through an operation that the compiler cannot see through.

  The square of an odd number is 1 modulo 8, so that `i & (i * i >> 2) & 1` is zero for every integer i; no pass of the
  compiler knows, and none can contract the product before it with the sum after it. Barriers, bit casts alone and
  `reduce_precision` to all bits are all removed before code is made (found by comparing bits with NumPy's, JAX 0.10).
  """
  if is_numpy(x):
    return x
  import jax

  bits = jax.lax.bitcast_convert_type(x, np.int32)
  return jax.lax.bitcast_convert_type(bits ^ (bits & (bits * bits >> 2) & 1), np.float32)


def masked(x: ArrayLike, keep: ArrayLike) -> ArrayLike:
  """`where(keep, x, 0)` for float32; NumPy's own `where` branches at every entry and is ten times slower."""
  if not is_numpy(x):
    return namespace(x).where(keep, x, np.float32(0))
  ones = _ones(keep)
  return np.bitwise_and(x.view(np.int32), ones, out=ones).view(np.float32)


def select(condition: ArrayLike, x: ArrayLike, y: ArrayLike) -> ArrayLike:
  """`where(condition, x, y)` for float32 arrays of one shape."""
  if not is_numpy(x):
    return namespace(x).where(condition, x, y)
  differing = np.bitwise_xor(x.view(np.int32), y.view(np.int32))
  np.bitwise_and(differing, _ones(condition), out=differing)
  return np.bitwise_xor(differing, y.view(np.int32), out=differing).view(np.float32)


def _ones(condition: np.ndarray) -> np.ndarray:
  """int32 with all bits set where the condition holds."""
  return np.negative(condition.view(np.int8)).astype(np.int32)


def sum_where(conditions: Sequence[ArrayLike], weights: Sequence[ArrayLike]) -> ArrayLike:
  """`sum_i w_i [condition_i]` at each entry, float32, added up in order.

  NumPy looks the sums up in a table of all subsets, where there are no more than eight conditions.
  """
  if not is_numpy(conditions[0]) or len(conditions) > 8:
    return sum(condition * weight for condition, weight in zip(conditions, weights, strict=True))
  code = conditions[0].view(np.uint8)
  for i, condition in enumerate(conditions[1:], 1):
    code = code | condition.view(np.uint8) << i
  return np.take(_subset_sums(tuple(weights)), code.astype(np.intp))


@lru_cache(64)
def _subset_sums(weights: tuple[float, ...]) -> np.ndarray:
  subsets = np.arange(1 << len(weights), dtype=np.uint8)
  return sum(((subsets >> i & 1) * np.float32(w) for i, w in enumerate(weights)), np.zeros(len(subsets), np.float32))


@cache
def _is_bfloat16(dtype: np.dtype) -> bool:
  return dtype.name == "bfloat16"
