"""The depth of a leaf, for layers that are unrolled, stacked along a leading axis, or stacked in several cuts.

Three spellings of the same layers, all read by `layer_of`:

    layers/3/mlp/up/kernel      [in, out]         one layer (also `layers_3`, `blocks.3`, `h/3`)
    layers/mlp/up/kernel        [L, in, out]      all layers, stacked
    layers/4:8/mlp/up/kernel    [4, in, out]      layers 4 to 7, stacked: a stack that was cut
"""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import numpy as np

from jaxft.tree.paths import Tree, fold_in_path, leaves_with_paths, map_with_path

STACKS = ("layers", "layer", "blocks", "block", "h")
_PIECE = re.compile(r"\d+(:\d+)?")  # the name of a layer of its own, or of a piece of a stack that was cut


def _locate(path: str, stacks: Sequence[str]) -> tuple[str, str, str] | None:
  """Splits a path at its stack: `(stack, index, rest)`; index is '' for a stacked leaf, None outside any stack."""
  names = "|".join(map(re.escape, stacks))
  found = re.search(rf"(?:^|(?<=/))((?:[^/]+/)*?(?:{names}))(?:[/_.](\d+(?::\d+)?))?(?:/(.*))?$", path)
  if found is None or (found[2] is None and found[3] is None):
    return None
  return found[1], found[2] or "", found[3] or ""


def layer_of(path: str, leaf: Any, *, stacks: Sequence[str] = STACKS) -> int | np.ndarray | None:
  """The layer that a leaf belongs to.

  >>> layer_of("layers/3/w", np.ones(2)), layer_of("layers/w", np.ones((3, 2))), layer_of("head/w", np.ones(2))
  (3, array([0, 1, 2]), None)

  Args:
    path: the leaf's path.
    leaf: the leaf; only its shape is read, and only where layers are stacked.
    stacks: names of the path part that holds the layers.

  Returns:
    An int for one layer, the vector of layer indices along the leading axis for stacked layers, None outside a stack.

  Raises:
    ValueError: a leaf of stacked layers has no axis.
  """
  found = _locate(path, stacks)
  if found is None:
    return None
  _, index, _ = found
  if ":" in index:
    start, stop = map(int, index.split(":"))
    return np.arange(start, stop)
  if index:
    return int(index)
  if not leaf.shape:
    raise ValueError(f"{path} lies under {found[0]} and must have a leading axis, its layers; it has shape ()")
  return np.arange(leaf.shape[0])


def layer_axes(path: str, leaf: Any, *, stacks: Sequence[str] = STACKS) -> int:
  """How many leading axes of a leaf are over layers: 1 where its layers are stacked, else 0.

  >>> layer_axes("layers/w", np.ones((3, 2))), layer_axes("layers/3/w", np.ones(2))
  (1, 0)
  """
  return int(isinstance(layer_of(path, leaf, stacks=stacks), np.ndarray))


def shared_path(path: str, *, stacks: Sequence[str] = STACKS) -> str:
  """The path without its layer: `layers/3/mlp/w` and a stacked `layers/mlp/w` are both `layers/*/mlp/w`.

  >>> shared_path("layers/3/mlp/w"), shared_path("embed/w")
  ('layers/*/mlp/w', 'embed/w')
  """
  found = _locate(path, stacks)
  return path if found is None else f"{found[0]}/*/{found[2]}"


def leaf_keys(key: jax.Array, path: str, leaf: Any, *, stacks: Sequence[str] = STACKS) -> jax.Array:
  """A random key for a leaf: one, or a vector of one per layer where layers are stacked.

  Folded from the path and the layer index, so that a stacked leaf and its unrolled layers draw the same numbers.

  >>> leaf_keys(jax.random.key(0), "layers/w", np.ones((3, 2))).shape
  (3,)
  """
  layer = layer_of(path, leaf, stacks=stacks)
  key = fold_in_path(key, shared_path(path, stacks=stacks))
  if layer is None:
    return key
  if isinstance(layer, int):
    return jax.random.fold_in(key, layer)
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(np.asarray(layer, np.uint32))


def num_layers(tree: Tree, *, layer_of: Callable[[str, Any], int | np.ndarray | None] = layer_of) -> int:
  """The number of layers in a params tree: one more than the largest layer index, 0 where no leaf is in a layer.

  >>> num_layers({"layers": {"w": np.ones((3, 2))}, "head": np.ones(2)})
  3
  """
  layers = [layer_of(path, leaf) for path, leaf in leaves_with_paths(tree) if leaf is not None]
  return max((int(np.max(layer)) + 1 for layer in layers if layer is not None), default=0)


def stack_of(path: str, *, stacks: Sequence[str] = STACKS) -> str | None:
  """The path of the stack that a leaf lies in, of which a model of two towers has two; None outside any.

  >>> stack_of("text/layers/3/w"), stack_of("vision/layers/w"), stack_of("head/w")
  ('text/layers', 'vision/layers', None)
  """
  found = _locate(path, stacks)
  return None if found is None else found[0]


def depths(tree: Tree, *, layer_of: Callable[[str, Any], int | np.ndarray | None] = layer_of) -> dict[str | None, int]:
  """The number of layers of each stack in a params tree, by the stack's path.

  >>> depths({"text": {"layers": {"w": np.ones((3, 2))}}, "vision": {"layers": {"w": np.ones((5, 2))}}})
  {'text/layers': 3, 'vision/layers': 5}

  Args:
    tree: the params; None where a leaf is missing.
    layer_of: the depth of a leaf; layers that it finds outside `STACKS` are one stack, None.
  """
  out: dict[str | None, int] = {}
  for path, leaf in leaves_with_paths(tree):
    layer = None if leaf is None else layer_of(path, leaf)
    if layer is not None:
      stack = stack_of(path)
      out[stack] = max(out.get(stack, 0), int(np.max(layer)) + 1)
  return out


def unstack_layers(params: Tree, *, stack: str = "layers") -> Tree:
  """`{'layers': {'w': [L, ...]}}` -> `{'layers': {'0': {'w': [...]}, '1': ...}}`, for a nested dict.

  >>> unstack_layers({"layers": {"w": np.array([[1], [2]])}})
  {'layers': {'0': {'w': array([1])}, '1': {'w': array([2])}}}

  Raises:
    ValueError: there is no such stack, its layers are unrolled or cut already, or its arrays have no one leading axis.
  """
  layers, n = _stacked(params, stack)
  return {**params, stack: {str(i): jax.tree.map(lambda x, i=i: x[i], layers) for i in range(n)}}


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
