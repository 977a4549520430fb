"""Half-Reset: putting a part of the weights back to where they came from, without training."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxft.merging.task_vectors import check_same_leaves
from jaxft.transforms.paths import Tree, map_with_path


def reset(params: Tree, reference: Tree, keep: Tree) -> Tree:
  """`keep * params + (1 - keep) * reference`, entry by entry a choice and never a sum.

  Args:
    params: the fine-tuned checkpoint.
    reference: the checkpoint that it was tuned from.
    keep: a tree like the params of booleans, of boolean vectors over the layers of a stacked leaf (as from
      `random_module_mask`), or of masks of the leaf's shape.

  Raises:
    ValueError: the checkpoints differ in leaves or shapes, or an entry of `keep` fits none of the three.

  Source: the pilot experiment of Hui et al. 2024, HFT (arXiv 2404.18466).
  """
  check_same_leaves("params", params, "reference", reference)

  def choose(path: str, new: Any, old: Any, flags: Any) -> Any:
    if np.ndim(flags) == 0:
      return new if flags else old
    if tuple(flags.shape) != tuple(new.shape)[: np.ndim(flags)]:
      raise ValueError(f"keep must be a boolean, or lead with the axes of {path} {tuple(new.shape)}; got {flags.shape}")
    return jnp.where(jnp.asarray(flags).reshape(flags.shape + (1,) * (new.ndim - np.ndim(flags))), new, old)

  return map_with_path(choose, params, reference, keep)
