"""Leaves of a params tree and their paths: the only contract between a method and a model.

A *leaf* of a params tree is an array, a structured leaf (see `jaxft.leaves`), or `None`, a hole left where
`split` moved the array to the other side; what is none of these, a function or a Python number, is no weight. A *path*
is the leaf's keys joined by `/`, such as `layers/3/attention/query/kernel`, whatever container made them: dict,
`nnx.State`, Equinox module, tuple.
"""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.signatures import Tree, explain_errors

_BOXES = ("value", "raw_value", "data_array")


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


def is_array(x: Any) -> bool:
  """True for an array, its shape and dtype alone, and a structured leaf; a function and a Python number are none.

  >>> import numpy as np
  >>> is_array(np.ones(2)), is_array(jax.ShapeDtypeStruct((2,), float)), is_array(0.5), is_array(None)
  (True, True, False, False)
  """
  return hasattr(x, "shape") and hasattr(x, "dtype") and not isinstance(x, type)


def is_float(x: Any) -> bool:
  """True for an array or a structured leaf of floating point, which alone is a weight to adapt, measure or merge.

  >>> import numpy as np
  >>> is_float(np.ones(2)), is_float(np.arange(2)), is_float(jax.random.key(0)), is_float(None)
  (True, False, False, False)
  """
  return is_array(x) and bool(jnp.issubdtype(x.dtype, jnp.floating))


@explain_errors
def path_of(keys: tuple[Any, ...]) -> str:
  """Joins the keys of `jax.tree_util` paths: `(DictKey('a'), SequenceKey(0))` -> `'a/0'`.

  A trailing attribute `value`, which `nnx.Variable` and Flax's boxes add below each array, and `data_array`, which
  penzai's do, is dropped, so that a glob reads the same there.

  >>> path_of((jax.tree_util.DictKey("a"), jax.tree_util.SequenceKey(0)))
  'a/0'
  """
  while len(keys) > 1 and getattr(keys[-1], "name", None) in _BOXES:
    keys = keys[:-1]
  return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys)


@explain_errors
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


@explain_errors
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
