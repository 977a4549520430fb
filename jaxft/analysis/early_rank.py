"""Which of several configurations of a training run look best after its first few percent."""

import numpy as np
from jaxtyping import Float, Int

from jaxft.signatures import AnyArray, explain_errors


@explain_errors
def early_rank(
    gradient_norms: Float[AnyArray, " runs"], losses: Float[AnyArray, " runs"]
) -> Int[np.ndarray, " runs"]:
  """The runs, the most promising first: those with the smaller gradient norm; of equal ones that with the higher loss.

  Both are means over the same first samples, of the same data in the same order, the norm before it is clipped. This
  compares rates and batch sizes, not models or data. A part of it follows from how many updates a run has made: with a
  larger batch its norm is smaller and its loss still higher for that alone. Do not stop runs by it before one set of
  runs to the end has confirmed it for the kind of model.

  >>> early_rank(np.array([0.9, 0.4, 0.4]), np.array([2.0, 2.1, 2.6]))
  array([2, 1, 0])

  Args:
    gradient_norms: of each run; one that is not finite (the run has diverged) is put last.
    losses: of each run; likewise.

  Returns:
    The numbers of the runs.

  Raises:
    ValueError: other than one number of each kind a run.

  Source: Pareja et al. 2024 (arXiv 2412.13337); the rule is ours.
  """
  norms, losses = np.asarray(gradient_norms, np.float64), np.asarray(losses, np.float64)
  if norms.shape != losses.shape or norms.ndim != 1:
    raise ValueError(f"gradient_norms and losses must be one number a run; got {norms.shape} and {losses.shape}")
  diverged = ~(np.isfinite(norms) & np.isfinite(losses))
  return np.lexsort((np.where(diverged, 0, -losses), np.where(diverged, 0, norms), diverged))
