"""Distances of positions in buckets, whose learned bias or vectors say in attention where a slot lies."""

import numpy as np
from jaxtyping import Int

from jaxft.signatures import explain_errors


@explain_errors
def relative_buckets(
    length: int, buckets: int, *, farthest: int = 128, causal: bool = False
) -> Int[np.ndarray, "length length"]:
  """T5's bucket of each pair of positions by how far and on which side of the query the slot lies; rows are queries.

  A half of the buckets is for slots after the query, unless there are none such. Of each half the first half has one
  distance each, the others are logarithmic up to `farthest`, beyond which all is one.

  >>> relative_buckets(4, 8)[1]
  array([1, 0, 5, 6])

  Args:
    length: positions.
    buckets: a multiple of 4; of 2 where causal.
    farthest: the distance from which on all slots of a side share the last bucket.
    causal: no query sees a slot after it: all buckets are for those before, and the slots after have bucket 0.

  Source: Raffel et al. 2019 (arXiv 1910.10683); Song et al. 2020, MPNet (arXiv 2004.09297).
  """
  position = np.arange(length)
  apart = position[None] - position[:, None]
  distance, half = (np.maximum(-apart, 0), buckets) if causal else (np.abs(apart), buckets // 2)
  exact = half // 2
  # In float32, as the source: elsewhere a power may fall on the other side of its edge.
  ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(np.log(farthest / exact))
  far = exact + (ratio * np.float32(half - exact)).astype(np.int32)
  side = 0 if causal else np.where(apart > 0, half, 0)
  return side + np.where(distance < exact, distance, np.minimum(far, half - 1))
