"""Refitting the layers of a merged network: each maps merged features to merged features, by least squares."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jaxft.checks import in_range
from jaxft.finite import require_finite
from jaxft.merging.matching.partial_merge import MERGED, ONLY_A, Block
from jaxft.signatures import AnyArray, explain_errors


@dataclasses.dataclass(frozen=True)
class GramState:
  """Sums over the items seen so far, float64 on the host: all that least squares needs of the data.

  Attributes:
    zz: `Z^T Z` of the inputs with a column of ones last, `[in + 1, in + 1]`.
    zy: `Z^T Y`, `[in + 1, out]`.
  """

  zz: Float[np.ndarray, "columns columns"]
  zy: Float[np.ndarray, "columns out"]

  @classmethod
  def zero(cls, n_in: int, n_out: int) -> "GramState":
    return cls(np.zeros((n_in + 1, n_in + 1)), np.zeros((n_in + 1, n_out)))

  def add(self, inputs: Float[AnyArray, "items in"], outputs: Float[AnyArray, "items out"]) -> "GramState":
    """With more items; the order of batches does not matter but for rounding."""
    require_finite(inputs=inputs, outputs=outputs)
    z = np.asarray(inputs, np.float64)
    z = np.concatenate([z, np.ones((len(z), 1))], axis=1)
    return GramState(self.zz + z.T @ z, self.zy + z.T @ np.asarray(outputs, np.float64))


@explain_errors
def merged_features(
    block: Block | None, of_a: Float[AnyArray, "items units"], of_b: Float[AnyArray, "items units"]
) -> Float[np.ndarray, "items merged_units"]:
  """What the units of the merged network should compute: the mean of a pair, or a private unit's own.

  >>> block = Block(a=np.array([0, 1, -1]), b=np.array([1, -1, 0]))  # merged, only a's, only b's
  >>> merged_features(block, np.array([[1.0, 2.0]]), np.array([[30.0, 5.0]]))
  array([[ 3.,  2., 30.]])

  Args:
    block: the units of the merged network, of `partial_merge`; None where all pair up in order.
    of_a, of_b: what the units of each network compute on the same items.
  """
  x, y = np.asarray(of_a, np.float64), np.asarray(of_b, np.float64)
  if block is None:
    return (x + y) / 2
  kind, x, y = block.kind, x[:, block.entries("a")], y[:, block.entries("b")]
  return np.where(kind == MERGED, (x + y) / 2, np.where(kind == ONLY_A, x, y))


@explain_errors
def least_squares_merge(
    state: GramState, *, mask: Bool[np.ndarray, "in out"] | None = None, ridge: float = 1e-3, bias: bool = True
) -> tuple[Float[np.ndarray, "in out"], Float[np.ndarray, " out"]]:
  """The kernel and bias that map the inputs to the outputs with the least squared error.

      W = (G + ridge tr(G) / d I)^-1 Z^T Y,   over the entries that the mask allows

  >>> x = np.array([[0.0], [1.0], [2.0]])
  >>> kernel, bias = least_squares_merge(GramState.zero(1, 1).add(x, 2 * x + 1), ridge=0)
  >>> kernel.round(3), bias.round(3)
  (array([[2.]]), array([1.]))

  Args:
    state: sums over the data.
    mask: entries that may be nonzero (`allowed` of a partial merge); None all.
    ridge: relative to the mean of G's diagonal; it keeps dead units from making G singular. The bias is free of it.
    bias: whether there is one; else zeros are returned.

  Source: Nasery et al. 2024, PLeaS (arXiv 2407.02447), in closed form where the released code takes steps of Adam.
  """
  in_range("ridge", ridge, "[0, inf)")
  n_in, n_out = len(state.zz) - 1, state.zy.shape[1]
  mask = np.ones((n_in, n_out), bool) if mask is None else np.asarray(mask, bool)
  strength = np.append(np.full(n_in, ridge * np.trace(state.zz[:n_in, :n_in]) / n_in), 0.0)
  kernel = np.zeros((n_in + 1, n_out))
  patterns, owner = np.unique(mask.T, axis=0, return_inverse=True)
  for i, pattern in enumerate(patterns):  # outputs that may read the same inputs are solved together
    rows, columns = np.flatnonzero(np.append(pattern, bias)), np.flatnonzero(owner.reshape(-1) == i)
    gram = state.zz[np.ix_(rows, rows)] + np.diag(strength[rows])
    kernel[np.ix_(rows, columns)] = np.linalg.lstsq(gram, state.zy[np.ix_(rows, columns)], rcond=None)[0]
  return kernel[:n_in], kernel[n_in]


def squared_error(state: GramState, kernel: Any, bias: Any, total: float) -> float:
  """`|Z W + b - Y|^2` over all items, from the sums; `total` is `|Y|^2`."""
  w = np.concatenate([np.asarray(kernel, np.float64), np.asarray(bias, np.float64)[None]])
  return float(np.sum(w * (state.zz @ w)) - 2 * np.sum(w * state.zy) + total)
