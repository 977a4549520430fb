"""The weights that an adapter file goes with, against those that stayed frozen: the same, or off by a thin product."""

from typing import Any

import ml_dtypes
import numpy as np

from jaxft.leaves.annotated import Annotated
from jaxft.leaves.materialize import materialize
from jaxft.tree.paths import Tree, is_structured, leaves_with_paths

# Of the change that an init made of the weights, what may be missing: products in TF32 leave 4e-4 of it.
TOLERANCE = 1e-3
OVERSAMPLED = 8

INSTEAD = (
    "; for an adapter that goes with the weights that stayed frozen, and with no others, pass frozen as params, and "
    "ship materialize(frozen) beside it")


def moved_leaves(frozen: Tree, params: Tree) -> dict[str, tuple[Any, Any]]:
  """`(frozen leaf, leaf of params)` by path, of those that stand for different arrays; what trains whole is left out.

  Raises:
    ValueError: the two differ in their leaves or in a shape.
  """
  held, base = dict(leaves_with_paths(frozen)), dict(leaves_with_paths(params))
  if strange := sorted(held.keys() ^ base.keys()):
    raise ValueError(f"params must have the leaves of frozen; only one of them has {', '.join(strange[:8])}")
  out = {}
  for path, leaf in held.items():
    leaf, other = _within(leaf), _within(base[path])
    if leaf is None or leaf is other:
      continue
    if other is None or tuple(other.shape) != tuple(leaf.shape):
      got = "a hole" if other is None else f"shape {tuple(other.shape)}"
      raise ValueError(f"params must have {path} in shape {tuple(leaf.shape)}; got {got}")
    if not np.array_equal(np.asarray(materialize(leaf)), np.asarray(materialize(other))):
      out[path] = leaf, other
  return out


def _within(leaf: Any) -> Any:
  return _within(leaf.w) if isinstance(leaf, Annotated) else leaf


def change_as_product(path: str, leaf: Any, other: Any, rank: int) -> tuple[np.ndarray, np.ndarray]:
  """`a [..., m, r], b [..., r, n]` with `other + a @ b = leaf`, r at most `rank`: what an init took off the weights.

  Found from the two alone, by a randomized decomposition (Halko et al. 2009, arXiv 0909.4061), which is exact for a
  matrix of that rank.

  Raises:
    ValueError: the difference is of no such rank, within the rounding of the weights and `TOLERANCE` of itself.
  """
  for x in (leaf, other):
    if is_structured(x):
      kind = type(x).__name__
      raise ValueError(f"{path}: the frozen weights differ from those of params, one being a {kind}{INSTEAD}")
  if leaf.dtype != other.dtype:
    raise ValueError(f"{path}: the frozen weights are of {leaf.dtype}, those of params of {other.dtype}{INSTEAD}")
  lead, shape = leaf.shape[:-2], leaf.shape[-2:]
  rank = min(rank, *shape)
  a, b = np.empty((*lead, shape[0], rank), np.float32), np.empty((*lead, rank, shape[1]), np.float32)
  for at in np.ndindex(lead):
    held, base = (np.asarray(x[at]).astype(np.float64) for x in (leaf, other))
    a[at], b[at] = _leading_product(held - base, rank)
    missing = np.linalg.norm(base + a[at].astype(np.float64) @ b[at] - held)
    rounding = ml_dtypes.finfo(leaf.dtype).eps / 2 * np.linalg.norm(held)
    if not missing <= TOLERANCE * np.linalg.norm(held - base) + rounding:
      part = missing / np.linalg.norm(held - base)
      raise ValueError(
          f"{path}: the frozen weights differ from those of params by what no product of rank {rank} gives, the best "
          f"missing {part:.1%} of it: no adapter of twice the rank for params computes what is computed here{INSTEAD}")
  return a, b


def _leading_product(x: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
  y = x @ np.random.default_rng(0).normal(size=(x.shape[1], min(rank + OVERSAMPLED, *x.shape)))
  for _ in range(2):
    y = x @ (x.T @ np.linalg.qr(y)[0])
  q = np.linalg.qr(y)[0]
  u, s, v = np.linalg.svd(q.T @ x, full_matrices=False)
  root = np.sqrt(s[:rank])
  return (q @ u[:, :rank]) * root, root[:, None] * v[:rank]
