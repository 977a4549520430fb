"""Permutation symmetries of a network: which axes of which leaves move together without changing what it computes.

A *group* is a set of axes, all of one number of units, that one permutation may reorder. A unit is a run of entries
along the axis: one channel, or all of a head. A permutation is an index array: unit i of the result is unit
`permutation[i]` of what was given. Layers must be unrolled (`jaxft.tree.unstack_layers`), for each has its own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxft.signatures import explain_errors
from jaxft.tree.paths import Tree, leaves_with_paths, map_with_path


class Axis(NamedTuple):
  """One axis of a leaf, in units of `unit` entries."""

  path: str
  axis: int
  unit: int = 1


class Spec(NamedTuple):
  """The permutable axes of a network.

  Attributes:
    groups: by name.
    outputs: axes that hold what the network returns; never permuted.
  """

  groups: Mapping[str, tuple[Axis, ...]]
  outputs: tuple[Axis, ...] = ()


Permutations = Mapping[str, Int[np.ndarray, " _"]]


@explain_errors
def mlp_spec(layers: Sequence[str]) -> Spec:
  """The hidden units of a multilayer perceptron.

  >>> for group, axes in mlp_spec(["fc1", "fc2"]).groups.items():
  ...   print(group, [(path, axis) for path, axis, _ in axes])
  fc1 [('fc1/kernel', 1), ('fc1/bias', 0), ('fc2/kernel', 0)]

  Args:
    layers: paths of its layers from input to output, each with a `kernel [in, out]` and a `bias`.
  """
  groups = {
      name: (Axis(f"{name}/kernel", 1), Axis(f"{name}/bias", 0), Axis(f"{after}/kernel", 0))
      for name, after in pairwise(layers)
  }
  return Spec(groups, (Axis(f"{layers[-1]}/kernel", 1), Axis(f"{layers[-1]}/bias", 0)))


@explain_errors
def transformer_spec(params: Tree, *, num_kv_heads: int, stream: bool = True) -> Spec:
  """The symmetries of this library's decoders and encoders.

  For each layer the channels of the MLP (`gate` and `up` with `down`), and the key heads with the query heads that they
  serve. Inside a head nothing moves, as rotary positions pair its entries; of MPNet no head does, as all layers share
  one bias of the heads' scores. The residual stream is one group over all layers.

  >>> params = {"layers": {"0": {"mlp": {"up": {"kernel": np.ones((4, 8))}, "down": {"kernel": np.ones((8, 4))}}}}}
  >>> for group, axes in transformer_spec(params, num_kv_heads=2).groups.items():
  ...   print(group, [(path, axis) for path, axis, _ in axes])
  layers/0/mlp [('layers/0/mlp/up/kernel', 1), ('layers/0/mlp/down/kernel', 0)]
  stream [('layers/0/mlp/up/kernel', 0), ('layers/0/mlp/down/kernel', 1)]

  Args:
    params: unrolled layers; arrays or shapes.
    num_kv_heads: of each layer; of an encoder its number of heads.
    stream: whether the residual stream is a group.

  Raises:
    ValueError: the layers are stacked.

  Source: our derivation from Ainsworth et al. 2022 (arXiv 2209.04836); the code of PLeaS has no attention.
  """
  leaves = {path: leaf for path, leaf in leaves_with_paths(params) if leaf is not None}
  layers = sorted({path.split("/")[1] for path in leaves if path.startswith("layers/")})
  if not all(name.isdigit() for name in layers):
    raise ValueError("params must have unrolled layers, layers/0/...; unroll them with unstack_layers")
  groups: dict[str, list[Axis]] = {}
  heads = "relative/embedding" not in leaves

  def add(group: str, path: str, axis: int, units: int | None = None) -> None:
    if path in leaves:
      unit = 1 if units is None else leaves[path].shape[axis] // units
      groups.setdefault(group, []).append(Axis(path, axis, unit))

  for layer in layers:
    at = f"layers/{layer}"
    for name in ("gate", "up"):
      add(f"{at}/mlp", f"{at}/mlp/{name}/kernel", 1)
      add(f"{at}/mlp", f"{at}/mlp/{name}/bias", 0)
    add(f"{at}/mlp", f"{at}/mlp/down/kernel", 0)
    for name in ("query", "key", "value") if heads else ():
      add(f"{at}/heads", f"{at}/attention/{name}/kernel", 1, num_kv_heads)
      add(f"{at}/heads", f"{at}/attention/{name}/bias", 0, num_kv_heads)
    if heads:
      add(f"{at}/heads", f"{at}/attention/out/kernel", 0, num_kv_heads)
    if not stream:
      continue
    for name in ("attention/query", "attention/key", "attention/value", "mlp/gate", "mlp/up"):
      add("stream", f"{at}/{name}/kernel", 0)
    for name in ("attention/out", "mlp/down"):
      add("stream", f"{at}/{name}/kernel", 1)
      add("stream", f"{at}/{name}/bias", 0)
    for name in ("attention_norm", "mlp_norm"):
      for part in ("scale", "bias"):
        add("stream", f"{at}/{name}/{part}", 0)
  if stream:
    for name in ("tokens", "positions", "types"):
      add("stream", f"embed/{name}/embedding", 1)
    for norm in ("embed/norm", "norm"):
      for part in ("scale", "bias"):
        add("stream", f"{norm}/{part}", 0)
    add("stream", "head/kernel", 0)
  outputs = (Axis("head/kernel", 1),) if "head/kernel" in leaves else ()
  return Spec({name: tuple(axes) for name, axes in groups.items()}, outputs)


def group_sizes(spec: Spec, params: Tree) -> dict[str, int]:
  """The number of units of each group.

  Raises:
    ValueError: a leaf is missing, or the axes of a group disagree.
  """
  leaves = dict(leaves_with_paths(params))
  sizes: dict[str, int] = {}
  for group, axes in spec.groups.items():
    for path, axis, unit in axes:
      if path not in leaves:
        raise ValueError(f"spec names {path} in group {group}, which params lack")
      entries = leaves[path].shape[axis]
      if entries % unit or sizes.setdefault(group, entries // unit) != entries // unit:
        raise ValueError("params must fit the groups: "
                         f"group {group} has {sizes.get(group)} units, but axis {axis} of {path} has {entries} "
                         f"entries, units of {unit}")
  return sizes


def identity(spec: Spec, params: Tree) -> dict[str, Int[np.ndarray, " _"]]:
  """Permutations that change nothing."""
  return {group: np.arange(n) for group, n in group_sizes(spec, params).items()}


@explain_errors
def random_permutations(spec: Spec, params: Tree, rng: np.random.Generator) -> dict[str, Int[np.ndarray, " _"]]:
  """Permutations drawn at random.

  >>> params = {"fc1": {"kernel": np.ones((2, 4)), "bias": np.ones(4)}, "fc2": {"kernel": np.ones((4, 1))}}
  >>> random_permutations(mlp_spec(["fc1", "fc2"]), params, np.random.default_rng(0))
  {'fc1': array([2, 0, 1, 3])}

  Args:
    spec: what moves together.
    params: unrolled, arrays or shapes.
    rng: draws them, group by group.

  Raises:
    ValueError: see `group_sizes`.
  """
  return {group: rng.permutation(n) for group, n in group_sizes(spec, params).items()}


def inverse(permutations: Permutations) -> dict[str, Int[np.ndarray, " _"]]:
  """What undoes them."""
  return {group: np.argsort(p) for group, p in permutations.items()}


@explain_errors
def apply_permutations(permutations: Permutations, spec: Spec, params: Tree) -> Tree:
  """The same network with its units in another order.

  >>> params = {"fc1": {"kernel": np.array([[1, 2, 3]]), "bias": np.array([4, 5, 6])},
  ...           "fc2": {"kernel": np.array([[7], [8], [9]])}}
  >>> moved = apply_permutations({"fc1": np.array([2, 0, 1])}, mlp_spec(["fc1", "fc2"]), params)
  >>> moved["fc1"]["kernel"].tolist(), moved["fc1"]["bias"].tolist(), moved["fc2"]["kernel"].tolist()
  ([[3, 1, 2]], [6, 4, 5], [[9], [7], [8]])

  Args:
    permutations: of some groups or all; the others stay.
    spec: what moves together.
    params: unrolled.

  Raises:
    ValueError: see `group_sizes`, or what is given for a group is no permutation of its units.
  """
  sizes = group_sizes(spec, params)
  moves: dict[str, list[tuple[int, np.ndarray]]] = {}
  for group, permutation in permutations.items():
    permutation = np.asarray(permutation)
    if group not in sizes or sorted(permutation.tolist()) != list(range(sizes[group])):
      raise ValueError(f"permutations[{group!r}] must order the units 0..{sizes.get(group, 0) - 1}; got {permutation}")
    for path, axis, unit in spec.groups[group]:
      moves.setdefault(path, []).append((axis, entries_of(permutation, unit)))

  def move(path: str, leaf: Any) -> Any:
    for axis, index in moves.get(path, ()):
      leaf = jnp.take(leaf, index, axis=axis)
    return leaf

  return map_with_path(move, params)


def entries_of(units: Int[np.ndarray, " n"], unit: int) -> Int[np.ndarray, " entries"]:
  """The entries of units along an axis."""
  return (np.asarray(units)[:, None] * unit + np.arange(unit)).reshape(-1)


@explain_errors
def verify_spec(
    apply: Callable[[Tree], Array], params: Tree, spec: Spec, rng: np.random.Generator
) -> dict[str, float]:
  """How much a random permutation of each group alone changes what a network computes: 0 but for rounding where right.

  Every unit moves, so that no draw hides a wrong spec.

  >>> params = {"a": {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.array([-1.0, 2.0])},
  ...           "b": {"kernel": jnp.array([[1.0], [2.0]])}}
  >>> apply = lambda p: jnp.matmul(p["a"]["kernel"] + p["a"]["bias"], p["b"]["kernel"])
  >>> right = mlp_spec(["a", "b"])
  >>> wrong = Spec({"a": right.groups["a"][:2]})  # leaves out the next layer's inputs
  >>> [verify_spec(apply, params, spec, np.random.default_rng(3)) for spec in (right, wrong)]
  [{'a': 0.0}, {'a': 0.5}]

  Args:
    apply: `params -> outputs`.
    params: unrolled.
    spec: to verify.
    rng: draws the permutations.

  Returns:
    The largest change of an output, relative to the largest output, by group.

  Raises:
    ValueError: all outputs are 0 or one is not finite, so that there is nothing to compare; see `group_sizes`.
  """
  before = apply(params)
  largest = float(jnp.max(jnp.abs(before)))
  if not 0 < largest < math.inf:
    raise ValueError(f"apply must give finite outputs that are not all 0, to tell a change; their largest is {largest}")

  def change(group: str, size: int) -> float:
    order = rng.permutation(size)
    moved = np.empty_like(order)
    moved[order] = np.roll(order, 1)  # one cycle through all units
    after = apply(apply_permutations({group: moved}, spec, params))
    return float(jnp.max(jnp.abs(after - before))) / largest

  return {group: change(group, size) for group, size in group_sizes(spec, params).items()}
