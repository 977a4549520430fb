"""Task vectors: what fine-tuning added to a checkpoint, as a tree to scale, sum and add back."""

from typing import Any

import jax
import numpy as np

from jaxft.checks import in_range
from jaxft.signatures import explain_errors
from jaxft.tree.paths import Tree, is_array, is_float, leaves_with_paths


@explain_errors
def task_vector(base: Tree, tuned: Tree) -> Tree:
  """`tuned - base`, in float32: differences of nearly equal bfloat16 weights lose most of their bits.

  Leaves that are not floating point (buffers such as position ids, functions) have no task vector: their leaf is None.

  >>> task_vector({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([1.5, 1.0])})
  {'w': Array([ 0.5, -1. ], dtype=float32)}

  Raises:
    ValueError: a leaf is missing on one side, has another shape, or is floating point on one side only (all are named).
  """
  check_same_leaves("base", base, "tuned", tuned)
  return jax.tree.map(lambda b, t: _float32(t) - _float32(b) if is_float(b) else None, base, tuned)


@explain_errors
def apply_task_vector(base: Tree, delta: Tree, *, scale: float = 1.0) -> Tree:
  """`base + scale * delta`, added in float32 and rounded once to the base's dtype.

  A None leaf of `delta` leaves the base's leaf as it is; leaves that are not floating point are the base's.

  >>> apply_task_vector({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([0.5, -1.0])}, scale=2.0)
  {'w': Array([2., 0.], dtype=float32)}

  Raises:
    ValueError: delta has other paths than base, a leaf of another shape, or scale is not finite.
  """
  in_range("scale", scale)
  own, added = (dict(leaves_with_paths(tree)) for tree in (base, delta))
  problems = [f"{path}: missing in delta" for path in own if path not in added]
  problems += [f"{path}: missing in base" for path in added if path not in own]
  problems += [f"{path}: base {tuple(own[path].shape)}, delta {tuple(x.shape)}" for path, x in added.items()
               if is_array(x) and is_array(own.get(path)) and own[path].shape != x.shape]
  if problems:
    raise ValueError(f"delta must have the leaves of base, or None; {len(problems)} differ: {'; '.join(problems)}")
  add = lambda b, d: b if d is None or not is_float(b) else (_float32(b) + scale * _float32(d)).astype(b.dtype)
  return jax.tree.map(add, base, delta)


def check_same_leaves(name: str, tree: Tree, other_name: str, other: Tree) -> None:
  """Raises ValueError where two checkpoints differ in paths, shapes or kinds of numbers, naming every leaf that does.

  Floating point may be of any width; integers are no weights, and their difference from weights means nothing.
  """
  mine, theirs = ({path: leaf for path, leaf in leaves_with_paths(x) if is_array(leaf)} for x in (tree, other))
  shapes, others = ({path: tuple(leaf.shape) for path, leaf in x.items()} for x in (mine, theirs))
  problems = [f"{p}: missing in {other_name}" for p in shapes if p not in others]
  problems += [f"{p}: missing in {name}" for p in others if p not in shapes]
  problems += [
      f"{p}: {name} {shapes[p]}, {other_name} {others[p]}" for p in shapes if p in others and shapes[p] != others[p]
  ]
  problems += [
      f"{p}: {name} {mine[p].dtype}, {other_name} {theirs[p].dtype}"
      for p in shapes if p in others and is_float(mine[p]) != is_float(theirs[p])
  ]
  if problems:
    raise ValueError(
        f"{name} and {other_name} must have the same leaves; {len(problems)} differ: " + "; ".join(problems))


def _float32(x: Any) -> Any:
  return x.astype(np.float32)
