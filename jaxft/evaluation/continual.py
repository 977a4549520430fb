"""Summaries over tasks: transfer and forgetting, retention, merged against single experts, base against novel."""

import numpy as np
from jaxtyping import Float

from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, check_arrays, explain_errors


@explain_errors
def transfer_metrics(
    scores: Float[AnyArray, "tasks tasks"], untrained: Float[AnyArray, " tasks"] | None = None
) -> dict[str, float]:
  """Continual-learning metrics of `scores[t, j]`, the score on task j after training on tasks 0..t in turn.

  With T tasks: `average = mean_j R[T, j]`; `backward_transfer = mean_{j<T} (R[T, j] - R[j, j])`, negative for
  forgetting; `forgetting = mean_{j<T} (max_{j<=l<T} R[l, j] - R[T, j])`;
  `forward_transfer = mean_{j>1} (R[j-1, j] - untrained_j)`.

  Args:
    scores: higher is better.
    untrained: scores before any training; without them there is no forward transfer.

  Returns:
    The metrics as floats; with one task the average alone.

  Raises:
    ValueError: the matrix is not square, the lengths differ, or a score that is used is not finite: those of tasks
      up to the stage's own, and where `untrained` is given those of the next.

  Example:
    >>> metrics = transfer_metrics(np.array([[0.9, 0.2], [0.7, 0.8]]))
    >>> {name: round(value, 3) for name, value in metrics.items()}
    {'average': 0.75, 'backward_transfer': -0.2, 'forgetting': 0.2}

  Sources: Lopez-Paz and Ranzato 2017 (arXiv 1706.08840), GEM; Chaudhry et al. 2018 (arXiv 1801.10112), forgetting.
  """
  scores = np.asarray(scores, np.float64)
  tasks = len(scores)
  if scores.shape != (tasks, tasks) or not tasks:
    raise ValueError(f"scores must be a square matrix [tasks, tasks]; got shape {scores.shape}")
  if untrained is not None and np.shape(untrained) != (tasks,):
    raise ValueError(f"untrained must have one score for each of the {tasks} tasks; got shape {np.shape(untrained)}")
  require_finite(np.tri(tasks, k=0 if untrained is None else 1, dtype=bool), scores=scores)
  require_finite(untrained=untrained)
  out = {"average": float(scores[-1].mean())}
  if tasks == 1:
    return out
  earlier = range(tasks - 1)
  out["backward_transfer"] = float(np.mean([scores[-1, j] - scores[j, j] for j in earlier]))
  out["forgetting"] = float(np.mean([scores[j:-1, j].max() - scores[-1, j] for j in earlier]))
  if untrained is not None:
    out["forward_transfer"] = float(np.mean([scores[j - 1, j] - untrained[j] for j in range(1, tasks)]))
  return out


@check_arrays
def retention(after: Float[AnyArray, " tasks"], before: Float[AnyArray, " tasks"]) -> Float[np.ndarray, " tasks"]:
  """`after / before` for each benchmark: what a fine-tuned model kept of the skills it was not tuned for.

  Raises:
    ValueError: a score before is not > 0, one is not finite, there is none, or the lengths differ.

  Example:
    >>> retention(np.array([0.4, 0.9]), np.array([0.5, 0.9]))
    array([0.8, 1. ])
  """
  require_finite(after=after, before=before)
  return _ratio("before", np.asarray(after, np.float64), np.asarray(before, np.float64))


@check_arrays
def normalized_accuracy(merged: Float[AnyArray, " tasks"], experts: Float[AnyArray, " tasks"]) -> float:
  """Mean over tasks of merged over expert; report the absolute mean beside it, for the ratio hides weak experts.

  Raises:
    ValueError: an expert's score is not > 0, one is not finite, there is none, or the lengths differ.

  Example:
    >>> normalized_accuracy(np.array([0.4, 0.9]), np.array([0.8, 0.9]))
    0.75
  """
  require_finite(merged=merged, experts=experts)
  return float(np.mean(_ratio("experts", np.asarray(merged, np.float64), np.asarray(experts, np.float64))))


def _ratio(name: str, numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
  if not (denominator > 0).all():
    raise ValueError(f"{name} must be > 0; got {denominator.tolist()}")
  return numerator / denominator


@explain_errors
def harmonic_mean(a: float, b: float) -> float:
  """`2 a b / (a + b)`, 0 where both are: base-to-novel generalization.

  Published rows of averages are the harmonic mean of the two averages, not the average of harmonic means.

  Raises:
    ValueError: one is not finite or negative: the mean of numbers of two signs lies anywhere.

  Example:
    >>> round(harmonic_mean(0.8, 0.6), 3)
    0.686
  """
  require_finite(a=a, b=b)
  if a < 0 or b < 0:
    raise ValueError(f"a and b must be >= 0; got {a} and {b}")
  return 2 * a * b / (a + b) if a + b else 0.0
