"""Where each position of a causal model stands, and which slots it sees: rotations, segments, windows and the cache."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxft.models.attention import packed_positions, same_segment
from jaxft.models.attention.rope import rotation
from jaxft.models.bounds import check_range
from jaxft.models.cache import extend


def check_layout(added, length, config, positions, segment_ids, cache):
  """Raises ValueError for more positions than cache or context hold, and for layouts that exclude each other."""
  if cache is not None and segment_ids is not None:
    raise ValueError("cache and segment_ids exclude each other: a cache holds one sequence per row")
  if cache is not None and length > cache.seen.shape[1]:
    raise ValueError(f"cache has {cache.seen.shape[1]} slots; got {length} positions")
  if added and not (positions is None and segment_ids is None):
    raise ValueError(f"an edit of 'embed' added {added} positions: then positions and segment_ids must be None")
  if positions is None and segment_ids is None and length > config.max_length:
    raise ValueError(
        f"ids may have at most max_length = {config.max_length} positions, the model's context; got {length}")


def rotations(config, length, mask, real, positions, segment_ids, cache):
  """The rotation of every position in layers that see all, and in those with a window if there are any.

  NaN at positions that are traced and turn out to lie outside the context.
  """
  given = positions is not None
  positions = positions if given else _positions(length, mask, segment_ids, cache)
  turns = [rotation(positions, head_dim=config.head_dim, theta=config.rope_theta, scaling=config.rope_scaling)]
  if config.window is not None:
    turns.append(rotation(positions, head_dim=config.head_dim, theta=config.window.rope_theta))
  # A position that was counted is smaller than the number of places there are.
  if not given and (length if cache is None else cache.seen.shape[1]) <= config.max_length:
    return turns
  check_range("positions", positions, real, config.max_length, "max_length being the model's context")
  inside = (positions >= 0) & (positions < config.max_length)
  known = inside if real is None else inside | ~real
  return jax.tree.map(lambda x: jnp.where(known[:, :, None, None], x, jnp.nan), turns)


def _positions(length, mask, segment_ids, cache):
  if segment_ids is not None:
    return packed_positions(segment_ids)
  if mask is None:
    positions = jnp.arange(length)[None]
  else:
    positions = jnp.maximum(jnp.cumsum(mask.astype(bool), axis=1, dtype=jnp.int32) - 1, 0)
  return positions if cache is None else cache.position[:, None] + positions


def visible_slots(shape, mask, segment_ids, cache):
  """The extended cache, and which slots each position sees; without a cache, causality comes on top."""
  real = None if mask is None else mask.astype(bool)
  if cache is not None:
    return extend(cache, jnp.ones(shape, bool) if real is None else real)
  visible = None if real is None else real[:, None]
  if segment_ids is not None:
    same = same_segment(segment_ids)
    visible = same if visible is None else same & visible
  return None, visible


def near_slots(config, length, mask, cache):
  """Which slots lie in the window of each position, counted among the real ones; None without windows."""
  if config.window is None:
    return None
  if cache is None:
    order = jnp.arange(length)[None] if mask is None else jnp.cumsum(mask.astype(bool), axis=1, dtype=jnp.int32)
    return config.window.near(order, order)
  slots = jnp.cumsum(cache.seen, axis=1, dtype=jnp.int32)
  return config.window.near(jax.lax.dynamic_slice_in_dim(slots, cache.length - length, length, axis=1), slots)


def of_layer(config, index, turns, visible, near):
  """The rotation and the visible slots of one layer."""
  if near is None:
    return turns[0], visible
  every = config.window.sees_all(index)
  seen = near | every
  return jax.tree.map(partial(jnp.where, every), *turns), seen if visible is None else seen & visible
