"""Ternary vectors as two bit masks: two bits an entry, and arithmetic 32 entries at a time without decoding."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Int8, UInt32

from jaxft.checks import in_range
from jaxft.merging.compression.golomb import check_signs
from jaxft.signatures import explain_errors

WORD = 32


class BitMasks(NamedTuple):
  """`scale * signs` of d entries; entry i is bit `i % 32`, the lowest first, of word `i // 32`.

  Attributes:
    positive, negative: where the sign is 1 and where it is -1; bits beyond d are 0.
    scale: magnitude of all entries that are not 0.
  """

  positive: UInt32[Array, " words"]
  negative: UInt32[Array, " words"]
  scale: Float[Array, ""] | float = 1.0


@explain_errors
def pack_masks(signs: Int8[Array, " d"], scale: Float[Array, ""] | float = 1.0) -> BitMasks:
  """The masks of a vector of -1, 0 and 1; runs under `jit`.

  >>> pack_masks(jnp.array([1, 0, -1, 1], jnp.int8), 0.5)
  BitMasks(positive=Array([9], dtype=uint32), negative=Array([4], dtype=uint32), scale=0.5)

  Raises:
    ValueError: signs is not a vector of -1, 0 and 1, scale is not finite, or there are 2**31 entries or more, which
      counts of 32 bits do not hold.
  """
  if signs.ndim != 1 or signs.shape[0] >= 1 << 31:
    raise ValueError(f"signs must be a vector of fewer than 2**31 entries; got shape {tuple(signs.shape)}")
  if not isinstance(signs, Tracer):
    check_signs(np.asarray(signs))
  in_range("scale", scale)
  words = jnp.pad(signs, (0, -signs.shape[0] % WORD)).reshape(-1, WORD)
  place = jnp.uint32(1) << jnp.arange(WORD, dtype=jnp.uint32)
  pack = lambda bits: jnp.sum(jnp.where(bits, place, jnp.uint32(0)), axis=-1, dtype=jnp.uint32)
  return BitMasks(pack(words > 0), pack(words < 0), scale)


@explain_errors
def unpack_masks(masks: BitMasks, size: int) -> Int8[Array, " size"]:
  """The signs that were packed; `size` is d.

  >>> unpack_masks(pack_masks(jnp.array([1, 0, -1, 1], jnp.int8)), 4)
  Array([ 1,  0, -1,  1], dtype=int8)

  Raises:
    ValueError: the masks have another number of words than `size` takes.
  """
  if masks.positive.shape != (-(-size // WORD),) or masks.negative.shape != masks.positive.shape:
    raise ValueError(f"masks must have {-(-size // WORD)} words for {size} entries; got {masks.positive.shape} and "
                     f"{masks.negative.shape}")
  bits = lambda words: (words[:, None] >> jnp.arange(WORD, dtype=jnp.uint32) & 1).reshape(-1)[:size].astype(jnp.int8)
  return bits(masks.positive) - bits(masks.negative)


@explain_errors
def ternary_dot(a: BitMasks, b: BitMasks) -> Float[Array, ""]:
  """The inner product of two ternary vectors: `s_a s_b [#(P_a & P_b) + #(N_a & N_b) - #(P_a & N_b) - #(N_a & P_b)]`.

  The bracket is an exact integer; one rounding follows.

  >>> a, b = pack_masks(jnp.array([1, 0, -1, 1], jnp.int8), 0.5), pack_masks(jnp.array([1, 1, -1, -1], jnp.int8), 2.0)
  >>> ternary_dot(a, b)
  Array(1., dtype=float32)

  Raises:
    ValueError: the vectors differ in their number of words.

  Source: Yadav et al. 2023, ComPEFT (arXiv 2311.13171).
  """
  same, opposite, _, _ = _overlaps(a, b)
  return a.scale * b.scale * (same - opposite).astype(jnp.float32)


@explain_errors
def ternary_distance(a: BitMasks, b: BitMasks) -> Float[Array, ""]:
  """The L1 distance of two ternary vectors; with equal scales `s [#(P_a ^ P_b) + #(N_a ^ N_b)]`.

  For any scales `|s_a - s_b|` where the signs agree, `s_a + s_b` where they are opposite, and the scale of the one that
  is not 0 elsewhere.

  >>> a, b = pack_masks(jnp.array([1, 0, -1, 1], jnp.int8), 0.5), pack_masks(jnp.array([1, 1, -1, -1], jnp.int8), 2.0)
  >>> ternary_distance(a, b)
  Array(7.5, dtype=float32)

  Args:
    a, b: of scales >= 0.

  Raises:
    ValueError: the vectors differ in their number of words.
  """
  same, opposite, only_a, only_b = (x.astype(jnp.float32) for x in _overlaps(a, b))
  return jnp.abs(a.scale - b.scale) * same + (a.scale + b.scale) * opposite + a.scale * only_a + b.scale * only_b


def _overlaps(a: BitMasks, b: BitMasks) -> tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""], Int[Array, ""]]:
  """How many entries have the same sign, opposite ones, a sign only in a, only in b."""
  if a.positive.shape != b.positive.shape:
    raise ValueError(f"a and b must be of one length; got {a.positive.shape[0]} and {b.positive.shape[0]} words")
  count = lambda words: jnp.sum(jax.lax.population_count(words).astype(jnp.int32))
  some_a, some_b = a.positive | a.negative, b.positive | b.negative
  same = count((a.positive & b.positive) | (a.negative & b.negative))
  opposite = count((a.positive & b.negative) | (a.negative & b.positive))
  return same, opposite, count(some_a & ~some_b), count(some_b & ~some_a)
