"""The keys and values of past positions, so that decoding computes each once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Cache(NamedTuple):
  """Slots for keys and values, filled from the left, the same slots in every row and layer.

  Attributes:
    key, value: per-layer arrays; keys are stored rotated.
    seen: False at slots that hold padding or nothing yet.
    length: slots in use.
    position: per row, the position that its next token takes: how many real tokens it has.
  """

  key: Float[Array, "layers batch slots kv_heads head_dim"]
  value: Float[Array, "layers batch slots kv_heads head_dim"]
  seen: Bool[Array, "batch slots"]
  length: Int[Array, ""]
  position: Int[Array, " batch"]


def extend(cache: Cache, mask: Bool[Array, "batch time"]) -> tuple[Cache, Bool[Array, "batch time slots"]]:
  """Claims the next slots, and says which slots each of the new positions sees: itself and the real ones before it.

  The keys and values of the new slots are for the layers to `write`.
  """
  time, slots = mask.shape[1], cache.seen.shape[1]
  seen = jax.lax.dynamic_update_slice_in_dim(cache.seen, mask, cache.length, axis=1)
  before = jnp.arange(slots) <= cache.length + jnp.arange(time)[:, None]
  position = cache.position + mask.sum(1, dtype=cache.position.dtype)
  return cache._replace(seen=seen, length=cache.length + time, position=position), before & seen[:, None]


def write(
    cache: Cache,
    layer: Int[Array, ""] | int,
    key: Float[Array, "batch time kv_heads head_dim"],
    value: Float[Array, "batch time kv_heads head_dim"],
) -> tuple[Cache, Float[Array, "batch slots kv_heads head_dim"], Float[Array, "batch slots kv_heads head_dim"]]:
  """Writes a layer's newest keys and values, and returns all slots of that layer.

  The whole cache is carried through the layers and written in place; as inputs and outputs of a scan it would be
  copied once per token.
  """
  start = (layer, 0, cache.length - key.shape[1], 0, 0)
  put = lambda slots, new: jax.lax.dynamic_update_slice(slots, new[None].astype(slots.dtype), start)
  cache = cache._replace(key=put(cache.key, key), value=put(cache.value, value))
  read = lambda slots: jax.lax.dynamic_index_in_dim(slots, layer, keepdims=False)
  return cache, read(cache.key).astype(key.dtype), read(cache.value).astype(value.dtype)
