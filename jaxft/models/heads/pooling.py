"""One vector for each text of rows that hold several, row by row, so that rows may be embedded in chunks.

    embed = lambda params, rows, key: encoder.embed_segments(params, config, rows["ids"], rows["segment_ids"], slots)
    vectors = embed_cached(embed, params, rows, key, chunks=8)           jaxft.training: rows of few chunks at a time
    vectors = by_text(vectors, rows["segment_ids"], texts)
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxft.checks import one_of
from jaxft.models.attention import packed_positions
from jaxft.models.bounds import check_range
from jaxft.models.norms import unit_length
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def segment_vectors(
    hidden: Float[AnyArray, "rows time dim"],
    segment_ids: Int[AnyArray, "rows time"],
    slots: int,
    *,
    pooling: str = "mean",
    normalize: bool = True,
) -> Float[Array, "rows slots dim"]:
  """States to one float32 vector for each text of each row, in the order in which texts stand there.

  Args:
    hidden: the states of packed rows.
    segment_ids: which text a position belongs to; 0 at padding, a text without a gap.
    slots: the most texts of a row; what is left over is the zero vector.
    pooling: "mean" over the tokens of a text, or "cls", its first.
    normalize: scale vectors to unit length.

  Returns:
    The vectors. A row with more texts than slots is NaN where segment_ids are traced.

  Raises:
    ValueError: slots below 1 or, where segment_ids are not traced, below the texts of a row; an unknown pooling.

  Example:
    >>> hidden = jnp.array([[[1.0], [3.0], [5.0], [9.0]]])
    >>> segment_vectors(hidden, jnp.array([[7, 7, 2, 0]]), 3, normalize=False).tolist()
    [[[2.0], [5.0], [0.0]]]
  """
  one_of("pooling", pooling, ("mean", "cls"))
  slot, real = _slots(segment_ids), segment_ids > 0
  if slots < 1:
    raise ValueError(f"slots must be at least 1; got {slots}")
  check_range("the number of a text within its row of segment_ids", slot, real, slots, "slots being the most texts")
  counts = real if pooling == "mean" else real & (packed_positions(segment_ids) == 0)
  own = (slot[:, None] == jnp.arange(slots)[:, None]) & counts[:, None]
  weights = own.astype(jnp.float32)
  pooled = jnp.einsum("rst,rtd->rsd", weights, hidden.astype(jnp.float32))
  pooled = pooled / jnp.maximum(weights.sum(-1, keepdims=True), 1.0)
  fits = jnp.all((slot < slots) | ~real, axis=1)
  return jnp.where(fits[:, None, None], unit_length(pooled) if normalize else pooled, jnp.nan)


@check_arrays
def by_text(
    vectors: Float[AnyArray, "rows slots dim"], segment_ids: Int[AnyArray, "rows time"], texts: int
) -> Float[Array, "texts dim"]:
  """The vectors of `segment_vectors` in the order of the texts; text i is the segment i + 1.

  Args:
    vectors: one for each slot of each row.
    segment_ids: those that the vectors were made with.
    texts: how many there are. A text that no row holds gets the zero vector.

  Raises:
    ValueError: texts below 1.

  Example:
    >>> by_text(jnp.array([[[2.0], [5.0], [0.0]]]), jnp.array([[2, 2, 1, 0]]), 2).tolist()
    [[5.0], [2.0]]
  """
  if texts < 1:
    raise ValueError(f"texts must be at least 1; got {texts}")
  rows, slots, dim = vectors.shape
  # Where each text's vector lies, what no row holds lies at a zero past the end.
  slot, real = _slots(segment_ids), segment_ids > 0
  place = jnp.where(real, jnp.arange(rows)[:, None] * slots + slot, rows * slots)
  of_text = jnp.full(texts + 1, rows * slots).at[segment_ids.reshape(-1)].set(place.reshape(-1))[1:]
  return jnp.pad(vectors.reshape(-1, dim), ((0, 1), (0, 0)))[of_text]


def _slots(segment_ids: Int[AnyArray, "rows time"]) -> Int[Array, "rows time"]:
  """How many texts begin before a position's own in its row; means nothing at padding."""
  before = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)))
  return jnp.cumsum((segment_ids != before) & (segment_ids > 0), axis=1) - 1
