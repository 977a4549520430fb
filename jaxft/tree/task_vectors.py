"""Task vectors: what fine-tuning added to a checkpoint, as a tree to scale, sum and add back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.tree.paths import Tree, leaves_with_paths


def task_vector(base: Tree, tuned: Tree) -> Tree:
  """`tuned - base`, in float32: differences of nearly equal bfloat16 weights lose most of their bits.

  Leaves that are not floating point (buffers such as position ids) have no task vector: their leaf is None.

  >>> task_vector({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([1.5, 1.0])})
  {'w': Array([ 0.5, -1. ], dtype=float32)}

  Raises:
    ValueError: a leaf is missing on one side or has another shape (all are named).
  """
  check_same_leaves("base", base, "tuned", tuned)
  return jax.tree.map(lambda b, t: _float32(t) - _float32(b) if _is_float(b) else None, base, tuned)


def apply_task_vector(base: Tree, delta: Tree, *, scale: float = 1.0) -> Tree:
  """`base + scale * delta`, added in float32 and rounded once to the base's dtype.

  A None leaf of `delta` leaves the base's leaf as it is.

  >>> apply_task_vector({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([0.5, -1.0])}, scale=2.0)
  {'w': Array([2., 0.], dtype=float32)}
  """
  add = lambda b, d: b if d is None else (_float32(b) + scale * _float32(d)).astype(b.dtype)
  return jax.tree.map(add, base, delta)


def check_same_leaves(name: str, tree: Tree, other_name: str, other: Tree) -> None:
  """Raises ValueError where two checkpoints differ in paths or shapes, naming every leaf that does."""
  shapes = {path: tuple(leaf.shape) for path, leaf in leaves_with_paths(tree) if leaf is not None}
  others = {path: tuple(leaf.shape) for path, leaf in leaves_with_paths(other) if leaf is not None}
  problems = [f"{p}: missing in {other_name}" for p in shapes if p not in others]
  problems += [f"{p}: missing in {name}" for p in others if p not in shapes]
  problems += [
      f"{p}: {name} {shapes[p]}, {other_name} {others[p]}" for p in shapes if p in others and shapes[p] != others[p]
  ]
  if problems:
    raise ValueError(
        f"{name} and {other_name} must have the same leaves; {len(problems)} differ: " + "; ".join(problems))


def _is_float(x: Any) -> bool:
  return jnp.issubdtype(x.dtype, jnp.floating)


def _float32(x: Any) -> Any:
  return x.astype(np.float32)
