"""Sparser task vectors: the trims of TIES, DARE, DELLA and breadcrumbs for themselves."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxft.merging.kernels import trims
from jaxft.merging.kernels.blocks import LeafMerge
from jaxft.merging.kernels.leafwise import Leafwise
from jaxft.merging.kernels.namespace import ArrayLike, float32
from jaxft.merging.kernels.random_bits import stream
from jaxft.merging.task_vector_merges import keep_largest, seed_of
from jaxft.merging.trees import merge_trees
from jaxft.signatures import explain_errors
from jaxft.tree.depth import shared_path
from jaxft.tree.finite_leaves import check_finite
from jaxft.tree.paths import Tree, is_leaf

BY = {"magnitude": trims.by_magnitude, "random": trims.at_random, "rank": trims.by_rank, "band": trims.band}
# The first is the one taken where none is given.
SCOPES = {"magnitude": ("leaf", "row", "global"), "random": ("leaf",), "rank": ("row",), "band": ("leaf", "row")}


@explain_errors
def trim(
    delta: Tree, density: float, *, by: Literal["magnitude", "random", "rank", "band"] = "magnitude",
    scope: Literal["leaf", "row", "global"] | None = None,
    rescale: Literal["inverse_probability", "l1"] | None = None, key: Any = None, epsilon: float = 0.15,
    gamma: float = 0.01, axis: int = -1,
) -> Tree:
  """A task vector with a share of its entries, zero elsewhere.

  >>> delta = {"w": jnp.array([6.0, -2.0, 1.0, -1.0])}
  >>> trim(delta, 0.5)
  {'w': Array([ 6., -2.,  0.,  0.], dtype=float32)}
  >>> trim(delta, 0.5, rescale="l1")  # by 10 / 8
  {'w': Array([ 7.5, -2.5,  0. ,  0. ], dtype=float32)}
  >>> trim(delta, 0.5, by="band", gamma=0.25)  # without the largest
  {'w': Array([ 0., -2.,  0., -1.], dtype=float32)}

  Args:
    delta: a task vector; holes stay.
    density: the share kept, in [0, 1]; of what is chosen at random, the probability.
    by: `magnitude` keeps the largest; `random` any; `rank` draws with a probability that grows with the rank of the
      magnitude in its row; `band` drops the share `gamma` of the largest first.
    scope: what is ranked together: a leaf (a layer, where layers are stacked), a row, all leaves. None takes the leaf,
      and the row for `rank`.
    rescale: what stays by the inverse of its probability (`random` and `rank`), or to the L1 norm of the leaf.
    key: for `random` and `rank`: a key of JAX, or an integer.
    epsilon: of `rank`: probabilities run from `density - epsilon` to `density + epsilon`.
    gamma: of `band`, which keeps `int(density * n)` of n entries, and so none of a leaf of one.
    axis: along which a row runs.

  Raises:
    ValueError: density is outside [0, 1], by is unknown or does not go with scope or rescale, key is missing, or
      epsilon or gamma is out of range, or a leaf of delta that is not traced holds NaN or infinity.
  """
  trims.check_density(density)
  check_finite({"delta": delta})
  if by not in BY:
    raise ValueError(f"by must be one of {', '.join(BY)}; got {by!r}")
  scope = scope or SCOPES[by][0]
  random = by in ("random", "rank")
  if scope not in SCOPES[by]:
    raise ValueError(f"scope must be {' or '.join(SCOPES[by])} where by is {by!r}; got {scope!r}")
  if rescale not in (None, "l1", "inverse_probability") or rescale == "inverse_probability" and not random:
    takes = f"None, l1{' or inverse_probability' * random}"
    raise ValueError(f"rescale must be {takes} where by is {by!r}; got {rescale!r}")
  if random and key is None:
    raise ValueError(f"key must be given where by is {by!r}")
  if scope == "global":
    if rescale is not None:
      raise ValueError(f"rescale must be None where scope is global; got {rescale!r}")
    zeros = jax.tree.map(lambda d: None if d is None else jnp.zeros_like(d), delta, is_leaf=is_leaf)
    cut = keep_largest(delta, zeros, density)
    return jax.tree.map(lambda c, d: None if d is None else c.astype(d.dtype), cut, delta, is_leaf=is_leaf)

  settings: dict[str, Any] = {"density": float(density), "rescale": rescale}
  if by == "rank":
    trims.check_epsilon(density, epsilon)
    settings["epsilon"] = float(epsilon)
  elif by == "band":
    trims.check_gamma(gamma)
    settings["gamma"] = float(gamma)
  if by in ("magnitude", "band"):
    settings["rows"] = scope == "row"
  whole = {"trim": BY[by], "axis": axis, "settings": settings}
  if not random:
    return merge_trees(TRIM, [delta], None, whole)
  return merge_trees(TRIM, [delta], None, lambda path, layer: whole | {
      "settings": settings | {"stream": stream(seed_of(key), shared_path(path), 0, layer)}})


def _trimmed(models: Sequence[ArrayLike], base: None, *, trim: Any, settings: dict[str, Any]) -> LeafMerge:
  made = trim(models[0], base, **settings)
  return LeafMerge(lambda start, models, base: made.apply(start, float32(models[0])), made.rows)


TRIM = Leafwise(_trimmed)
