"""Checkpoints whose vocabularies differ by added tokens: embeddings grown to one size before they are subtracted."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp

from jaxft.signatures import explain_errors
from jaxft.tree.globs import glob_to_regex
from jaxft.tree.paths import Tree, leaves_with_paths, map_with_path

# Of the models of this library: tokens are rows of the embedding and columns of an untied head.
VOCABULARY_AXES = {"embed/tokens/embedding": 0, "head/kernel": 1}


@explain_errors
def grow_vocabulary(
    checkpoints: Sequence[Tree], *, axes: Mapping[str, int] = VOCABULARY_AXES, fill: Literal["zeros", "mean"] = "zeros"
) -> list[Tree]:
  """Checkpoints with as many tokens as the largest has; those that are added come last.

  With zeros in both bases, the rows of a fine-tuned model's new tokens are its task vector's, and so are carried over
  unchanged: the special tokens of a chat model survive the transfer.

  >>> small, large = ({"embed": {"tokens": {"embedding": jnp.ones((n, 2))}}} for n in (2, 3))
  >>> grow_vocabulary([small, large])[0]["embed"]["tokens"]["embedding"]
  Array([[1., 1.],
         [1., 1.],
         [0., 0.]], dtype=float32)

  Args:
    checkpoints: trees with the same leaves, whose first tokens are the same.
    axes: glob over paths -> the axis that counts tokens.
    fill: what stands in the new rows: zeros, or the mean of the others.

  Raises:
    ValueError: no leaf matches, an axis is out of range, or an unknown fill.

  Source: the released code of Lin et al. 2025 (arXiv 2503.20110).
  """
  if fill not in ("zeros", "mean"):
    raise ValueError(f"fill must be zeros or mean; got {fill!r}")
  patterns = [(glob_to_regex(glob), axis) for glob, axis in axes.items()]
  axis_of = lambda path: next((axis for pattern, axis in patterns if pattern.fullmatch(path)), None)
  sizes: dict[str, int] = {}
  for tree in checkpoints:
    for path, leaf in leaves_with_paths(tree):
      axis = axis_of(path)
      if leaf is None or axis is None:
        continue
      if not -leaf.ndim <= axis < leaf.ndim:
        raise ValueError(f"axes gives axis {axis} for {path}, which has shape {tuple(leaf.shape)}")
      sizes[path] = max(sizes.get(path, 0), leaf.shape[axis])
  if not sizes:
    raise ValueError(f"axes must match a leaf; none of {', '.join(axes)} does")

  def grow(path: str, leaf: Any) -> Any:
    if path not in sizes or leaf is None or leaf.shape[axis_of(path)] == sizes[path]:
      return leaf
    axis = axis_of(path)
    added = sizes[path] - leaf.shape[axis]
    new = jnp.mean(leaf.astype(jnp.float32), axis=axis, keepdims=True) * (fill == "mean")
    return jnp.concatenate([leaf, jnp.repeat(new.astype(leaf.dtype), added, axis=axis)], axis=axis)

  return [map_with_path(grow, tree) for tree in checkpoints]
