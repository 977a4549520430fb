"""DeBERTa's scores: between tokens and distances, beside those between tokens."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxft.models.linear import linear
from jaxft.signatures import AnyArray, explain_errors


class Disentangled(NamedTuple):
  """What a distance does to the scores.

  Attributes:
    span: distances, or buckets of them, on each side: a half of the table's rows.
    farthest: the distance from which on all share the last bucket; 0: no buckets, one distance each up to the span.
    content_to_position, position_to_content: the two kinds of scores.
    shared: the projections of queries and keys serve the table too; otherwise it has its own.
    normed: the table goes through a layer norm of its own.
  """

  span: int
  farthest: int = 0
  content_to_position: bool = True
  position_to_content: bool = True
  shared: bool = True
  normed: bool = True


@explain_errors
def signed_buckets(length: int, kind: Disentangled) -> Int[np.ndarray, "length length"]:
  """The row of the table for each pair of positions, `query - slot` counted from the middle; rows are queries.

      d where |d| <= m = span / 2,   else sign(d) (ceil(log(|d| / m) / log((farthest - 1) / m) (m - 1)) + m)

  >>> signed_buckets(4, Disentangled(span=2))
  array([[2, 1, 0, 0],
         [3, 2, 1, 0],
         [3, 3, 2, 1],
         [3, 3, 3, 2]])

  Args:
    length: positions.
    kind: its span and farthest distance.

  Returns:
    Numbers in [0, 2 span).

  Source: He et al. 2021, DeBERTaV3 (arXiv 2111.09543), as its code has it.
  """
  at = np.arange(length)
  distance = at[:, None] - at[None]
  if kind.farthest:
    middle = kind.span // 2
    # In float32, as the source: elsewhere a logarithm may fall on the other side of its edge.
    far = np.maximum(np.abs(distance), middle).astype(np.float32) / np.float32(middle)
    steps = np.log(far) / np.log(np.float32((kind.farthest - 1) / middle)) * np.float32(middle - 1)
    buckets = np.sign(distance) * (np.ceil(steps) + middle).astype(np.int64)
    distance = np.where(np.abs(distance) <= middle, distance, buckets)
  return np.clip(distance + kind.span, 0, 2 * kind.span - 1)


@explain_errors
def disentangled_scores(
    query: Float[AnyArray, "batch time heads head_dim"],
    key: Float[AnyArray, "batch time heads head_dim"],
    rows: Int[AnyArray, "time time"],
    position_key: Float[AnyArray, "rows heads head_dim"] | None = None,
    position_query: Float[AnyArray, "rows heads head_dim"] | None = None,
) -> Float[Array, "batch heads time time"]:
  """`q_i . pk[r_ij] + k_j . pq[r_ij]`, float32 and not scaled: what is added to `q_i . k_j`.

  The paper has the last row as r_ji; the released weights were trained with r_ij.

  >>> one = jnp.ones((1, 3, 2, 4))
  >>> rows = signed_buckets(3, Disentangled(span=2))
  >>> disentangled_scores(one, one, rows, position_key=jnp.ones((4, 2, 4)))[0, 0, 0]
  Array([4., 4., 4.], dtype=float32)

  Args:
    query, key: of the tokens.
    rows: of each pair, from `signed_buckets`.
    position_key, position_query: of the table's rows; None leaves the term out.

  Source: He et al. 2020, DeBERTa (arXiv 2006.03654).
  """
  batch, time, heads = query.shape[:3]
  out = jnp.zeros((batch, heads, time, time), jnp.float32)
  if position_key is not None:
    scores = jnp.einsum("bthd,rhd->bhtr", query, position_key, preferred_element_type=jnp.float32)
    out += jnp.take_along_axis(scores, jnp.asarray(rows)[None, None], axis=3)
  if position_query is not None:
    scores = jnp.einsum("bshd,rhd->bhsr", key, position_query, preferred_element_type=jnp.float32)
    out += jnp.take_along_axis(scores, jnp.asarray(rows).T[None, None], axis=3).swapaxes(2, 3)
  return out


@explain_errors
def bias_and_scale(
    params: dict[str, Any],
    kind: Disentangled,
    query: Float[Array, "batch time heads head_dim"],
    key: Float[Array, "batch time heads head_dim"],
    table: Float[Array, "rows dim"],
) -> dict[str, Any]:
  """The bias and the scale of an attention layer, for `attend`: `1 / sqrt(head_dim (1 + terms))`, of all its scores.

  >>> ones = lambda *shape: {"kernel": jnp.ones(shape)}
  >>> made = bias_and_scale({"query": ones(8, 8), "key": ones(8, 8)}, Disentangled(span=2), jnp.ones((1, 3, 2, 4)),
  ...                       jnp.ones((1, 3, 2, 4)), jnp.ones((4, 8)))
  >>> made["bias"].shape, round(made["scale"], 3)
  ((1, 2, 3, 3), 0.289)

  Args:
    params: of the layer's attention: `position_key` and `position_query`, or where shared `key` and `query`.
    kind: which terms there are.
    query, key: of the tokens.
    table: a vector of each distance, the same in all layers.
  """
  if table.ndim != 2:
    raise ValueError(f"table must be an array [distances, dim]; got one of shape {list(table.shape)}")
  heads = lambda name: linear(table.astype(query.dtype), params[name]).reshape(-1, *query.shape[2:])
  own = "" if kind.shared else "position_"
  position_key = heads(f"{own}key") if kind.content_to_position else None
  position_query = heads(f"{own}query") if kind.position_to_content else None
  scale = (query.shape[-1] * (1 + kind.content_to_position + kind.position_to_content)) ** -0.5
  rows = signed_buckets(query.shape[1], kind)
  return {"bias": scale * disentangled_scores(query, key, rows, position_key, position_query), "scale": scale}
