"""A number for each text, by which a contrastive loss tells copies of a row's texts, which are no negatives of it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def text_ids(
    tokens: Int[AnyArray, "*rows time"],
    mask: Bool[AnyArray, "*rows time"] | Int[AnyArray, "*rows time"] | None = None,
) -> Int[Array, "*rows"]:
  """A number for each text, equal for equal texts whatever their padding: a hash of 32 bits.

  Two different texts get one number once in four billion pairs; then the one is no negative of the other, no more.

  Args:
    tokens: token ids.
    mask: nonzero at real tokens.

  Example:
    >>> mask = jnp.array([[1, 1, 0], [0, 1, 1], [1, 1, 0]])
    >>> one, two, three = text_ids(jnp.array([[5, 6, 0], [0, 5, 6], [6, 5, 0]]), mask)
    >>> bool(one == two), bool(one == three)
    (True, False)
  """
  real = jnp.ones(tokens.shape, bool) if mask is None else mask.astype(bool)
  return _number(jnp.sum(jnp.where(real, _in_place(tokens, jnp.cumsum(real, axis=-1)), 0), axis=-1, dtype=jnp.uint32))


@check_arrays
def packed_text_ids(
    tokens: Int[AnyArray, "rows time"], segment_ids: Int[AnyArray, "rows time"], texts: int
) -> Int[Array, " texts"]:
  """The numbers that `text_ids` gives, of texts that share rows, as `jaxft.data.pack_texts` lays them out.

  Args:
    tokens: token ids.
    segment_ids: i + 1 at the tokens of text i, which lies in one row without a gap; 0 at padding.
    texts: how many there are; static. One that no row holds has the number of a text without tokens.

  Raises:
    ValueError: texts below 1.

  Example:
    >>> one, two = packed_text_ids(jnp.array([[5, 6, 5], [6, 0, 0]]), jnp.array([[2, 2, 1], [0, 0, 0]]), 2)
    >>> bool(two == text_ids(jnp.array([5, 6])))
    True
  """
  if texts < 1:
    raise ValueError(f"texts must be at least 1; got {texts}")
  own, index = segment_ids.reshape(-1), jnp.arange(segment_ids.size)
  first = jax.ops.segment_min(index, own, texts + 1)
  each = jnp.where(own > 0, _in_place(tokens.reshape(-1), index - first[own] + 1), 0)
  return _number(jax.ops.segment_sum(each, own, texts + 1)[1:])


def _in_place(tokens: AnyArray, place: Array) -> Array:
  """What each token adds to its text's sum, by its place from 1 on."""
  place = place.astype(jnp.uint32) * jnp.uint32(0x9E3779B1)
  return _scramble(_scramble(jnp.asarray(tokens).astype(jnp.uint32)) + place)


def _number(total: Array) -> Array:
  return _scramble(total).astype(jnp.int32)


def _scramble(x: Array) -> Array:
  """MurmurHash3's finalizer: each bit of the result depends on every bit of what is given."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
