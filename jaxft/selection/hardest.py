"""The examples that a model finds hardest, group by group."""

import math

import numpy as np
from jaxtyping import Int, Num, Shaped

from jaxft.checks import in_range
from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def hardest(
    scores: Num[AnyArray, " n"], fraction: float = 0.3, *, groups: Shaped[AnyArray, " n"] | None = None
) -> Int[np.ndarray, " chosen"]:
  """The rows of the highest scores, the same share of each group, ascending; of equal scores the first are taken.

  >>> hardest(np.array([5.0, 1.0, 9.0, 2.0, 3.0]), 0.5, groups=np.array([0, 0, 0, 1, 1]))
  array([0, 2, 4])

  Args:
    scores: such as `sequence_perplexity` of the answers.
    fraction: in (0, 1]; of a group of n it takes `ceil(fraction n)`, so that none is left out.
    groups: which group each row belongs to, such as whether its answer calls a tool; None is one group.

  Raises:
    ValueError: a fraction out of range, or a score that is not finite.

  Source: the hard third of Zeng et al. 2025, iTool (arXiv 2501.09766), with and without a call apart.
  """
  in_range("fraction", fraction, "(0, 1]")
  scores = np.asarray(scores)
  require_finite(scores=scores)
  labels = np.zeros(len(scores), int) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
  chosen = []
  for label in range(labels.max() + 1):
    rows = np.flatnonzero(labels == label)
    chosen.append(rows[np.argsort(-scores[rows], kind="stable")[: math.ceil(fraction * len(rows) - 1e-9)]])
  return np.sort(np.concatenate(chosen))
