"""Finding the permutation of one network's units that matches another's: by weights, or by activations."""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import jax
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float, Int

from jaxft.choices.random_modules import host_rng
from jaxft.finite import require_finite
from jaxft.merging.matching.permutations import (
  Permutations,
  Spec,
  apply_permutations,
  entries_of,
  group_sizes,
  identity,
)
from jaxft.signatures import explain_errors
from jaxft.tree.finite_leaves import check_finite
from jaxft.tree.paths import Tree, leaves_with_paths


class Matching(NamedTuple):
  """How the units of one network pair with another's.

  Attributes:
    permutations: `apply_permutations(permutations, spec, b)` has its units in the order of a's.
    scores: of each pair, `[units]`, higher is closer; what partial merging keeps apart first are the lowest.
  """

  permutations: dict[str, Int[np.ndarray, " _"]]
  scores: dict[str, Float[np.ndarray, " _"]]


@explain_errors
def match_weights(spec: Spec, a: Tree, b: Tree, *, key: Array, max_sweeps: int = 100) -> Matching:
  """Matches by the weights alone: the permutations of b that bring it nearest to a, one group after the other.

      maximize  sum over axes of a group  <unfold(a), unfold(b permuted)>,  by the Hungarian method, until nothing gains

  Coordinate ascent finds a local optimum; another key may find another.

  >>> a = {"fc1": {"kernel": np.array([[1.0, 2.0, 3.0]]), "bias": np.zeros(3)}, "fc2": {"kernel": np.ones((3, 1))}}
  >>> spec = mlp_spec(["fc1", "fc2"])
  >>> b = apply_permutations({"fc1": np.array([2, 0, 1])}, spec, a)
  >>> match_weights(spec, a, b, key=jax.random.key(0)).permutations  # which undoes it
  {'fc1': array([1, 2, 0])}

  Args:
    spec: what moves together.
    a, b: params of the same shapes, layers unrolled.
    key: concrete; draws the order of the groups in each sweep.
    max_sweeps: over all groups.

  Raises:
    ValueError: a or b holds NaN or infinity; see `group_sizes`.

  Source: Ainsworth et al. 2022, Git Re-Basin (arXiv 2209.04836).
  """
  check_finite({"a": a, "b": b})
  rng = host_rng(key)
  leaves_a = {path: np.asarray(x, np.float64) for path, x in leaves_with_paths(a) if x is not None}
  leaves_b = {path: np.asarray(x, np.float64) for path, x in leaves_with_paths(b) if x is not None}
  sizes, found = group_sizes(spec, a), identity(spec, b)
  if group_sizes(spec, b) != sizes:
    raise ValueError("a and b must have the same number of units in each group")

  def similarity(group: str) -> np.ndarray:
    out = np.zeros((sizes[group], sizes[group]))
    for path, axis, _ in spec.groups[group]:
      moved = leaves_b[path]
      for other, axes in spec.groups.items():
        for other_path, other_axis, other_unit in axes if other != group else ():
          if other_path == path:
            moved = np.take(moved, entries_of(found[other], other_unit), axis=other_axis)
      unfold = lambda x, axis=axis: np.moveaxis(x, axis, 0).reshape(sizes[group], -1)
      out += unfold(leaves_a[path]) @ unfold(moved).T
    return out

  for _ in range(max_sweeps):
    gained = False
    for group in rng.permutation(list(spec.groups)):
      score = similarity(group)
      _, better = scipy.optimize.linear_sum_assignment(score, maximize=True)
      rows = np.arange(sizes[group])
      if score[rows, better].sum() > score[rows, found[group]].sum() + 1e-12:
        found[group], gained = better, True
    if not gained:
      break
  pairs = {group: similarity(group)[np.arange(sizes[group]), found[group]] for group in spec.groups}
  return Matching(found, pairs)


Features = Mapping[str, Float[Array, "items _"]]


@explain_errors
def match_activations(
    batches: Iterable[tuple[Features, Features]], *, metric: Literal["distance", "inner"] = "distance"
) -> Matching:
  """Matches each group by what its units compute on the same inputs.

      score[i, j] = - sum over batches |z_i^A - z_j^B|        or    sum over batches <z_i^A, z_j^B>

  >>> of_a = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])  # [items, units]
  >>> of_b = jnp.array([[3.1, 1.1, 2.1], [6.1, 4.1, 5.1]])
  >>> match_activations([({"fc1": of_a}, {"fc1": of_b})]).permutations  # puts b's units in the order of a's
  {'fc1': array([1, 2, 0])}

  Args:
    batches: pairs of features of both networks, by group `[items, units]`; positions of a sequence count as items, and
      a head gives `[items, heads, head_dim]`.
    metric: see above.

  Raises:
    ValueError: no batch, an unknown metric, or features that differ in groups or shapes, or are not finite.

  Source: the activation matching of Nasery et al. 2024, PLeaS (arXiv 2407.02447), summed over all batches, where the
  released code keeps the last.
  """
  if metric not in ("distance", "inner"):
    raise ValueError(f"metric must be distance or inner; got {metric!r}")
  total: dict[str, np.ndarray] = {}
  for of_a, of_b in batches:
    if set(of_a) != set(of_b):
      raise ValueError(f"features must be of the same groups; got {sorted(of_a)} and {sorted(of_b)}")
    for group in of_a:
      x, y = (np.asarray(of[group], np.float64) for of in (of_a, of_b))
      if x.shape != y.shape:
        raise ValueError(f"features of {group} must have one shape; got {x.shape} and {y.shape}")
      require_finite(**{f"features of {group}": np.stack([x, y])})
      by_unit = lambda z: np.moveaxis(z, 1, 0).reshape(z.shape[1], -1)
      x, y = by_unit(x), by_unit(y)
      score = x @ y.T
      if metric == "distance":
        squares = np.sum(x * x, axis=1)[:, None] + np.sum(y * y, axis=1) - 2 * score
        score = -np.sqrt(np.maximum(squares, 0))
      total[group] = total.get(group, 0) + score
  if not total:
    raise ValueError("batches must hold at least one pair of features; got none")
  found, pairs = {}, {}
  for group, score in total.items():
    rows, found[group] = scipy.optimize.linear_sum_assignment(score, maximize=True)
    pairs[group] = score[rows, found[group]]
  return Matching(found, pairs)


@explain_errors
def rebasin(spec: Spec, a: Tree, b: Tree, permutations: Permutations) -> Tree:
  """The mean of a and the permuted b: Git Re-Basin.

  >>> a = {"fc1": {"kernel": jnp.array([[1.0, 3.0]]), "bias": jnp.zeros(2)}, "fc2": {"kernel": jnp.ones((2, 1))}}
  >>> b = {"fc1": {"kernel": jnp.array([[3.0, 1.0]]), "bias": jnp.zeros(2)}, "fc2": {"kernel": jnp.ones((2, 1))}}
  >>> spec = mlp_spec(["fc1", "fc2"])
  >>> rebasin(spec, a, b, {"fc1": np.array([1, 0])})["fc1"]["kernel"], rebasin(spec, a, b, {})["fc1"]["kernel"]
  (Array([[1., 3.]], dtype=float32), Array([[2., 2.]], dtype=float32))

  Args:
    spec: what moves together.
    a, b: params of the same shapes, layers unrolled.
    permutations: of b, as `match_weights` and `match_activations` find them; of some groups or all.

  Raises:
    ValueError: a or b holds NaN or infinity; see `apply_permutations`.

  Source: Ainsworth et al. 2022 (arXiv 2209.04836).
  """
  check_finite({"a": a, "b": b})
  moved = apply_permutations(permutations, spec, b)
  return jax.tree.map(lambda x, y: ((x.astype(np.float32) + y.astype(np.float32)) / 2).astype(x.dtype), a, moved)
