"""The average of checkpoints: soups, model ratatouille, the `linear` merge."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.checks import in_range
from jaxft.merging.kernels.methods import WEIGHTED, linear_settings
from jaxft.merging.kernels.namespace import float32
from jaxft.merging.trees import OVERFLOW, check_sequence, merge_trees
from jaxft.signatures import explain_errors
from jaxft.tree.finite_leaves import check_finite
from jaxft.tree.paths import Tree, is_float, is_leaf
from jaxft.tree.task_vectors import check_same_leaves


@explain_errors
def average(models: Iterable[Tree], *, weights: Sequence[float] | None = None, normalize: bool = True) -> Tree:
  """`sum_i w_i theta_i / sum_i w_i`, in float32, rounded once to the dtypes of the first.

  Taken of the differences from the first model, so that equal models give themselves back bit for bit. Leaves that are
  not floating point are the first model's.

  >>> average([{"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 6.0])}], weights=[3, 1])
  {'w': Array([1.5, 3. ], dtype=float32)}

  Args:
    models: checkpoints with the same leaves. Anything but a sequence is read one at a time, with three trees in memory
      however many there are; the result is then the same to rounding.
    weights: one for each, negative ones too; None weighs all alike.
    normalize: divide by the sum of the weights. Without it, and without weights, this is the sum.

  Raises:
    ValueError: there is no model, they differ in leaves or shapes, weights has another length or adds up to zero where
      it is normalized; a leaf that is not traced holds NaN or infinity, before or after the merge.

  Source: Wortsman et al. 2022, model soups (arXiv 2203.05482).
  """
  check_sequence(models)
  if not isinstance(models, Sequence):
    return _running(models, weights, normalize)
  weights = model_weights(weights, len(models))
  return merge_trees(WEIGHTED, models, None, linear_settings(weights, normalize=normalize))


def model_weights(weights: Sequence[float] | None, models: int) -> list[float]:
  """One weight for each model, 1 where none are given.

  >>> model_weights(None, 2)
  [1.0, 1.0]

  Raises:
    ValueError: there is no model, their number is another, or one is not finite.
  """
  if not models:
    raise ValueError("models must hold at least 1 checkpoint; got 0")
  if weights is None:
    return [1.0] * models
  if len(weights) != models:
    raise ValueError(f"weights must have one entry for each of {models} models; got {len(weights)}")
  weights = [float(w) for w in weights]
  in_range("weights", weights)
  return weights


def _running(models: Iterable[Tree], weights: Sequence[float] | None, normalize: bool) -> Tree:
  first, moved, used = None, None, 0
  for i, model in enumerate(models):
    if weights is not None and i >= len(weights):
      raise ValueError(f"weights must have one entry for each model; got {len(weights)} for more than that")
    used += 1
    check_finite({f"models[{i}]": model})
    if first is None:
      first, moved = model, jax.tree.map(_zeros, model, is_leaf=is_leaf)
      continue
    check_same_leaves(f"models[{i}]", model, "models[0]", first)
    w = np.float32(1.0 if weights is None else weights[i])
    add = lambda m, x, f, w=w: None if m is None else m + w * (float32(x) - float32(f))
    moved = jax.tree.map(add, moved, model, first, is_leaf=is_leaf)
  if first is None:
    raise ValueError("models must hold at least 1 checkpoint; got 0")
  total = sum(model_weights(weights, used))
  if normalize and not total:
    raise ValueError(f"weights must not add up to zero where they are normalized; got {weights}")
  share, whole = (np.float32(1 / total), np.float32(1)) if normalize else (np.float32(1), np.float32(total))
  finish = lambda x, m: x if m is None else (float32(x) * whole + share * m).astype(x.dtype)
  merged = jax.tree.map(finish, first, moved, is_leaf=is_leaf)
  check_finite({"the merge": merged}, OVERFLOW)
  return merged


def _zeros(x: Any) -> jax.Array | None:
  return jnp.zeros(x.shape, jnp.float32) if is_float(x) else None
