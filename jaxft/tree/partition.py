"""A tree cut in two with holes, put together again, and counted."""

import jax

from jaxft.signatures import explain_errors
from jaxft.tree.paths import Tree, is_array, is_leaf


@explain_errors
def partition(tree: Tree, flags: Tree) -> tuple[Tree, Tree]:
  """Splits a tree by a tree of booleans: `(leaves where True, leaves where False)`, holes elsewhere.

  >>> partition({"a": 1, "b": 2}, {"a": True, "b": False})
  ({'a': 1, 'b': None}, {'a': None, 'b': 2})
  """
  flat, structure = jax.tree.flatten(tree, is_leaf=is_leaf)
  flags = jax.tree.leaves(flags)
  take = lambda keep: structure.unflatten([x if flag == keep else None for flag, x in zip(flags, flat, strict=True)])
  return take(True), take(False)


@explain_errors
def combine(first: Tree, second: Tree) -> Tree:
  """Fills the holes of `first` with the leaves of `second`: the inverse of `partition`.

  >>> combine({"a": 1, "b": None}, {"a": None, "b": 2})
  {'a': 1, 'b': 2}
  """
  return jax.tree.map(lambda x, y: y if x is None else x, first, second, is_leaf=is_leaf)


@explain_errors
def count(tree: Tree) -> int:
  """Number of elements of a tree of arrays or shapes; holes and what is no array count none.

  >>> import numpy as np
  >>> count({"a": np.ones((2, 3)), "b": None})
  6
  """
  return sum(x.size for x in jax.tree.leaves(tree) if is_array(x))
