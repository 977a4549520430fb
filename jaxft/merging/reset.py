"""Half-Reset: putting a part of the weights back to where they came from, without training."""

from typing import Any

import jax.numpy as jnp

from jaxft.tree.choice import Choice, as_choice, entries
from jaxft.tree.paths import Tree, map_with_path
from jaxft.tree.task_vectors import check_same_leaves


def reset(params: Tree, reference: Tree, keep: Choice) -> Tree:
  """`keep * params + (1 - keep) * reference`, entry by entry a choice and never a sum.

  Args:
    params: the fine-tuned checkpoint.
    reference: the checkpoint that it was tuned from.
    keep: a choice of leaves, layers or entries (`jaxft.tree.choice`), as from `random_module_mask`.

  Raises:
    ValueError: the checkpoints differ in leaves or shapes, or `keep` does not fit them.

  Source: the pilot experiment of Hui et al. 2024, HFT (arXiv 2404.18466).
  """
  check_same_leaves("params", params, "reference", reference)

  def choose(path: str, new: Any, old: Any, flag: Any) -> Any:
    if isinstance(flag, bool):
      return new if flag else old
    return jnp.where(entries(flag, path, new), new, old)

  return map_with_path(choose, params, reference, as_choice(keep, params, name="keep"))
