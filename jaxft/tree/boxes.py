"""Trees as other libraries make them: weights in boxes, and leaves that are no weights.

A *box* is a node around one leaf that says something of it: Flax's `nn.Partitioned`, `nn.LogicallyPartitioned` and
every other `AxisMetadata`, and `nnx.Variable`. A transform sees what is in the boxes. What it makes of a leaf goes back
into boxes of the same kind, each around one array, with the names of the axes that this array has of the weight:

    params     Partitioned(W [4, 8], ('embed', 'mlp'))
    frozen     Partitioned(W [4, 8], ('embed', 'mlp'))
    trainable  {'a': Partitioned(a [4, 2], ('embed', None)), 'b': Partitioned(b [2, 8], (None, 'mlp'))}
    join(..)   Partitioned(LowRank(W, a, b), ('embed', 'mlp'))

so that `nn.get_partition_spec` and `nnx.get_partition_spec` are right of both sides. Where a frozen leaf is no array of
the weight's shape, a `Boxed` stands in its place, which remembers the box.

What is no weight stays frozen by itself, and no transform sees it: functions, strings and Python numbers, as an Equinox
module has them among its leaves, which are put in an `Aside`, so that the frozen side goes through `jax.jit`; and the
variables of `nnx` that a forward pass writes, random states, batch statistics, caches and intermediates.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from jaxft.tree.adapted import Followed, adapted, aligned
from jaxft.tree.paths import Tree, is_array, is_leaf, is_structured, path_of

_WRITTEN = {"RngState", "BatchStat", "Cache", "Intermediate"}
# How variables of nnx name the axes of their array, newest first.
_NAMES = ("out_sharding", "sharding_names", "sharding")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Aside:
  """Stands in a frozen tree for a leaf that is no array; to JAX it has no leaves."""

  leaf: Any


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Unseen:
  """Stands for a leaf that is no weight in what a transform sees, and in what trains; to JAX it has no leaves.

  Attributes:
    kind: its class, for errors.
  """

  kind: str


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Boxed:
  """Stands in a frozen tree for a boxed leaf that is no array of the weight's shape.

  Attributes:
    value: the leaf, a hole or structured, with a box around each of its arrays.
    form: the structure of the weight's own box.
  """

  value: Any
  form: Any = dataclasses.field(metadata={"static": True})


class _Opened(NamedTuple):
  """A box, the leaf in it, and its structure."""

  box: Any
  leaf: Any
  form: Any


def is_foreign(tree: Tree) -> bool:
  """Whether a tree has boxes, or leaves that are no weights and seen.

  >>> is_foreign({"up": np.ones(2), "down": None}), is_foreign({"act": jax.nn.relu})
  (False, True)
  """
  return any(_kept(x) or isinstance(x, Boxed) or _is_box(x) for x in jax.tree.leaves(tree, is_leaf=_stops))


def unboxed(tree: Tree) -> Tree:
  """A tree without its boxes.

  >>> import flax.linen as nn
  >>> unboxed({"kernel": nn.Partitioned(True, ("embed", "mlp"))})
  {'kernel': True}
  """
  return jax.tree.map(_content, tree, is_leaf=_stops)


def set_aside(tree: Tree) -> Tree:
  """A tree with each leaf that is no array in an `Aside`, so that it goes through `jax.jit` and onto devices.

  >>> set_aside({"up": np.ones(2), "activation": "relu"})
  {'activation': Aside(leaf='relu'), 'up': array([1., 1.])}
  """
  aside = lambda x: Aside(x) if _kept(x) and not isinstance(x, Aside) and not _is_variable(type(x)) else x
  return jax.tree.map(aside, tree, is_leaf=_stops)


def weights(tree: Tree) -> Tree:
  """What a transform sees of a tree: no boxes, and an `Unseen` for each leaf that is no weight.

  >>> weights({"up": jnp.ones(2), "activation": "relu"})
  {'activation': Unseen(kind='str'), 'up': Array([1., 1.], dtype=float32)}
  """
  return jax.tree.map(lambda x: Unseen(_kind(x)) if _kept(x) else _content(x), tree, is_leaf=_stops)


def put_aside(tree: Tree) -> list[tuple[str, str]]:
  """The path and the kind of each leaf that is no weight.

  >>> put_aside({"up": jnp.ones(2), "activation": jax.nn.relu, "rate": 0.1})
  [('activation', 'custom_jvp'), ('rate', 'float')]
  """
  stops = lambda x: _stops(x) or isinstance(x, Unseen)
  nodes = jax.tree_util.tree_flatten_with_path(tree, is_leaf=stops)[0]
  return [(path_of(keys), _kind(x)) for keys, x in nodes if _kept(x) or isinstance(x, Unseen)]


def boxed_frozen(frozen: Tree, params: Tree, follows: Tree) -> Tree:
  """The frozen side of `weights(params)` in the boxes of `params`, with its variables that are no weights put back.

  Args:
    frozen, params: see above.
    follows: for each array of `frozen` what `followed_axes` says, or None.
  """
  nodes, structure = jax.tree.flatten(params, is_leaf=_stops)

  def put(node: Any, leaf: Any, follows: Any) -> Any:
    if _kept(node):
      return node if _is_variable(type(node)) or isinstance(node, Aside) else Aside(node)
    opened = _open(node)
    if opened is None:
      return leaf
    if is_array(leaf) and not is_structured(leaf) and tuple(leaf.shape) == _shape(opened.leaf):
      return opened.form.unflatten([leaf])
    return Boxed(jax.tree.map(lambda x, of: _box(opened, x, of), leaf, follows), opened.form)

  return structure.unflatten(map(put, nodes, structure.flatten_up_to(frozen), structure.flatten_up_to(follows)))


def boxed_trainable(trainable: Tree, params: Tree, follows: Tree) -> Tree:
  """What trains in boxes like those of the weights in `params` that it adapts; what adapts none of them has no box."""
  known = {path_of(keys): opened for keys, node in jax.tree_util.tree_flatten_with_path(params, is_leaf=_stops)[0]
           if (opened := _open(node)) is not None and opened.leaf is not None}

  def put(keys: tuple[Any, ...], x: Any, follows: Any) -> Any:
    opened = adapted(path_of(keys), known)
    return x if opened is None else _box(opened, x, follows)

  return jax.tree_util.tree_map_with_path(put, trainable, follows)


def has_names(params: Tree) -> bool:
  """Whether a box of a tree names the axes of its array.

  >>> import flax.linen as nn
  >>> has_names({"kernel": nn.Partitioned(np.ones((2, 3)), ("embed", "mlp"))}), has_names({"kernel": np.ones((2, 3))})
  (True, False)
  """
  return any(_names(x) for x in jax.tree.leaves(params, is_leaf=_stops) if _is_box(x))


def boxes_by_path(tree: Tree) -> dict[str, Any]:
  """The boxes of a tree.

  >>> boxes_by_path({"kernel": np.ones((2, 3))})
  {}
  """
  nodes = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_stops)[0]
  return {path_of(keys): x for keys, x in nodes if _is_box(x) and _open(x) is not None}


def arranged_box(box: Any, x: Any, groups: Sequence[Sequence[int]]) -> Any:
  """An arranged leaf in a box like its own, given which axes each of its axes was made of.

  Of several that were made one, the first that is longer than 1 gives its name, which cuts both in the same places.

  >>> import flax.linen as nn
  >>> box = nn.Partitioned(np.ones((2, 4, 3)), ("embed", "heads", None))
  >>> arranged_box(box, np.ones((2, 12)), [(0,), (1, 2)]).names
  ('embed', 'heads')
  """
  opened = _open(box)
  assert opened is not None
  shape = _shape(opened.leaf)
  first = [next((axis for axis in group if shape[axis] > 1), None) for group in groups]
  pick = lambda names: [None if i is None or i >= len(names) else names[i] for i in first]
  return _reboxed(opened, x, {key: pick(names) for key, names in _names(box).items()})


def rebuilt(joined: Tree, frozen: Tree) -> Tree:
  """What a transform made of `weights(frozen)` as the params were: leaves in their boxes, with what was put aside."""
  nodes, structure = jax.tree.flatten(frozen, is_leaf=_stops)

  def put(node: Any, leaf: Any) -> Any:
    if _kept(node):
      return node.leaf if isinstance(node, Aside) else node
    form = node.form if isinstance(node, Boxed) else None if (opened := _open(node)) is None else opened.form
    return leaf if form is None else form.unflatten([leaf])

  return structure.unflatten(map(put, nodes, structure.flatten_up_to(joined)))


def check_shared(tree: Tree) -> None:
  """Raises ValueError where one variable of an nnx module is a leaf twice: its two copies would train apart."""
  seen: dict[int, str] = {}
  for keys, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=_stops)[0]:
    path = path_of(keys)
    if _is_variable(type(node)) and seen.setdefault(id(node), path) != path:
      raise ValueError(
          f"params must have each variable once; {seen[id(node)]} and {path} are the same {type(node).__name__}. "
          "graphdef, params = nnx.split(model) gives a State that has it once, and nnx.merge(graphdef, params) the "
          "module")


def _stops(x: Any) -> bool:
  return is_leaf(x) or isinstance(x, (Aside, Boxed)) or _is_box(x)


def _content(x: Any) -> Any:
  if isinstance(x, Boxed):
    return jax.tree.map(_content, x.value, is_leaf=_is_box)
  opened = _open(x)
  return x if opened is None else opened.leaf


def _kept(x: Any) -> bool:
  """Whether a node is put aside."""
  if x is None or is_structured(x) or isinstance(x, Boxed):
    return False
  return isinstance(x, Aside) or _is_written(type(x)) or not (is_array(x) or _is_box(x))


def _kind(x: Any) -> str:
  return x.kind if isinstance(x, Unseen) else type(x.leaf if isinstance(x, Aside) else x).__name__


def _is_box(x: Any) -> bool:
  return _is_variable(type(x)) or hasattr(type(x), "replace_boxed")


def _open(x: Any) -> _Opened | None:
  if not _is_box(x):
    return None
  leaves, form = jax.tree.flatten(x, is_leaf=lambda y: y is not x and is_leaf(y))
  return _Opened(x, leaves[0], form) if len(leaves) == 1 else None


def _box(opened: _Opened, x: Any, follows: Followed | None) -> Any:
  """A part of what was made of a leaf, in a box like the leaf's."""
  if not is_array(x):
    return x
  shape = _shape(opened.leaf)

  def inherited(names: tuple[Any, ...]) -> list[Any]:
    if follows is None:
      return aligned(tuple(x.shape), shape, names)
    names = names + (None,) * (len(shape) - len(names))
    return [names[k] if k is not None and k >= -len(shape) and n == shape[k] else None
            for n, k in zip(x.shape, follows, strict=True)]

  return _reboxed(opened, x, {key: inherited(names) for key, names in _names(opened.box).items()})


def _reboxed(opened: _Opened, x: Any, names: Mapping[str, Sequence[Any]]) -> Any:
  """Another array in a box of the same kind, with the names of its own axes."""
  said = {key: tuple(of) for key, of in names.items()}
  if said == _names(opened.box):
    return opened.form.unflatten([x])
  if _is_variable(type(opened.box)):
    return opened.box.replace(x, **said)
  return opened.box.replace_boxed(x).replace(**said)


def _names(box: Any) -> dict[str, tuple[Any, ...]]:
  """What a box says of the axes of its array, under the names under which it does."""
  said = box.get_metadata() if _is_variable(type(box)) else {"names": getattr(box, "names", None)}
  found = ((key, said.get(key)) for key in (*_NAMES, "names"))
  return {key: tuple(of) for key, of in found if isinstance(of, (tuple, PartitionSpec))}


def _shape(leaf: Any) -> tuple[int, ...]:
  return tuple(leaf.shape)


@lru_cache(1024)
def _is_variable(kind: type) -> bool:
  return any(c.__name__ == "Variable" and c.__module__.startswith("flax.nnx") for c in kind.__mro__)


@lru_cache(1024)
def _is_written(kind: type) -> bool:
  return any(c.__name__ in _WRITTEN and c.__module__.startswith("flax.nnx") for c in kind.__mro__)
