"""Attention over inputs that are cut along their time axis: blocks of keys and values go round a ring of devices."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from jaxft.models.activation_sharding import BATCH_AXES
from jaxft.signatures import AnyArray, explain_errors

_LOWEST = jnp.finfo(jnp.float32).min


@explain_errors
def ring_attend(
    query: Float[Array, "batch time heads head_dim"],
    key: Float[Array, "batch time kv_heads head_dim"],
    value: Float[Array, "batch time kv_heads head_dim"],
    mask: Bool[AnyArray, "#batch #time time"] | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    axis: str = "context",
) -> Float[Array, "batch time heads head_dim"]:
  """`attend`, with the time axis of queries, keys and values cut over a mesh axis: no device holds more than its part.

  Each device keeps its block of queries and gives its block of keys and values on to the next, n times over n devices;
  with scores `s` of each block a running maximum `m`, a sum `l = sum exp(s - m)` and `o = sum exp(s - m) value` give
  `o / l` in the end, which is the softmax over all blocks. The backward pass goes round once more, with the gradients
  of keys and values beside them, and forms the scores again. A device holds scores of `[time / n, time / n]` for each
  head.

  Under a causal mask the last part of the time would see all blocks and the first but its own. So time is cut in 2 n
  pieces, of which the i-th device takes the i-th from the start and the i-th from the end. Besides its own block, each
  block that comes by holds as much for it to see: an earlier device's first piece, which all its queries see, or a
  later one's two pieces, which its second piece of queries sees. Each device computes `(n + 1) / 2` blocks in place of
  n, in both directions, and sends its queries, keys, values and outputs to their places and back once. An odd number of
  positions to a device is not cut so; then all blocks are computed.

  Args:
    query, key, value: per-head arrays, traced under a mesh with the axis, as `make_mesh(context=n)` has it; rows are
      cut along the mesh's batch axes and heads along `tensor` where these divide them.
    mask: True where a query sees a slot. Its second axis is cut as time is, or is 1 for all queries alike.
    causal: besides, query t sees no slot after t.
    scale: of the products; None takes 1 / sqrt(head_dim).
    axis: the mesh axis over which time is cut.

  Returns:
    What `attend` gives, to rounding, cut as the query is.

  Raises:
    ValueError: there is no mesh with the axis, time does not divide by its size, or keys have another length.

  Example:
    >>> from jaxft.training import make_mesh
    >>> mesh, x = make_mesh(data=1, context=jax.device_count()), jnp.ones((1, 4 * jax.device_count(), 4, 16))
    >>> with jax.set_mesh(mesh):
    ...   y = jax.jit(partial(ring_attend, causal=True))(x, x[:, :, :2], x[:, :, :2])
    >>> y.shape == x.shape
    True

  Source: Liu et al. 2023, Ring Attention with Blockwise Transformers (arXiv 2310.01889). Blocks are not taken in pieces
  here. Pairs of an early and a late part are what others call the zigzag order.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or axis not in mesh.axis_names:
    raise ValueError(f"axis must be one of the mesh under which this is traced; got {axis!r}, and "
                     f"{list(mesh.axis_names) or 'no mesh'}")
  size, time = mesh.shape[axis], query.shape[1]
  if time % size:
    raise ValueError(f"time must divide by the {size} devices of mesh axis {axis!r}; got {time} positions")
  if key.shape[1] != time:
    raise ValueError(f"key must have the {time} positions of the query, without what edits prepend; got {key.shape[1]}")
  batches, batch = [], query.shape[0]
  for name in BATCH_AXES:
    if name in mesh.axis_names and name != axis and batch % mesh.shape[name] == 0:
      batches.append(name)
      batch //= mesh.shape[name]
  heads = "tensor" if "tensor" in mesh.axis_names and key.shape[2] % mesh.shape["tensor"] == 0 else None
  spec = PartitionSpec(tuple(batches) or None, axis, heads)
  if mask is None:
    mask = np.ones((1, 1, time), bool)
  seen = PartitionSpec(spec[0] if mask.shape[0] > 1 else None, axis if mask.shape[1] > 1 else None)
  ring = _Ring(axis, size, time // size, causal, query.shape[-1]**-0.5 if scale is None else scale)
  return jax.shard_map(partial(_attend, ring), in_specs=(spec, spec, spec, seen), out_specs=spec, check_vma=False)(
      query, key, value, jnp.asarray(mask))


class _Ring(NamedTuple):
  """The devices, and how their blocks lie."""

  axis: str
  size: int
  time: int  # of a block
  causal: bool
  scale: float

  @property
  def folded(self) -> bool:
    """Whether a block is an early and a late piece of the time."""
    return self.causal and self.size > 1 and self.time % 2 == 0

  def pieces(self, device: Any) -> list[tuple[Any, int]]:
    """Where the pieces of a device's block start, and how long they are."""
    if not self.folded:
      return [(device * self.time, self.time)]
    half = self.time // 2
    return [(device * half, half), ((2 * self.size - 1 - device) * half, half)]

  def places(self, device: Any) -> Array:
    """The positions of a device's block."""
    return jnp.concatenate([start + jnp.arange(length) for start, length in self.pieces(device)])

  def spans(self, came_from: Any) -> list[tuple[Any, Any, int]]:
    """Of a block that another device gave: the products to form, as (first query, first key, how many of each)."""
    if not self.folded:
      return [(0, 0, self.time)]
    half = self.time // 2
    # Late queries see the early keys of all; beside these early queries do of an earlier device, of a later one late
    # queries see the late keys.
    other = jnp.where(came_from < jax.lax.axis_index(self.axis), 0, half)
    return [(half, 0, half), (other, other, half)]

  def pass_on(self, blocks: Any) -> Any:
    return jax.lax.ppermute(blocks, self.axis, [(i, (i + 1) % self.size) for i in range(self.size)])


def _attend(ring: _Ring, query: Any, key: Any, value: Any, mask: Any) -> Any:
  if not ring.folded:
    return _ring(ring, query, key, value, mask)
  query, key, value = (_fold(ring, x) for x in (query, key, value))
  mask = _fold(ring, mask) if mask.shape[1] > 1 else mask
  return _unfold(ring, _ring(ring, query, key, value, mask))


def _homes(ring: _Ring, odd: int) -> list[int]:
  """By device the one where its first piece belongs, an even one of the 2 n; or its second, which is odd."""
  return [min(piece, 2 * ring.size - 1 - piece) for piece in range(odd, 2 * ring.size, 2)]


def _fold(ring: _Ring, x: Any) -> Any:
  """A block of consecutive positions, with those of all others, to one of an early and a late piece."""
  pieces = [jax.lax.ppermute(part, ring.axis, list(enumerate(_homes(ring, odd))))
            for odd, part in enumerate(jnp.split(x, 2, axis=1))]
  return jnp.concatenate(_by_parity(ring, *pieces), axis=1)


def _unfold(ring: _Ring, x: Any) -> Any:
  """The inverse of `_fold`."""
  pieces = _by_parity(ring, *jnp.split(x, 2, axis=1))
  return jnp.concatenate([
      jax.lax.ppermute(part, ring.axis, [(home, i) for i, home in enumerate(_homes(ring, odd))])
      for odd, part in enumerate(pieces)], axis=1)


def _by_parity(ring: _Ring, one: Any, other: Any) -> tuple[Any, Any]:
  """Between (even piece, odd piece) and (early, late): the early piece of the i-th device is the i-th."""
  even = jax.lax.axis_index(ring.axis) % 2 == 0
  return jnp.where(even, one, other), jnp.where(even, other, one)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(ring: _Ring, query: Any, key: Any, value: Any, mask: Any) -> Any:
  return _forward(ring, query, key, value, mask)[0]


def _forward(ring, query, key, value, mask):
  groups, here = _grouped(query * ring.scale, key.shape[2]), jax.lax.axis_index(ring.axis)

  def computed(sums, key, value, came_from, first, start, length):
    """The sums with the products of queries from `first` on and keys from `start` on."""
    scores, _ = _scores(ring, groups, key, mask, came_from, first, start, length)
    top, total, out = (jax.lax.dynamic_slice_in_dim(x, first, length, axis=3) for x in sums)
    higher = jnp.maximum(top, scores.max(-1))
    weights, lasts = jnp.exp(scores - higher[..., None]), jnp.exp(top - higher)
    part = jnp.einsum("bkgts,bskd->bkgtd", weights.astype(value.dtype), _part(value, start, length),
                      preferred_element_type=jnp.float32)
    new = higher, total * lasts + weights.sum(-1), out * lasts[..., None] + part
    return tuple(jax.lax.dynamic_update_slice_in_dim(x, part, first, axis=3) for x, part in zip(sums, new, strict=True))

  def turn(carry, step):
    (key, value), sums = carry
    following, came_from = ring.pass_on((key, value)), (here - step) % ring.size  # sent while this block is computed
    for span in ring.spans(came_from):
      sums = computed(sums, key, value, came_from, *span)
    return (following, sums), None

  top = jnp.full(groups.shape[:-1], _LOWEST)
  following = ring.pass_on((key, value))
  sums = computed((top, jnp.zeros_like(top), jnp.zeros(groups.shape, jnp.float32)), key, value, here, 0, 0, ring.time)
  (_, (top, total, out)), _ = jax.lax.scan(turn, (following, sums), jnp.arange(1, ring.size))
  # Who sees nobody sees all alike, as a softmax of equal scores has it.
  mean = jax.lax.psum(value.astype(jnp.float32).sum(1), ring.axis)[:, :, None, None] / (ring.size * ring.time)
  out = jnp.where(top[..., None] == _LOWEST, mean, out / total[..., None])
  out = _flat(out).astype(value.dtype)
  return out, (query, key, value, mask, out, top, total)


def _backward(ring, saved, cotangent):
  query, key, value, mask, out, top, total = saved
  kv_heads, here = key.shape[2], jax.lax.axis_index(ring.axis)
  groups, given = _grouped(query * ring.scale, kv_heads), _grouped(cotangent, kv_heads)
  inner = (given.astype(jnp.float32) * _grouped(out, kv_heads)).sum(-1)  # of each query: what its weights sum up to
  zeros = lambda x: jnp.zeros(x.shape, jnp.float32)

  def computed(of_query, of_block, key, value, came_from, first, start, length):
    """The gradients with those of the products of queries from `first` on and keys from `start` on."""
    queries = lambda x: jax.lax.dynamic_slice_in_dim(x, first, length, axis=3)
    scores, seen = _scores(ring, groups, key, mask, came_from, first, start, length)
    own, its, keys = queries(given), _part(value, start, length), _part(key, start, length)
    weights = jnp.where(seen, jnp.exp(scores - queries(top)[..., None]) / queries(total)[..., None], 0.0)
    for_value = jnp.einsum("bkgts,bkgtd->bskd", weights.astype(own.dtype), own, preferred_element_type=jnp.float32)
    of_weights = jnp.einsum("bkgtd,bskd->bkgts", own, its, preferred_element_type=jnp.float32)
    of_scores = (weights * (of_weights - queries(inner)[..., None])).astype(key.dtype)
    for_query = jnp.einsum("bkgts,bskd->bkgtd", of_scores, keys, preferred_element_type=jnp.float32)
    for_key = jnp.einsum("bkgts,bkgtd->bskd", of_scores, queries(groups), preferred_element_type=jnp.float32)
    added = lambda x, more, at, axis: jax.lax.dynamic_update_slice_in_dim(
        x, jax.lax.dynamic_slice_in_dim(x, at, length, axis) + more, at, axis)
    of_key, of_value = (added(x, more, start, 1) for x, more in zip(of_block, (for_key, for_value), strict=True))
    return added(of_query, for_query, first, 3), (of_key, of_value)

  def turn(carry, step):
    (key, value), of_query, of_block = carry
    following, came_from = ring.pass_on((key, value)), (here - step) % ring.size
    for span in ring.spans(came_from):
      of_query, of_block = computed(of_query, of_block, key, value, came_from, *span)
    return (following, of_query, ring.pass_on(of_block)), None

  following = ring.pass_on((key, value))
  of_query, of_block = computed(zeros(groups), (zeros(key), zeros(value)), key, value, here, 0, 0, ring.time)
  start = following, of_query, ring.pass_on(of_block)
  (_, of_query, (of_key, of_value)), _ = jax.lax.scan(turn, start, jnp.arange(1, ring.size))
  alike = jnp.where(top[..., None] == _LOWEST, given.astype(jnp.float32), 0.0).sum((2, 3))
  of_value += jax.lax.psum(alike, ring.axis)[:, None] / (ring.size * ring.time)
  return ((_flat(of_query) * ring.scale).astype(query.dtype), of_key.astype(key.dtype), of_value.astype(value.dtype),
          np.zeros(mask.shape, jax.dtypes.float0))


_ring.defvjp(_forward, _backward)


def _scores(ring, groups, key, mask, came_from, first, start, length):
  """Scores of queries with keys of a block that came from a device, and which of them count; see `computed`."""
  whole = length == ring.time
  pieces = ring.pieces(came_from)
  if not whole:
    pieces = [(jnp.where(start == 0, pieces[0][0], pieces[1][0]), length)]
  seen = jnp.concatenate([_part(mask, at, size, axis=2) for at, size in pieces], axis=2)
  seen = (_part(seen, first, length) if mask.shape[1] > 1 else seen)[:, None, None]
  if ring.causal and whole:  # of a part of another block all is seen
    seen = seen & (ring.places(jax.lax.axis_index(ring.axis))[:, None] >= ring.places(came_from))
  queries = jax.lax.dynamic_slice_in_dim(groups, first, length, axis=3)
  scores = jnp.einsum("bkgtd,bskd->bkgts", queries, _part(key, start, length), preferred_element_type=jnp.float32)
  return jnp.where(seen, scores, _LOWEST), seen


def _part(x, start, length, axis=1):
  return jax.lax.dynamic_slice_in_dim(x, start, length, axis)


def _grouped(x, kv_heads):
  """`[batch, kv_heads, queries of each, time, head_dim]`."""
  return x.reshape(*x.shape[:2], kv_heads, -1, x.shape[-1]).transpose(0, 2, 3, 1, 4)


def _flat(x):
  return x.transpose(0, 3, 1, 2, 4).reshape(x.shape[0], x.shape[3], -1, x.shape[-1])
