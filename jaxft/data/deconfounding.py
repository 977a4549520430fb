"""Rewards from logs, less what other causes than the text did to them."""

from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from jaxft.checks import in_range, one_of
from jaxft.signatures import explain_errors

Estimator = Literal["marginal", "control", "crossfit", "iv"]


class Deconfounded(NamedTuple):
  """`rewards`, the outcomes less the effect of the confounders; `effects`, of one unit of each."""

  rewards: Float[np.ndarray, " examples"]
  effects: Float[np.ndarray, " confounders"]


@explain_errors
def residualize_reward(
    outcomes: Float[np.ndarray, " examples"], confounders: Float[np.ndarray, "examples confounders"],
    features: Float[np.ndarray, "examples features"] | None = None, *,
    instruments: Float[np.ndarray, "examples instruments"] | None = None, method: Estimator = "control",
    l2: float = 0.0, folds: int = 5, seed: int = 0,
) -> Deconfounded:
  """`outcome - effect . (confounder - its mean)`: what the text itself did, for reward models, pairs and weights.

  How the effect d is found:

  - "marginal": least squares of outcomes on confounders alone; takes part of the text's effect where the text moves the
    confounder;
  - "control": of outcomes on confounders and features; right where nothing unseen moves both confounder and outcome;
  - "crossfit": of residuals on residuals, both left by ridge regressions on the features of the other folds (double
    machine learning), for features that are many;
  - "iv": two-stage least squares: of outcomes on features and on what features and instruments say of the confounders;
    right also where something unseen moves both, if the instruments move outcomes through the confounders alone.

  Within a prompt whose responses share the confounders the correction changes no order.

  >>> clicks, hour = np.array([3.0, 5.0, 4.0, 6.0]), np.array([[0.0], [2.0], [0.0], [2.0]])
  >>> residualize_reward(clicks, hour, method="marginal")
  Deconfounded(rewards=array([4., 4., 5., 5.]), effects=array([1.]))

  Args:
    outcomes: clicks, ratings.
    confounders: known causes beside the text; one-hot without one level, for categories.
    features: of the texts, such as embeddings; needed by all but "marginal".
    instruments: of "iv" alone, at least as many as confounders.
    method: see above.
    l2: >= 0, the ridge of "crossfit" on each centered feature.
    folds: >= 2, of "crossfit".
    seed: of the division into folds.

  Returns:
    The rewards, of the outcomes' mean, and the effects, in float64.

  Raises:
    ValueError: an unknown method, arrays that are missing, superfluous, not finite or of different lengths, too few
      instruments, or confounders whose effect cannot be told (collinear ones).

  Source: Loghmani 2025 (arXiv 2506.00152), whose own estimator is not published; these are econometrics' usual ones.
  """
  one_of("method", method, get_args(Estimator))
  in_range("l2", l2, "[0, inf)")
  y, c = np.asarray(outcomes, np.float64), np.asarray(confounders, np.float64)
  given = {"outcomes": y, "confounders": c}
  for name, x, needed in (("features", features, method != "marginal"), ("instruments", instruments, method == "iv")):
    if (x is None) == needed:
      raise ValueError(f"{name} must {'be given' if needed else 'be None'} with method {method!r}")
    if x is not None:
      given[name] = np.asarray(x, np.float64)
  for name, x in given.items():
    if len(x) != len(y) or not np.isfinite(x).all():
      raise ValueError(f"{name} must be finite numbers of {len(y)} examples; got {x.shape}")
  if method == "crossfit" and not 2 <= folds <= len(y):
    raise ValueError(f"folds must lie in [2, examples = {len(y)}]; got {folds}")
  center = lambda x: x - x.mean(axis=0)
  y_apart, c_apart = center(y), center(c)
  if method == "marginal":
    effects = _solve(c_apart, y_apart)
  elif method == "crossfit":
    left = _out_of_fold(center(given["features"]), np.column_stack([y_apart, c_apart]), l2, folds, seed)
    effects = _solve(left[:, 1:], left[:, 0])
  else:
    f = center(given["features"])
    without = lambda x: x - f @ np.linalg.lstsq(f, x, rcond=None)[0]  # Frisch, Waugh and Lovell
    y_apart, moved = without(y_apart), without(c_apart)
    if method == "iv":
      z = without(center(given["instruments"]))
      if z.shape[1] < c.shape[1]:
        raise ValueError(f"instruments must be at least as many as confounders, {c.shape[1]}; got {z.shape[1]}")
      moved = z @ np.linalg.lstsq(z, moved, rcond=None)[0]
    effects = _solve(moved, y_apart)
  return Deconfounded(y - c_apart @ effects, effects)


def _solve(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  found, _, rank, _ = np.linalg.lstsq(x, y, rcond=None)
  if rank < x.shape[1]:
    raise ValueError(f"confounders must vary, each in its own way, beside the features; of {x.shape[1]} the effects of "
                     f"{rank} can be told")
  return found


def _out_of_fold(x: np.ndarray, targets: np.ndarray, l2: float, folds: int, seed: int) -> np.ndarray:
  """What is left of targets after ridge regressions on the other folds' examples."""
  fold = np.random.default_rng(seed).permutation(len(x)) % folds
  left = np.empty_like(targets)
  for k in range(folds):
    inside, at = x[fold != k], targets[fold != k]
    means = inside.mean(axis=0), at.mean(axis=0)
    inside, at = inside - means[0], at - means[1]
    # As least squares of stacked rows, which stays exact where features are collinear and l2 is 0.
    rows = np.concatenate([inside, np.sqrt(l2) * np.eye(x.shape[1])])
    weights = np.linalg.lstsq(rows, np.concatenate([at, np.zeros((x.shape[1], at.shape[1]))]), rcond=None)[0]
    left[fold == k] = targets[fold == k] - means[1] - (x[fold == k] - means[0]) @ weights
  return left
