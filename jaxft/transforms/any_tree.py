"""The two sides of a transform on trees as other libraries make them: in between, a transform sees weights alone."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax

from jaxft.tree.adapted import followed_axes
from jaxft.tree.boxes import (
  boxed_frozen,
  boxed_trainable,
  check_shared,
  has_names,
  is_foreign,
  put_aside,
  rebuilt,
  unboxed,
  weights,
)
from jaxft.tree.paths import Tree


def split_any_tree(split: Callable[[jax.Array, Any], tuple[Any, Any]]) -> Callable[[jax.Array, Any], tuple[Any, Any]]:
  """A `split` that sees weights alone, on any tree; within another transform's there is nothing left to take off."""

  @wraps(split)
  def of_any_tree(key: jax.Array, params: Tree) -> tuple[Tree, Tree]:
    if not is_foreign(params):
      return split(key, params)
    check_shared(params)
    seen = weights(params)
    if not jax.tree.leaves(seen):
      raise ValueError(
          "params must have weights that are arrays; got only "
          + ", ".join(f"{path} ({kind})" for path, kind in put_aside(params)[:8])
          + ". Where a library keeps its arrays in objects, give it what holds them as leaves, as "
          "`pz.unbind_params(model)` of penzai does")
    sides = split(key, seen)
    follows = followed_axes(split, key, seen) if has_names(params) else None
    frozen_axes, trainable_axes = jax.tree.map(lambda _: None, sides) if follows is None else follows
    return boxed_frozen(sides[0], params, frozen_axes), boxed_trainable(sides[1], params, trainable_axes)

  return of_any_tree


def join_any_tree(join: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
  """The `join` beside it."""

  @wraps(join)
  def of_any_tree(frozen: Tree, trainable: Tree) -> Tree:
    if not is_foreign(frozen):
      return join(frozen, trainable)
    return rebuilt(join(weights(frozen), unboxed(trainable)), frozen)

  return of_any_tree
