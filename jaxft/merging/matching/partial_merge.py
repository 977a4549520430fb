"""Partial merging: units that match are merged, the others stand side by side, at any size between one and two models.

In each group the k best pairs of units are merged and the other d - k of both networks kept, in the order

    [ merged: k | only a: d - k | only b: d - k ]                                                    of 2 d - k units

A private unit reads the merged ones at full strength and those of the other network not at all; a merged unit takes
half of what private ones give it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from jaxft.checks import in_range
from jaxft.merging.matching.permutations import Spec, entries_of, group_sizes
from jaxft.merging.matching.rebasin import Matching
from jaxft.signatures import explain_errors
from jaxft.tree.finite_leaves import check_finite
from jaxft.tree.paths import Tree, leaves_with_paths, map_with_path

MERGED, ONLY_A, ONLY_B = 0, 1, 2


class Block(NamedTuple):
  """The units of one group or axis in the merged network, and where they come from.

  Attributes:
    a, b: for each unit of the result the unit of a and of b that it is made of; -1 where it is none of that network's.
    unit: entries of a unit.
  """

  a: Int[np.ndarray, " units"]
  b: Int[np.ndarray, " units"]
  unit: int = 1

  @property
  def kind(self) -> Int[np.ndarray, " entries"]:
    """MERGED, ONLY_A or ONLY_B for each entry."""
    return np.repeat(np.where(self.b < 0, ONLY_A, np.where(self.a < 0, ONLY_B, MERGED)), self.unit)

  def entries(self, which: str) -> Int[np.ndarray, " entries"]:
    """For each entry of the result that of network "a" or "b"; those of none point at entry 0."""
    return entries_of(np.maximum(getattr(self, which), 0), self.unit)


def _check_ratios(spec: Spec, ratios: Mapping[str, float] | float) -> dict[str, float]:
  ratios = ratios if isinstance(ratios, Mapping) else dict.fromkeys(spec.groups, ratios)
  if set(ratios) != set(spec.groups) or not all(0 <= r <= 1 for r in ratios.values()):
    raise ValueError(
        f"ratios must lie in [0, 1], one for all groups or for each of {', '.join(spec.groups)}; got {ratios}")
  return {group: float(r) for group, r in ratios.items()}


@explain_errors
def partial_merge(
    spec: Spec, a: Tree, b: Tree, matching: Matching, ratios: Mapping[str, float] | float, *,
    outputs: str = "average",
) -> tuple[Tree, dict[tuple[str, int], Block]]:
  """Merges the best matching units of two networks and keeps the others of both.

  >>> a = {"fc1": {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.zeros(2)}, "fc2": {"kernel": jnp.ones((2, 1))}}
  >>> b = {"fc1": {"kernel": jnp.array([[1.5, 9.0]]), "bias": jnp.zeros(2)}, "fc2": {"kernel": jnp.ones((2, 1))}}
  >>> matching = match_activations([({"fc1": a["fc1"]["kernel"]}, {"fc1": b["fc1"]["kernel"]})])
  >>> merged, _ = partial_merge(mlp_spec(["fc1", "fc2"]), a, b, matching, 0.5)
  >>> merged["fc1"]["kernel"]  # the nearest pair merged, then a's other unit, then b's
  Array([[1.25, 2.  , 9.  ]], dtype=float32)

  Args:
    spec: what moves together; see `permutations`.
    a, b: params of the same shapes, layers unrolled; leaves of one or two axes.
    matching: of `match_weights` or `match_activations`.
    ratios: the share of units kept apart, 0 merges all and 1 none: for all groups, or for each.
    outputs: `average` those of both networks, or keep `both`, a's and then b's: for other labels.

  Returns:
    The params of the merged network, and the blocks of each leaf's axes, by path and axis, that are permuted or kept
    apart; what `least_squares_merge` needs.

  Raises:
    ValueError: ratios outside [0, 1] or not of all groups, an unknown `outputs`, a leaf of three axes that a group has,
      or NaN or infinity in a or b.

  Source: Nasery et al. 2024, PLeaS (arXiv 2407.02447). There a ratio of 1 still merges one pair; here the number of
  merged units is `round((1 - ratio) d)`. Where a normalization runs over a group (the residual stream of a
  transformer), only ratios 0 and 1 keep its statistics.
  """
  if outputs not in ("average", "both"):
    raise ValueError(f"outputs must be average or both; got {outputs!r}")
  ratios, sizes = _check_ratios(spec, ratios), group_sizes(spec, a)
  check_finite({"a": a, "b": b})
  blocks: dict[tuple[str, int], Block] = {}
  for group, axes in spec.groups.items():
    d, order = sizes[group], np.argsort(-matching.scores[group], kind="stable")
    kept = int(np.floor((1 - ratios[group]) * d + 0.5))
    merged, apart = np.sort(order[:kept]), np.sort(order[kept:])
    pair, none = np.asarray(matching.permutations[group]), np.full(len(apart), -1)
    units = np.concatenate([merged, apart, none]), np.concatenate([pair[merged], none, pair[apart]])
    blocks |= {(path, axis): Block(*units, unit) for path, axis, unit in axes}
  leaves = dict(leaves_with_paths(a))
  for path, axis, _ in spec.outputs if outputs == "both" else ():
    whole = np.arange(leaves[path].shape[axis])
    blocks[path, axis] = Block(
        np.concatenate([whole, np.full_like(whole, -1)]), np.concatenate([np.full_like(whole, -1), whole]))

  def merge(path: str, of_a: Any, of_b: Any) -> Any:
    held = [blocks.get((path, axis)) for axis in range(of_a.ndim)]
    if any(held) and of_a.ndim > 2:
      raise ValueError(f"{path} {tuple(of_a.shape)} must have one or two axes to be merged in part")
    take = lambda x, which: _take(jnp.asarray(x, jnp.float32), held, which)
    x, y = take(of_a, "a"), take(of_b, "b")
    kinds = [np.zeros(n, int) if block is None else block.kind for block, n in zip(held, of_a.shape, strict=True)]
    share_a, share_b = (_share(kinds, mine, other) for mine, other in ((ONLY_A, ONLY_B), (ONLY_B, ONLY_A)))
    return (share_a * x + share_b * y).astype(of_a.dtype)

  return map_with_path(merge, a, b), blocks


def _take(x: Any, held: list[Block | None], which: str) -> Any:
  for axis, block in enumerate(held):
    if block is not None:
      x = jnp.take(x, block.entries(which), axis=axis)
  return x


def _share(kinds: list[np.ndarray], mine: int, other: int) -> np.ndarray:
  """With what factor one network's entries enter; `kinds` of the axes, for a matrix `[in, out]`."""
  shares = [np.where(kind == other, 0.0, np.where(kind == mine, 1.0, 0.5)) for kind in kinds]
  if len(shares) == 1:
    return shares[0].astype(np.float32)
  rows, columns = shares
  # An output of its own reads at full strength; a merged one takes half of what it reads.
  return ((rows > 0)[:, None] * columns[None, :]).astype(np.float32)


def allowed(rows: Block | None, columns: Block | None, shape: tuple[int, int]) -> Bool[np.ndarray, "in out"]:
  """Where a matrix of the merged network may be nonzero: not from one network's own units to the other's."""
  kind = lambda block, n: np.zeros(n, int) if block is None else block.kind
  r, c = kind(rows, shape[0])[:, None], kind(columns, shape[1])[None, :]
  return ~(((r == ONLY_A) & (c == ONLY_B)) | ((r == ONLY_B) & (c == ONLY_A)))


@explain_errors
def merge_flops(spec: Spec, params: Tree, ratios: Mapping[str, float] | float) -> float:
  """Multiply-adds of the merged network's leaves for one input, over those of one network.

      matrix: (1 + r_in)(1 + r_out) - 2 r_in r_out  of its own,   vector: 1 + r

  >>> params = {"fc1": {"kernel": np.ones((2, 8)), "bias": np.ones(8)}, "fc2": {"kernel": np.ones((8, 2))}}
  >>> [merge_flops(mlp_spec(["fc1", "fc2"]), params, ratio) for ratio in (0.0, 0.5, 1.0)]
  [1.0, 1.5, 2.0]

  Args:
    spec, ratios: see `partial_merge`; the two blocks that are zero are not counted.
    params: of one network, arrays or shapes.
  """
  ratios = _check_ratios(spec, ratios)
  owner = {(axis.path, axis.axis): ratios[group] for group, axes in spec.groups.items() for axis in axes}
  total = merged = 0.0
  for path, leaf in leaves_with_paths(params):
    if leaf is None or leaf.ndim > 2:
      continue
    r = [owner.get((path, axis), 0.0) for axis in range(leaf.ndim)]
    factor = (1 + r[0]) * (1 + r[1]) - 2 * r[0] * r[1] if leaf.ndim == 2 else 1 + sum(r)
    total, merged = total + leaf.size, merged + leaf.size * factor
  return merged / total


@explain_errors
def choose_ratios(
    spec: Spec, params: Tree, budget: float, *, gains: Mapping[str, float], steps: int = 10
) -> dict[str, float]:
  """Ratios for a budget of multiply-adds, greedily: the next step goes to the group with the most gain for its cost.

  >>> params = {f"fc{i}": {"kernel": np.ones((4, 4)), "bias": np.ones(4)} for i in (1, 2, 3)}
  >>> gains = {"fc1": 2.0, "fc2": 1.0}
  >>> choose_ratios(mlp_spec(["fc1", "fc2", "fc3"]), params, 1.4, gains=gains, steps=2)  # a step costs 0.3
  {'fc1': 0.5, 'fc2': 0.0}

  Args:
    spec, params: see `merge_flops`.
    budget: of the merged network, over one network's: 1 merges all.
    gains: of keeping each group apart, such as the accuracy it wins on validation data.
    steps: in which a ratio grows from 0 to 1.

  Raises:
    ValueError: budget below 1, or gains of other groups.

  Source: the objective of PLeaS, which solves it as a quadratic program; its solver is not needed for a few groups.
  """
  in_range("steps", steps, "[1, inf)")
  if budget < 1 or set(gains) != set(spec.groups):
    raise ValueError(f"budget must be at least 1 and gains name each group; got {budget} and {sorted(gains)}")
  ratios = dict.fromkeys(spec.groups, 0.0)
  while True:
    now, best = merge_flops(spec, params, ratios), None
    for group in ratios:
      raised = ratios | {group: min(1.0, round(ratios[group] + 1 / steps, 9))}
      cost = merge_flops(spec, params, raised)
      if raised[group] == ratios[group] or cost > budget + 1e-9 or gains[group] <= 0:
        continue
      rate = gains[group] / max(cost - now, 1e-12)
      if best is None or rate > best[0]:
        best = rate, raised
    if best is None:
      return ratios
    ratios = best[1]
