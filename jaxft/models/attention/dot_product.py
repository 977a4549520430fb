"""Scaled dot-product attention over per-head arrays, and the masks that say who sees whom."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxft.signatures import AnyArray, explain_errors


@explain_errors
def attend(
    query: Float[Array, "batch time heads head_dim"],
    key: Float[Array, "batch slots kv_heads head_dim"],
    value: Float[Array, "batch slots kv_heads head_dim"],
    mask: Bool[AnyArray, "#batch #time seen"] | None = None,
    *,
    bias: Float[AnyArray, "*each heads time seen"] | None = None,
    causal: bool = False,
    scale: float | None = None,
    implementation: Literal["xla", "cudnn"] | None = None,
) -> Float[Array, "batch time heads head_dim"]:
  """`softmax(scale query key^T + bias) value` per head, each key head serving heads / kv_heads query heads.

  Keys and values are not repeated for the query heads that share them; scores and softmax are float32. A query that
  sees no slot gets finite values, not NaN.

  >>> one = jnp.ones((1, 2, 4, 8))
  >>> attend(one, one[:, :, :2], one[:, :, :2], causal=True).shape
  (1, 2, 4, 8)

  Args:
    query, key, value: per-head arrays; heads must be a multiple of kv_heads.
    mask: True where a query sees a slot; None lets each see all. Where there are more slots than the mask (or, without
      one, than queries), the extra ones came first, an edit prepended them, and every query sees them.
    bias: added to the scores, float32, one for all rows or `[batch, ...]`; slots that came first, as of the mask, have
      none.
    causal: besides, query t sees no slot after t.
    scale: of the products; None takes 1 / sqrt(head_dim).
    implementation: None for the products below; "cudnn" or "xla" for `jax.nn.dot_product_attention`'s, of which
      "cudnn" is the fused kernel of NVIDIA GPUs, for bfloat16.
  """
  time, slots = query.shape[1], key.shape[1]
  prefix = slots - (mask.shape[-1] if mask is not None else time if causal else slots)
  if bias is not None:
    bias = jnp.pad(bias, (*((0, 0),) * (bias.ndim - 1), (slots - bias.shape[-1], 0)))
  if implementation is not None and causal and not prefix:
    mask = None if mask is None else mask[:, None]
    return jax.nn.dot_product_attention(
        query, key, value, _of_batch(bias), mask=mask, scale=scale, is_causal=True, implementation=implementation)
  if causal:
    before = jnp.tril(jnp.ones((1, time, time), bool))
    mask = before if mask is None else before & mask
  if mask is not None and prefix:
    mask = jnp.pad(mask, ((0, 0), (0, 0), (prefix, 0)), constant_values=True)
  if implementation is not None:
    mask = None if mask is None else mask[:, None]
    return jax.nn.dot_product_attention(
        query, key, value, _of_batch(bias), mask=mask, scale=scale, implementation=implementation)
  return _attend(query, key, value, mask, bias, query.shape[-1]**-0.5 if scale is None else scale)


def _of_batch(bias):
  return bias[None] if bias is not None and bias.ndim == 3 else bias


def _attend(query, key, value, mask, bias, scale):
  batch, time, heads, head_dim = query.shape
  kv_heads, slots = key.shape[2], key.shape[1]
  # Heads are brought before time once, here, and the queries of a group follow one another in the time axis: then
  # every product, forwards and backwards, has its batch axes in front, and no array of scores is ever transposed.
  query = query.reshape(batch, time, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4) * scale
  query = query.reshape(batch, kv_heads, -1, head_dim)
  key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
  scores = jnp.einsum("bktd,bksd->bkts", query, key, preferred_element_type=jnp.float32)
  scores = scores.reshape(batch, kv_heads, -1, time, slots)
  if bias is not None:
    scores = scores + bias.reshape(*bias.shape[:-3], kv_heads, -1, time, slots)
  if mask is not None:
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype).reshape(batch, kv_heads, -1, slots)
  out = jnp.einsum("bkts,bksd->bktd", weights, value).reshape(batch, kv_heads, -1, time, head_dim)
  return out.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, head_dim)


@explain_errors
def same_segment(segment_ids: Int[AnyArray, "batch time"]) -> Bool[Array, "batch time time"]:
  """Positions of a packed row see only their own segment.

  >>> same_segment(jnp.array([[1, 2]]))
  Array([[[ True, False],
          [False,  True]]], dtype=bool)
  """
  return jnp.equal(segment_ids[:, :, None], segment_ids[:, None, :])


@explain_errors
def packed_positions(segment_ids: Int[AnyArray, "batch time"]) -> Int[Array, "batch time"]:
  """Positions of a packed row, starting from zero in each segment.

  >>> packed_positions(jnp.array([[1, 1, 1, 2, 2]]))
  Array([[0, 1, 2, 0, 1]], dtype=int32)
  """
  index = jnp.broadcast_to(jnp.arange(segment_ids.shape[1]), segment_ids.shape)
  starts = jnp.concatenate(
      [jnp.ones_like(segment_ids[:, :1], bool), segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1
  )
  return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
