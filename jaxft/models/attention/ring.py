"""Attention over inputs that are cut along their time axis: blocks of keys and values go round a ring of devices."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from jaxft.models.activation_sharding import BATCH_AXES
from jaxft.signatures import AnyArray, explain_errors


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
  head; of a causal mask it computes the blocks that nobody sees too, twice the operations that are needed.

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
  here, and time is cut in order, so that the last device has most to do under a causal mask.
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
  block = partial(_ring, axis, size, causal, query.shape[-1]**-0.5 if scale is None else scale)
  return jax.shard_map(block, in_specs=(spec, spec, spec, seen), out_specs=spec, check_vma=False)(
      query, key, value, jnp.asarray(mask))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _ring(axis: str, size: int, causal: bool, scale: float, query: Any, key: Any, value: Any, mask: Any) -> Any:
  return _forward(axis, size, causal, scale, query, key, value, mask)[0]


def _forward(axis, size, causal, scale, query, key, value, mask):
  groups = _grouped(query * scale, key.shape[2])
  top = jnp.full(groups.shape[:-1], jnp.finfo(jnp.float32).min)
  start = key, value, top, jnp.zeros_like(top), jnp.zeros(groups.shape, jnp.float32)

  def turn(carry, step):
    key, value, top, total, out = carry
    following = _passed_on((key, value), axis, size)  # on its way while this block is computed
    scores, _ = _scores(groups, key, mask, causal, axis, size, step)
    higher = jnp.maximum(top, scores.max(-1))
    weights, lasts = jnp.exp(scores - higher[..., None]), jnp.exp(top - higher)
    part = jnp.einsum("bkgts,bskd->bkgtd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (*following, higher, total * lasts + weights.sum(-1), out * lasts[..., None] + part), None

  (_, _, top, total, out), _ = jax.lax.scan(turn, start, jnp.arange(size))
  out = _flat(out / total[..., None]).astype(value.dtype)
  return out, (query, key, value, mask, out, top, total)


def _backward(axis, size, causal, scale, saved, cotangent):
  query, key, value, mask, out, top, total = saved
  kv_heads = key.shape[2]
  groups, given = _grouped(query * scale, kv_heads), _grouped(cotangent, kv_heads)
  inner = (given.astype(jnp.float32) * _grouped(out, kv_heads)).sum(-1)  # of each query: what its weights sum up to
  zeros = lambda x: jnp.zeros(x.shape, jnp.float32)

  def turn(carry, step):
    key, value, of_query, of_key, of_value = carry
    following = _passed_on((key, value), axis, size)
    scores, seen = _scores(groups, key, mask, causal, axis, size, step)
    weights = jnp.exp(scores - top[..., None]) / total[..., None]
    of_value += jnp.einsum("bkgts,bkgtd->bskd", weights.astype(given.dtype), given, preferred_element_type=jnp.float32)
    of_weights = jnp.einsum("bkgtd,bskd->bkgts", given, value, preferred_element_type=jnp.float32)
    of_scores = jnp.where(seen, weights * (of_weights - inner[..., None]), 0.0).astype(key.dtype)
    of_query += jnp.einsum("bkgts,bskd->bkgtd", of_scores, key, preferred_element_type=jnp.float32)
    of_key += jnp.einsum("bkgts,bkgtd->bskd", of_scores, groups, preferred_element_type=jnp.float32)
    return (*following, of_query, *_passed_on((of_key, of_value), axis, size)), None

  start = key, value, zeros(groups), zeros(key), zeros(value)
  (_, _, of_query, of_key, of_value), _ = jax.lax.scan(turn, start, jnp.arange(size))
  return ((_flat(of_query) * scale).astype(query.dtype), of_key.astype(key.dtype), of_value.astype(value.dtype),
          np.zeros(mask.shape, jax.dtypes.float0))


_ring.defvjp(_forward, _backward)


def _passed_on(blocks, axis, size):
  return jax.lax.ppermute(blocks, axis, [(i, (i + 1) % size) for i in range(size)])


def _scores(groups, key, mask, causal, axis, size, step):
  """Scores of the block of keys that is here after so many steps, and which of them count."""
  time = groups.shape[3]
  here = jax.lax.axis_index(axis)
  came_from = (here - step) % size
  seen = jax.lax.dynamic_slice_in_dim(mask, came_from * time, time, axis=2)[:, None, None]
  if causal:
    place = jnp.arange(time)
    seen = seen & ((here * time + place)[:, None] >= (came_from * time + place)[None])
  scores = jnp.einsum("bkgtd,bskd->bkgts", groups, key, preferred_element_type=jnp.float32)
  return jnp.where(seen, scores, jnp.finfo(jnp.float32).min), seen


def _grouped(x, kv_heads):
  """`[batch, kv_heads, queries of each, time, head_dim]`."""
  return x.reshape(*x.shape[:2], kv_heads, -1, x.shape[-1]).transpose(0, 2, 3, 1, 4)


def _flat(x):
  return x.transpose(0, 3, 1, 2, 4).reshape(x.shape[0], x.shape[3], -1, x.shape[-1])
