"""Checksums of arrays and of JSON: short words that differ where a bit differs, or where two values change places."""

import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from jaxft.signatures import explain_errors

Tree = Any


@explain_errors
def checksum(tree: Tree) -> str:
  """One word for the bits of a tree of arrays, the same on any mesh.

  >>> checksum({"w": jnp.array([1.0, 2.0])}) == checksum({"w": jnp.array([1.0, 2.0])})
  True
  >>> checksum({"w": jnp.array([1.0, 2.0])}) == checksum({"w": jnp.array([2.0, 1.0])})
  False
  """
  return f"{zlib.crc32(repr(list(checksums(tree).values())).encode()):08x}"


def checksums(tree: Tree) -> dict[str, str]:
  """A word for each array of a tree, by its path: dtype, shape and 32 bits of `sum_i mix(bits_i + i * odd)`.

  `mix` is a bijection of 32-bit words, so that a change of one element always shows, and a change of several goes
  unnoticed once in 2^32; the index i makes the order count. Sums of integers have no rounding, whatever device holds
  which part.
  """
  named = [(jax.tree_util.keystr(keys, simple=True, separator="."), x)
           for keys, x in jax.tree_util.tree_flatten_with_path(tree)[0]]
  sums = jax.device_get([_mixed_sum(x) for _, x in named])  # all are started before the first is waited for
  return {name: f"{kind_of(x)}:{int(s):08x}" for (name, x), s in zip(named, sums, strict=True)}


def kind_of(x: Any) -> str:
  """Dtype and shape, as `float32[2, 3]`."""
  return f"{x.dtype}{list(x.shape)}"


def json_checksum(content: Any) -> str:
  """CRC-32 of a JSON value, whatever the order of its keys."""
  return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


@jax.jit
def _mixed_sum(x: Array) -> UInt32[Array, ""]:
  words = _words(x)
  index = jnp.zeros(words.shape, jnp.uint32)
  for axis, size in enumerate(words.shape):  # by axis, because a reshape would have to move a sharded array
    index = index * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
  return jnp.sum(_mix(words + index * np.uint32(0x9E3779B9)), dtype=jnp.uint32)


def _words(x: Array) -> UInt32[Array, "..."]:
  """The bits of an array as 32-bit words: one for an element, two for one of 64 bits."""
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if jnp.issubdtype(x.dtype, jnp.complexfloating):
    x = jnp.stack([x.real, x.imag], axis=-1)
  if x.dtype == bool:
    return x.astype(jnp.uint32)
  bits = jax.dtypes.itemsize_bits(x.dtype)
  unsigned = jnp.uint32 if bits == 64 else jnp.dtype(f"uint{bits}")
  return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
  """The bijection `lowbias32` of C. Wellons (2018), in which every bit of the input moves about half of the output."""
  x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
  return x ^ (x >> 16)
