"""Scores along a sequence of stages, as TRACE reports them: overall performance, backward and forward transfer."""

import numpy as np
from jaxtyping import Float

from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, explain_errors


@explain_errors
def overall_performance(scores: Float[AnyArray, "stages tasks"]) -> Float[np.ndarray, " stages"]:
  """`OP_t = mean_{i <= t} R[t, i]`, after each stage.

  Args:
    scores: R[t, i], square: the score on task i after training on tasks 0..t in turn.

  Raises:
    ValueError: the matrix is not square, or a score that is used is not finite.

  Example:
    >>> overall_performance(np.array([[0.9, 0.2], [0.7, 0.8]]))
    array([0.9 , 0.75])
  """
  scores = _square(scores)
  return np.array([scores[t, : t + 1].mean() for t in range(len(scores))])


@explain_errors
def backward_transfer(scores: Float[AnyArray, "stages tasks"]) -> Float[np.ndarray, " stages"]:
  """`BWT_t = mean_{i <= t} (R[t, i] - R[i, i])`, after each stage; negative for forgetting.

  The last task counts with its zero, as in TRACE and HFT (arXiv 2404.18466); `transfer_metrics` leaves it out, as GEM
  does, and is T / (T - 1) times as large.

  Args, Raises: see `overall_performance`.

  Example:
    >>> backward_transfer(np.array([[0.9, 0.2], [0.7, 0.8]]))
    array([ 0. , -0.1])
  """
  scores = _square(scores)
  own = np.diag(scores)
  return np.array([(scores[t, : t + 1] - own[: t + 1]).mean() for t in range(len(scores))])


@explain_errors
def forward_transfer(
    scores: Float[AnyArray, "stages tasks"], untrained: Float[AnyArray, " tasks"]
) -> Float[np.ndarray, " stages"]:
  """`FWT_t = mean_{1 <= i <= t} (R[i - 1, i] - untrained_i)`: what earlier stages gave to tasks before their own.

  Args:
    scores: see `overall_performance`.
    untrained: scores before any training.

  Returns:
    One number for each stage; 0 for the first.

  Raises:
    ValueError: the matrix is not square, the lengths differ, or a score that is used is not finite.

  Example:
    >>> forward_transfer(np.array([[0.9, 0.2], [0.7, 0.8]]), np.array([0.1, 0.1]))
    array([0. , 0.1])

  Source: Lopez-Paz and Ranzato 2017 (arXiv 1706.08840).
  """
  scores = _square(scores, ahead=1)
  if np.shape(untrained) != (len(scores),):
    raise ValueError(f"untrained must have one score for each of the {len(scores)} tasks; got {np.shape(untrained)}")
  require_finite(untrained=untrained)
  gains = np.diag(scores, 1) - np.asarray(untrained, np.float64)[1:]
  return np.array([gains[:t].mean() if t else 0.0 for t in range(len(scores))])


def _square(scores: Float[AnyArray, "stages tasks"], *, ahead: int = 0) -> Float[np.ndarray, "stages tasks"]:
  """The scores as float64; those of tasks further ahead than the stage's own plus `ahead` are read by nobody."""
  scores = np.asarray(scores, np.float64)
  if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not len(scores):
    raise ValueError(f"scores must be a square matrix [stages, tasks]; got shape {scores.shape}")
  require_finite(np.tri(len(scores), k=ahead, dtype=bool), scores=scores)
  return scores
