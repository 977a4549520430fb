"""The depth of a leaf, for layers that are unrolled, stacked along a leading axis, or stacked in several cuts.

Three spellings of the same layers, all read by `layer_of`:

    layers/3/mlp/up/kernel      [in, out]         one layer (also `layers_3`, `blocks.3`, `h/3`)
    layers/mlp/up/kernel        [L, in, out]      all layers, stacked
    layers/4:8/mlp/up/kernel    [4, in, out]      layers 4 to 7, stacked: a stack that was cut

A part `experts` says that matrices are used side by side, stacked along an axis behind that of the layers:

    layers/moe/experts/up       [L, E, in, out]

Other models, whose stacks have other names or lie along other axes, are arranged so first: `jaxft.tree.axes_of`.
"""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import numpy as np

from jaxft.signatures import explain_errors
from jaxft.tree.paths import Tree, fold_in_path, is_array, leaves_with_paths, map_with_path

STACKS = ("layers", "layer", "blocks", "block", "h")  # with an index; without one, `layers` alone is a stack
EXPERTS = "experts"
_PIECE = re.compile(r"\d+(:\d+)?")  # the name of a layer of its own, or of a piece of a stack that was cut
# `block/query/kernel` may be one block, whose first axis is no layers: of the usual names, one alone needs no index.
_STACK = re.compile(
    rf"(?:^|(?<=/))((?:[^/]+/)*?(?:(?:{'|'.join(STACKS)})(?=[/_.]\d+(?::\d+)?(?:/|$))|{STACKS[0]}(?=/)))"
    r"(?:[/_.](\d+(?::\d+)?))?(?:/(.*))?$")


def _locate(path: str) -> tuple[str, str, str] | None:
  """Splits a path at its stack: `(stack, index, rest)`; index is '' for a stacked leaf, None outside any stack."""
  found = _STACK.search(path)
  if found is None or (found[2] is None and found[3] is None):
    return None
  return found[1], found[2] or "", found[3] or ""


@explain_errors
def layer_of(path: str, leaf: Any) -> int | np.ndarray | None:
  """The layer that a leaf belongs to.

  >>> layer_of("layers/3/w", np.ones(2)), layer_of("layers/w", np.ones((3, 2))), layer_of("head/w", np.ones(2))
  (3, array([0, 1, 2]), None)

  Args:
    path: the leaf's path.
    leaf: the leaf; only its shape is read, and only where layers are stacked.

  Returns:
    An int for one layer, the vector of layer indices along the leading axis for stacked layers, None outside a stack.

  Raises:
    ValueError: a leaf of stacked layers has no axis.
  """
  found = _locate(path)
  if found is None:
    return None
  _, index, _ = found
  if ":" in index:
    start, stop = map(int, index.split(":"))
    return np.arange(start, stop)
  if index:
    return int(index)
  if not leaf.shape:
    raise ValueError(f"the leaf {path} lies under {found[0]} and must have a leading axis, its layers; it has shape ()")
  return np.arange(leaf.shape[0])


@explain_errors
def layer_axes(path: str, leaf: Any) -> int:
  """How many leading axes of a leaf are over layers: 1 where its layers are stacked, else 0.

  >>> layer_axes("layers/w", np.ones((3, 2))), layer_axes("layers/3/w", np.ones(2))
  (1, 0)
  """
  return int(isinstance(layer_of(path, leaf), np.ndarray))


@explain_errors
def stack_axes(path: str, leaf: Any) -> int:
  """How many leading axes of a leaf are over layers or experts: it is a stack of what the others hold.

  >>> stack_axes("layers/moe/experts/up", np.ones((3, 8, 2, 2))), stack_axes("layers/w", np.ones((3, 2, 2)))
  (2, 1)
  """
  return layer_axes(path, leaf) + (EXPERTS in path.split("/"))


@explain_errors
def check_stacks(tree: Tree) -> None:
  """Raises ValueError where the leaves of a stack agree in their second axis and not in their first: it is scanned so.

  >>> check_stacks({"layers": {"up": np.ones((2, 4, 8)), "bias": np.ones((2, 8))}})
  """
  stacks: dict[str, list[tuple[str, Any]]] = {}
  for path, leaf in leaves_with_paths(tree):
    found = _locate(path) if is_array(leaf) else None
    if found is not None and not found[1]:
      stacks.setdefault(found[0], []).append((path, leaf))
  for stack, leaves in stacks.items():
    shapes = [tuple(leaf.shape) for _, leaf in leaves]
    if min(map(len, shapes)) < 2 or len({shape[1] for shape in shapes}) > 1 or len({shape[0] for shape in shapes}) == 1:
      continue
    # Of the layers of a stack some may have been taken elsewhere, so that first axes differ; they are short then.
    if min(shape[0] for shape in shapes) > shapes[0][1]:
      raise ValueError(
          f"{stack} must have its layers along the first axis of each leaf; they seem to lie along the second, of "
          f"{shapes[0][1]}: {', '.join(f'{path} {tuple(leaf.shape)}' for path, leaf in leaves[:3])}. Arrange the "
          "params by the function that uses them: jaxft.tree.axes_of(apply, params, *inputs)")


def shared_path(path: str) -> str:
  """The path without its layer: `layers/3/mlp/w` and a stacked `layers/mlp/w` are both `layers/*/mlp/w`.

  >>> shared_path("layers/3/mlp/w"), shared_path("embed/w")
  ('layers/*/mlp/w', 'embed/w')
  """
  found = _locate(path)
  return path if found is None else f"{found[0]}/*/{found[2]}"


@explain_errors
def leaf_keys(key: jax.Array, path: str, leaf: Any) -> jax.Array:
  """A random key for a leaf: one, or an array of one per layer, per expert, or both where they are stacked.

  Folded from the path and the layer index, so that a stacked leaf and its unrolled layers draw the same numbers.

  >>> leaf_keys(jax.random.key(0), "layers/w", np.ones((3, 2))).shape
  (3,)
  """
  layer = layer_of(path, leaf)
  key = fold_in_path(key, shared_path(path))
  each = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  if isinstance(layer, int):
    key = jax.random.fold_in(key, layer)
  elif layer is not None:
    key = each(key, np.asarray(layer, np.uint32))
  if EXPERTS not in path.split("/"):
    return key
  experts = np.arange(leaf.shape[key.ndim], dtype=np.uint32)
  return jax.vmap(each, in_axes=(0, None))(key, experts) if key.ndim else each(key, experts)


@explain_errors
def over_stack(f: Callable[..., Any], keys: jax.Array) -> Callable[..., Any]:
  """`f`, which acts on what one key of `leaf_keys` is for, on all: under `vmap` once for each axis of the keys.

  >>> keys = leaf_keys(jax.random.key(0), "layers/w", np.ones((3, 2)))
  >>> over_stack(lambda key, w: w * 2, keys)(keys, np.ones((3, 2))).shape
  (3, 2)
  """
  for _ in range(keys.ndim):
    f = jax.vmap(f)
  return f


@explain_errors
def stack_of(path: str) -> str | None:
  """The stack that a leaf's layer belongs to; None outside any stack.

  >>> stack_of("vision/layers/mlp/w"), stack_of("text/layers_3/w"), stack_of("head/w")
  ('vision/layers', 'text/layers', None)
  """
  found = _locate(path)
  return None if found is None else found[0]


@explain_errors
def stack_depths(tree: Tree) -> dict[str, int]:
  """The number of layers of each stack: one more than its largest layer index.

  >>> stack_depths({"vision": {"layers": {"w": np.ones((2, 3))}}, "text": {"layers": {"w": np.ones((4, 3))}}})
  {'text/layers': 4, 'vision/layers': 2}

  Raises:
    ValueError: a stack whose layers seem to lie along another axis than the first.
  """
  check_stacks(tree)
  depths: dict[str, int] = {}
  for path, leaf in leaves_with_paths(tree):
    layer = layer_of(path, leaf) if is_array(leaf) else None
    if layer is not None:
      stack = stack_of(path) or ""
      depths[stack] = max(depths.get(stack, 0), int(np.max(layer)) + 1)
  return depths


@explain_errors
def num_layers(tree: Tree) -> int:
  """The number of layers in a params tree, 0 where no leaf is in a layer.

  >>> num_layers({"layers": {"w": np.ones((3, 2))}, "head": np.ones(2)})
  3

  Raises:
    ValueError: stacks of unequal depth, which `stack_depths` tells apart; or what it raises.
  """
  depths = stack_depths(tree)
  if len(set(depths.values())) > 1:
    raise ValueError("params must have stacks of one depth here; they have " + ", ".join(
        f"{stack} of {n}" for stack, n in depths.items()) + ": give the part of the tree that one of them is in")
  return max(depths.values(), default=0)


@explain_errors
def unstack_layers(params: Tree, *, stack: str = "layers") -> Tree:
  """`{'layers': {'w': [L, ...]}}` -> `{'layers': {'0': {'w': [...]}, '1': ...}}`, for a nested dict.

  >>> unstack_layers({"layers": {"w": np.array([[1], [2]])}})
  {'layers': {'0': {'w': array([1])}, '1': {'w': array([2])}}}

  Raises:
    ValueError: there is no such stack, its layers are unrolled or cut already, or its arrays have no one leading axis.
  """
  layers, n = _stacked(params, stack)
  return {**params, stack: {str(i): jax.tree.map(lambda x, i=i: x[i], layers) for i in range(n)}}


@explain_errors
def stack_layers(params: Tree, *, stack: str = "layers") -> Tree:
  """The inverse of `unstack_layers`, also from a cut stack (`cut_layers`).

  >>> stack_layers({"layers": {"0": {"w": np.array([1])}, "1": {"w": np.array([2])}}})
  {'layers': {'w': Array([[1],
         [2]], dtype=int32)}}

  Raises:
    ValueError: there is no such stack, its layers are stacked already, one is missing, a piece holds other layers than
      its name says, or they differ in dtypes or leaves.
  """
  layers = _layers(params, stack)
  if not all(map(_PIECE.fullmatch, layers)):
    raise ValueError(f"params[{stack!r}] must hold layers or pieces of a stack, '0' or '0:2'; got {_names(layers)}")
  pieces, depth = [], 0
  for name in sorted(layers, key=lambda n: int(n.split(":")[0])):
    start, stop = map(int, name.split(":")) if ":" in name else (int(name), int(name) + 1)
    piece = layers[name] if ":" in name else jax.tree.map(lambda x: x[None], layers[name])
    held = {x.shape[0] for x in jax.tree.leaves(piece)} - {stop - start}
    if start != depth or held:
      what = f"layer {depth} is missing" if start != depth else f"{name!r} holds {held.pop()}"
      raise ValueError(f"params[{stack!r}] must hold all layers from 0 on; {what}, of {_names(layers)}")
    pieces.append(piece)
    depth = stop

  def join(path: str, *xs: Any) -> Any:
    if len(dtypes := {str(x.dtype) for x in xs if x is not None}) > 1:
      raise ValueError(f"params[{stack!r}] must hold layers of one dtype; {path} has {', '.join(sorted(dtypes))}")
    return None if xs[0] is None else jax.numpy.concatenate(xs)

  return {**params, stack: map_with_path(join, *pieces)}


@explain_errors
def cut_layers(params: Tree, at: Sequence[int], *, stack: str = "layers") -> Tree:
  """Cuts a stack in consecutive pieces, so that some can be frozen: a per-layer choice saves work only when cut.

      {'layers': {'w': [6, ...]}}, at=[2]  ->  {'layers': {'0:2': {'w': [2, ...]}, '2:6': {'w': [4, ...]}}}

  >>> cut_layers({"layers": {"w": np.arange(6)}}, at=[2])
  {'layers': {'0:2': {'w': array([0, 1])}, '2:6': {'w': array([2, 3, 4, 5])}}}

  Raises:
    ValueError: `at` is not strictly increasing inside (0, L); or the layers are not stacked, as in `unstack_layers`.
  """
  layers, n = _stacked(params, stack)
  bounds = [0, *at, n]
  if any(a >= b for a, b in pairwise(bounds)):
    raise ValueError(f"at must increase strictly inside (0, {n}); got {list(at)}")
  cut = {f"{a}:{b}": jax.tree.map(lambda x, a=a, b=b: x[a:b], layers) for a, b in pairwise(bounds)}
  return {**params, stack: cut}


def _layers(params: Tree, stack: str) -> Tree:
  if stack not in params:
    raise ValueError(f"params must have {stack!r}, which stack names; got {_names(params)}")
  return params[stack]


def _stacked(params: Tree, stack: str) -> tuple[Tree, int]:
  """The layers of a stack and how many there are."""
  layers = _layers(params, stack)
  if any(map(_PIECE.fullmatch, layers)):
    raise ValueError(
        f"params[{stack!r}] must hold one stack; got layers or pieces of it, {_names(layers)}: stack_layers joins them")
  lengths = {tuple(x.shape[:1]) for x in jax.tree.leaves(layers)}
  if len(lengths) != 1 or lengths == {()}:
    raise ValueError(
        f"params[{stack!r}] must hold arrays with one leading axis, the layers; got leading axes {sorted(lengths)}")
  return layers, lengths.pop()[0]


def _names(tree: Tree) -> str:
  return ", ".join(map(repr, list(tree)[:4]))
