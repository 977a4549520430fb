"""Whether task vectors leave one another's inputs alone."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxft.signatures import explain_errors
from jaxft.tree.finite_leaves import check_finite
from jaxft.tree.paths import Tree
from jaxft.tree.task_vectors import apply_task_vector


@explain_errors
def disentanglement_error(
    predict: Callable[[Tree, Any], Any], base: Tree, own: Tree, other: Tree, inputs: Any
) -> float:
  """The share of predictions on a task's inputs that change when another task's vector is added as well.

      mean over x of 1[predict(base + own, x) != predict(base + own + other, x)]

  One cell of a matrix over pairs of tasks; 0 where the two are disentangled.

  >>> predict = lambda params, x: (x * params["w"] > 0).astype(int)
  >>> base, own, other = {"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, {"w": jnp.array([-3.0])}
  >>> disentanglement_error(predict, base, own, other, jnp.array([1.0, 2.0, 0.0, 0.0]))
  0.5

  Args:
    predict: `(params, inputs) -> classes [batch]`.
    base: the pretrained checkpoint.
    own: task vector of the task that the inputs belong to, scaled as it is used.
    other: the task vector that is added.
    inputs: of one task.

  Raises:
    ValueError: base or a task vector holds NaN or infinity, or they differ in leaves or shapes.

  Source: the error of Ortiz-Jimenez et al. 2023 (arXiv 2305.12827) at one point; as a matrix of pairs in Zhang et al.
  2024 (arXiv 2407.02880).
  """
  check_finite({"base": base, "own": own, "other": other})
  alone = apply_task_vector(base, own)
  both = apply_task_vector(alone, other)
  changed = np.asarray(predict(alone, inputs)) != np.asarray(predict(both, inputs))
  if not changed.size:
    raise ValueError("inputs must hold at least one input; predict gave no class")
  return float(np.mean(changed))
