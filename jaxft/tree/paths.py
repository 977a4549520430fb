"""Leaves of a params tree and their paths: the only contract between a method and a model.

A *leaf* of a params tree is an array, a structured leaf (see `jaxft.leaves`), or `None`, a hole left where
`split` moved the array to the other side. A *path* is the leaf's keys joined by `/`, such as
`layers/3/attention/query/kernel`, whatever container made them: dict, `nnx.State`, Equinox module, tuple.
"""

import zlib
from collections.abc import Callable
from typing import Any

import jax

Tree = Any


def is_structured(x: Any) -> bool:
  """True for a leaf that stands for an array: any object of a class with a `materialize` method.

  >>> import numpy as np
  >>> from jaxft.leaves import Scaled
  >>> is_structured(Scaled(np.ones((2, 3)), np.ones(3))), is_structured(np.ones((2, 3)))
  (True, False)
  """
  return hasattr(type(x), "materialize")


def is_leaf(x: Any) -> bool:
  """True for what counts as one leaf of a params tree besides arrays: a hole or a structured leaf.

  >>> is_leaf(None), is_leaf({"a": None})
  (True, False)
  """
  return x is None or is_structured(x)


def path_of(keys: tuple[Any, ...]) -> str:
  """Joins the keys of `jax.tree_util` paths: `(DictKey('a'), SequenceKey(0))` -> `'a/0'`.

  The trailing `value` that `nnx.Variable` adds below each variable is dropped, so that a glob reads the same there.

  >>> path_of((jax.tree_util.DictKey("a"), jax.tree_util.SequenceKey(0)))
  'a/0'
  """
  parts = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys]
  if len(parts) > 1 and parts[-1] in ("value", "raw_value"):
    parts = parts[:-1]
  return "/".join(parts)


def leaves_with_paths(tree: Tree) -> list[tuple[str, Any]]:
  """The `(path, leaf)` pairs of a tree in its flattening order, holes included.

  >>> leaves_with_paths({"a": {"b": 1}, "c": None})
  [('a/b', 1), ('c', None)]
  """
  return [(path_of(keys), leaf) for keys, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]]


def array_paths(tree: Tree) -> list[tuple[str, Any]]:
  """The `(path, array)` pairs of a tree, the arrays inside structured leaves counted one by one, holes left out.

  >>> import numpy as np
  >>> from jaxft.leaves import Scaled
  >>> [path for path, _ in array_paths({"up": Scaled(np.ones((2, 3)), np.ones(3)), "down": None})]
  ['up/w', 'up/s']
  """
  return [(path_of(keys), x) for keys, x in jax.tree_util.tree_flatten_with_path(tree)[0]]


def map_with_path(f: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
  """Maps `f(path, leaf, *rest_leaves)` over a params tree.

  `rest` follow the structure of `tree`; below one leaf of `tree` a rest may hold any subtree, such as `{'a', 'b'}`.

  >>> map_with_path(lambda path, leaf: f"{path} = {leaf}", {"a": {"b": 1}})
  {'a': {'b': 'a/b = 1'}}
  """
  return jax.tree_util.tree_map_with_path(lambda keys, *xs: f(path_of(keys), *xs), tree, *rest, is_leaf=is_leaf)


def unzip_with_path(f: Callable[..., tuple[Any, Any]], tree: Tree, *rest: Tree) -> tuple[Tree, Tree]:
  """`map_with_path` for an f that returns a pair: the tree of first and the tree of second results.

  >>> unzip_with_path(lambda path, leaf: (path, leaf + 1), {"a": {"b": 1}})
  ({'a': {'b': 'a/b'}}, {'a': {'b': 2}})
  """
  flat, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
  others = [structure.flatten_up_to(r) for r in rest]
  pairs = [f(path_of(keys), leaf, *xs) for (keys, leaf), *xs in zip(flat, *others, strict=True)]
  return structure.unflatten([a for a, _ in pairs]), structure.unflatten([b for _, b in pairs])


def fold_in_path(key: jax.Array, path: str) -> jax.Array:
  """A key of its own for each path, the same whatever the order, the sharding or the other leaves of the tree.

  >>> key = jax.random.key(0)
  >>> bool(fold_in_path(key, "up/kernel") == fold_in_path(key, "down/kernel"))
  False
  """
  return jax.random.fold_in(key, zlib.crc32(path.encode()) & 0x7FFFFFFF)
