"""Two-stage least squares: effects of what something unseen moves too, by what moves it alone."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxft.finite import require_finite
from jaxft.signatures import explain_errors


class InstrumentedEffects(NamedTuple):
  """What `two_stage_least_squares` finds.

  Attributes:
    effects: of one unit of each endogenous variable.
    stderr: of the effects, for errors of one variance.
    first_stage_f: of each endogenous variable by itself, how much the instruments say of it beside the exogenous ones;
      below 10 they are weak, and neither effects nor errors can be trusted.
  """

  effects: Float[np.ndarray, " endogenous"]
  stderr: Float[np.ndarray, " endogenous"]
  first_stage_f: Float[np.ndarray, " endogenous"]


@explain_errors
def two_stage_least_squares(
    outcomes: Float[np.ndarray, " examples"], endogenous: Float[np.ndarray, "examples endogenous"],
    instruments: Float[np.ndarray, "examples instruments"],
    exogenous: Float[np.ndarray, "examples exogenous"] | None = None,
) -> InstrumentedEffects:
  """Effects of endogenous variables on outcomes, with their errors and how strong the instruments are.

  With M what the exogenous variables and a constant leave, and P the projection on M Z:

      d = (C' M P M C)^-1 C' M P M y,    var(d) = s^2 (C' M P M C)^-1,    s^2 = |M (y - C d)|^2 / (n - parameters)

  The residuals are those of C itself, not of its projection, as in the second regression run by hand.

  >>> z, u = np.array([0.0, 0.0, 1.0, 1.0]), np.array([1.0, -1.0, 1.0, -1.0])
  >>> price = z + u  # which z moves, and u as well
  >>> two_stage_least_squares(2 * price + 3 * u, price[:, None], z[:, None]).effects.round(3)
  array([2.])

  Args:
    outcomes: y.
    endogenous: C, which share an unseen cause with the outcomes, such as the popularity of a text.
    instruments: Z, at least as many: what moves C, and outcomes through C alone.
    exogenous: what else is controlled for, such as features of the text. A constant always is.

  Raises:
    ValueError: arrays that are not finite or of different lengths, too few instruments or examples, or effects that
      cannot be told, as the instruments say nothing of some mixture of the endogenous variables.

  In float64, on the host. `residualize_reward(..., method="iv")` is the same estimator with rewards in place of errors.

  Sources: Theil 1953; Staiger and Stock 1997 for the first-stage F.
  """
  y, c, z = (np.asarray(x, np.float64) for x in (outcomes, endogenous, instruments))
  x = np.zeros((len(y), 0)) if exogenous is None else np.asarray(exogenous, np.float64)
  for name, value in (("endogenous", c), ("instruments", z), ("exogenous", x)):
    if value.ndim != 2 or len(value) != len(y):
      raise ValueError(f"{name} must be [examples = {len(y)}, variables]; got {value.shape}")
  require_finite(outcomes=y, endogenous=c, instruments=z, exogenous=x)
  if not 1 <= c.shape[1] <= z.shape[1]:
    raise ValueError(f"instruments must be at least as many as endogenous variables; got {z.shape[1]} for {c.shape[1]}")
  controls = np.column_stack([np.ones(len(y)), x])
  left = lambda a: a - controls @ np.linalg.lstsq(controls, a, rcond=None)[0]
  y, c, z = left(y), left(c), left(z)
  outside, strength = np.linalg.matrix_rank(controls), np.linalg.matrix_rank(z)
  free, free_first = len(y) - outside - c.shape[1], len(y) - outside - strength
  if min(free, free_first) < 1:
    raise ValueError(f"outcomes must be of more examples than there are parameters; got {len(y)}")
  moved = z @ np.linalg.lstsq(z, c, rcond=None)[0]
  effects, _, rank, _ = np.linalg.lstsq(moved, y, rcond=None)
  if rank < c.shape[1]:
    raise ValueError(f"instruments must tell the endogenous variables apart: of {c.shape[1]} effects {rank} can be "
                     "told")
  variance = np.sum((y - c @ effects) ** 2) / free
  stderr = np.sqrt(variance * np.diag(np.linalg.inv(moved.T @ moved)))
  said, unsaid = np.sum(moved**2, axis=0), np.sum((c - moved) ** 2, axis=0)
  with np.errstate(divide="ignore"):
    f = said / strength / (unsaid / free_first)
  return InstrumentedEffects(effects, stderr, f)
