"""Forming the arrays that leaves stand for: `materialize` for whole trees, `unrounded` for one leaf within another."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxft.signatures import explain_errors
from jaxft.tree.paths import Tree, is_structured, map_with_path


@explain_errors
def materialize(tree: Tree) -> Tree:
  """The plain checkpoint: every structured leaf of the tree replaced by the array that it stands for.

  >>> leaf = LowRank(jnp.ones((2, 2)), a=jnp.array([[1.0], [0.0]]), b=jnp.array([[1.0, 2.0]]), scale=10.0)
  >>> materialize({"up": leaf, "bias": jnp.zeros(2)})
  {'bias': Array([0., 0.], dtype=float32), 'up': Array([[11., 21.],
         [ 1.,  1.]], dtype=float32)}
  """
  return map_with_path(lambda path, leaf: _array(leaf), tree)


def _array(x: Any) -> Any:
  return x.materialize() if is_structured(x) else x


def unrounded(x: Any) -> Array:
  """An array, or what a structured leaf stands for before it is rounded to its dtype, in float32 or wider.

  For `materialize` methods, which compute from it and round once. It asks nothing of a leaf: one with its parts in
  float32 forms the unrounded array. A leaf that then still has its dtype chose it itself, as a `Quantized` decoded to
  bfloat16, whose products too read the decoded values: such a one is formed in that dtype.
  """
  x = _array(_widened(x))
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _widened(x: Any) -> Any:
  """An array of a narrower float dtype in float32, a leaf with its parts so; all else as it is."""
  if not _is_narrow(x):
    return x
  if not is_structured(x):
    return x.astype(jnp.float32)
  if not jax.tree_util.all_leaves([x]):  # a class that is no pytree is a leaf to JAX
    wide = jax.tree.map(_widened, x, is_leaf=lambda part: part is not x and is_structured(part))
    if not _is_narrow(wide):
      return wide
  return x.materialize().astype(jnp.float32)


def _is_narrow(x: Any) -> bool:
  dtype = getattr(x, "dtype", None)  # which a Python scalar lacks
  return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 4
