"""Which task vectors of a bank to keep, where n of them are more than memory holds or a target needs."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, explain_errors
from jaxft.tree.finite_leaves import check_finite
from jaxft.tree.paths import Tree, leaves_with_paths, map_with_path


@explain_errors
def rank_by_feature(
    features: Float[AnyArray, "n dim"], target: Float[AnyArray, " dim"], budget: int
) -> Int[np.ndarray, " budget"]:
  """The tasks whose mean feature has the largest cosine with the target's, best first.

  >>> features = np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 3.0]])  # the length does not count
  >>> rank_by_feature(features, np.array([1.0, 0.2]), budget=2)
  array([0, 2])

  Args:
    features: mean features of each task's inputs under the pretrained model.
    target: that of the target's inputs.
    budget: how many to keep.

  Raises:
    ValueError: budget is not in 1..n, or a feature vector is zero or not finite.
  """
  require_finite(features=features, target=target)
  features, target = np.asarray(features, np.float64), np.asarray(target, np.float64)
  _check_budget(budget, len(features))
  norms = np.linalg.norm(features, axis=-1) * np.linalg.norm(target)
  if not norms.all():
    raise ValueError(f"features and target must not be zero, which has no direction; {int(np.sum(norms == 0))} are")
  cosine = features @ target / norms
  return np.argsort(-cosine, kind="stable")[:budget]


@explain_errors
def rank_deltas(scores: Tree, *, budget: int, by: Literal["whole", "leaf"] = "leaf") -> Any:
  """The task vectors that the loss depends on most where coefficients are zero, best first.

      whole   the b largest of sum_j |dL/dc_ij|, the same for all blocks
      leaf    in each block j the b largest of |dL/dc_ij|

  >>> scores = {"up": jnp.array([0.1, -5.0, 0.2]), "down": jnp.array([3.0, 0.0, -4.0])}
  >>> rank_deltas(scores, budget=1)
  {'down': array([2]), 'up': array([1])}
  >>> rank_deltas(scores, budget=1, by="whole")  # 3.1, 5.0 and 4.2 in all
  array([1])

  Args:
    scores: what `gradient_scores` gives of the coefficients of `linear_combination` with granularity "leaf", at zero:
      leaves `[n]`, and `[L, n]` of stacked layers; holes stay. Where the bank is too large to differentiate at once,
      scores of groups of task vectors, concatenated along the last axis.
    budget: b, how many to keep.
    by: see above; the source finds "leaf" better where b is small.

  Returns:
    For `take_deltas`: indices `[b]`, or a tree like `scores` of `[b]` and `[L, b]`.

  Raises:
    ValueError: `by` is unknown, budget is not in 1..n, or a score is not finite.

  Source: Zhang et al. 2024, aTLAS (arXiv 2407.02880), section 5.2.
  """
  if by not in ("whole", "leaf"):
    raise ValueError(f"by must be whole or leaf; got {by!r}")
  check_finite({"scores": scores})
  best = lambda s: np.argsort(-s, axis=-1, kind="stable")[..., :budget]
  leaves = jax.tree.map(lambda s: np.abs(np.asarray(s, np.float32)), scores)
  _check_budget(budget, jax.tree.leaves(leaves)[0].shape[-1])
  if by == "leaf":
    return jax.tree.map(best, leaves)
  return best(sum(s.reshape(-1, s.shape[-1]).sum(0) for s in jax.tree.leaves(leaves)))


@explain_errors
def take_deltas(trees: Sequence[Tree], indices: Any) -> list[Tree]:
  """The bank of b task vectors that `rank_deltas` chose: the r-th holds the r-th best of each block.

  >>> trees = [{"up": np.full(2, i), "down": np.full(2, i)} for i in (0.0, 1.0, 2.0)]
  >>> take_deltas(trees, {"up": np.array([1]), "down": np.array([2])})
  [{'down': array([2., 2.]), 'up': array([1., 1.])}]

  Args:
    trees: the n task vectors.
    indices: `[b]` for whole trees; a tree like the params of `[b]`, and `[L, b]` for the layers of a stacked leaf.

  Returns:
    b trees. Where every block has a ranking of its own they are no fine-tuned model's, but the same columns of the
    block's subspace that the full bank has there.

  Raises:
    ValueError: an index is not in 0..n-1.
  """
  trees, n = list(trees), len(trees)
  for x in jax.tree.leaves(indices):
    if np.size(x) and not (0 <= np.min(x) and np.max(x) < n):
      raise ValueError(f"indices must lie in 0..{n - 1}, the task vectors given; got {np.min(x)}..{np.max(x)}")
  if isinstance(indices, (np.ndarray, jax.Array, list, tuple)) and np.ndim(indices) == 1:
    return [trees[int(i)] for i in indices]
  budget = jax.tree.leaves(indices)[0].shape[-1]
  known = [dict(leaves_with_paths(tree)) for tree in trees]
  chosen = dict(leaves_with_paths(indices))

  def block(r: int, path: str, leaf: Any) -> Any:
    which = chosen.get(path)
    if which is None:
      return leaf
    if np.ndim(which) == 1:
      return known[int(which[r])][path]
    layers = [known[int(i)][path] for i in which[:, r]]
    if all(x is None for x in layers):
      return None
    hole = jnp.zeros_like(next(x for x in layers if x is not None))
    return jnp.stack([(hole if x is None else x)[j] for j, x in enumerate(layers)])

  return [map_with_path(partial(block, r), trees[0]) for r in range(budget)]


def _check_budget(budget: int, n: int) -> None:
  """Raises ValueError where budget is not in 1..n."""
  if not 1 <= budget <= n:
    raise ValueError(f"budget must lie in 1..{n}, the number of task vectors; got {budget}")
