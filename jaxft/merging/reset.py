"""Half-Reset: putting a part of the weights back to where they came from, without training."""

from typing import Any

import jax.numpy as jnp

from jaxft.signatures import explain_errors
from jaxft.tree.choice import Choice, as_choice, entries
from jaxft.tree.finite_leaves import check_finite
from jaxft.tree.paths import Tree, map_with_path
from jaxft.tree.task_vectors import check_same_leaves


@explain_errors
def reset(base: Tree, tuned: Tree, keep: Choice) -> Tree:
  """`keep * tuned + (1 - keep) * base`, entry by entry a choice and never a sum.

  >>> base, tuned = {"a": jnp.zeros(2), "b": jnp.zeros(2)}, {"a": jnp.ones(2), "b": jnp.ones(2)}
  >>> reset(base, tuned, keep="b")
  {'a': Array([0., 0.], dtype=float32), 'b': Array([1., 1.], dtype=float32)}

  Args:
    base: the checkpoint that was tuned.
    tuned: the fine-tuned one.
    keep: of the tuned one, a choice of leaves, layers or entries (`jaxft.tree.choice`), as from `random_module_mask`.

  Raises:
    ValueError: the checkpoints differ in leaves or shapes or hold NaN or infinity, or `keep` does not fit them.

  Source: the pilot experiment of Hui et al. 2024, HFT (arXiv 2404.18466).
  """
  check_same_leaves("base", base, "tuned", tuned)
  check_finite({"base": base, "tuned": tuned})

  def choose(path: str, old: Any, new: Any, flag: Any) -> Any:
    if isinstance(flag, bool):
      return new if flag else old
    return jnp.where(entries(flag, path, new), new, old)

  return map_with_path(choose, base, tuned, as_choice(keep, base, name="keep"))
