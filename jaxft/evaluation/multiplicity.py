"""Many tests at once: p values adjusted so that few or none of what they find is chance."""

from collections.abc import Sequence

import numpy as np
import scipy  # its parts load when they are used: stats takes half a second

from jaxft.signatures import explain_errors


@explain_errors
def holm(p_values: Sequence[float]) -> list[float]:
  """Adjusted p values: below a level, the chance that even one of those found is chance lies below that level too.

  Raises:
    ValueError: a p value outside [0, 1].

  Example:
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

  Source: Holm 1979.
  """
  p = _checked(p_values)
  order = np.argsort(p, kind="stable")
  adjusted = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
  result = np.empty_like(p)
  result[order] = np.minimum(adjusted, 1)
  return result.tolist()


@explain_errors
def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
  """Adjusted p values: of those below a level, no larger share than that level is chance, in the mean.

  Raises:
    ValueError: a p value outside [0, 1].

  Example:
    >>> benjamini_hochberg([0.01, 0.04, 0.03])
    [0.03, 0.04, 0.04]

  Source: Benjamini and Hochberg 1995; by scipy.
  """
  p = _checked(p_values)
  return scipy.stats.false_discovery_control(p).tolist() if len(p) else []


def _checked(p_values: Sequence[float]) -> np.ndarray:
  p = np.asarray(p_values, np.float64)
  if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():  # a NaN is outside too
    raise ValueError(f"p_values must be a vector of numbers in [0, 1]; got {p_values}")
  return p
