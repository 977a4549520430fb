"""Rows of unit length on the host, as cosines by a product of matrices need them."""

import numpy as np
from jaxtyping import Float

from jaxft.signatures import AnyArray


def unit_rows(x: Float[AnyArray, "*rows dim"]) -> Float[np.ndarray, "*rows dim"]:
  """Each row divided by its length, on the host and in the dtype of `x`; a row of zeros stays one.

  Each row is divided by its largest entry first, so that no length overflows or vanishes. On device it is
  `jaxft.losses.contrastive.normalize`.

  >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
  array([[0.6, 0.8],
         [0. , 0. ]])
  """
  x = np.asarray(x)
  largest = np.max(np.abs(x), axis=-1, keepdims=True, initial=0)
  x = x / np.where(largest > 0, largest, 1)
  length = np.linalg.norm(x, axis=-1, keepdims=True)
  return x / np.where(length > 0, length, 1)
