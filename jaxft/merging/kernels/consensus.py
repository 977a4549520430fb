"""Sums of task vectors: plain, or of the entries that agree with the sign elected for them."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxft.checks import shown
from jaxft.merging.kernels.blocks import LeafMerge, of_rows
from jaxft.merging.kernels.namespace import ArrayLike, float32, masked, namespace, number, rounded, select, sum_where
from jaxft.merging.kernels.reductions import counts
from jaxft.merging.kernels.trims import WHOLE, Trim, difference

Election = Literal["sum", "count"]


def sign_election(
    deltas: ArrayLike, *, weights: ArrayLike | None = None, method: Election = "sum",
    zero: Literal["positive", "majority"] = "positive",
) -> ArrayLike:
  """The sign of each entry that the models elect: +1 or -1.

  >>> deltas = np.array([[3.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]])
  >>> sign_election(deltas), sign_election(deltas, method="count")
  (array([1., 1.], dtype=float32), array([-1.,  1.], dtype=float32))

  Args:
    deltas: `[N, ...]`, trimmed task vectors.
    weights: `[N]`; None counts all alike.
    method: `sum` of the weighted entries, that is by their mass; `count` of their signs.
    zero: a sum of zero counts as positive, or as the sign that most entries elect.

  Raises:
    ValueError: the deltas are no stack of arrays, or there is not one weight for each.

  Source: Yadav et al. 2023, TIES-Merging (arXiv 2306.01708); `zero="majority"` is the authors' code.
  """
  _check(deltas, weights)
  xp = namespace(deltas)
  votes = _weighted(deltas, weights)
  if method == "count":
    votes = xp.sign(votes)
  elected = xp.sign(votes.sum(0))
  most = elected.sum()
  rest = xp.where(most < 0, -1.0, xp.where(most >= 0, 1.0, most)) if zero == "majority" else 1.0  # NaN stays NaN
  return xp.where(elected == 0, xp.float32(rest), elected)


def disjoint_mean(deltas: ArrayLike, sign: ArrayLike, *, weights: ArrayLike | None = None) -> ArrayLike:
  """The weighted mean, at each entry, over the models whose entry has the elected sign; 0 where none has.

  >>> disjoint_mean(np.array([[3.0, 1.0], [1.0, -2.0], [-1.0, -4.0]]), np.array([1.0, -1.0]))
  array([ 2., -3.], dtype=float32)

  Args:
    deltas: `[N, ...]`.
    sign: `[...]`, +1 or -1.
    weights: `[N]`; None counts all alike.

  Raises:
    ValueError: the deltas are no stack of arrays, or the sign or weights do not go with them.
  """
  _check(deltas, weights)
  if getattr(sign, "shape", None) != deltas.shape[1:]:
    raise ValueError(f"sign must be an array {list(deltas.shape[1:])}, as each of deltas; got {shown(sign)}")
  xp = namespace(deltas)
  votes = _weighted(deltas, weights)
  agree = xp.sign(votes) == sign
  share = _weighted(agree, weights).sum(0)
  return xp.where(agree | (votes != votes), votes, 0).sum(0) / xp.where(share == 0, 1, share)  # NaN stays NaN


def _check(deltas: ArrayLike, weights: ArrayLike | None) -> None:
  """Raises ValueError for what is no stack of task vectors with a weight for each."""
  if not hasattr(deltas, "astype") or not deltas.ndim or deltas.dtype.kind not in "fiub" and deltas.dtype != "bfloat16":
    raise ValueError(f"deltas must be an array of numbers [N, ...]; got {shown(deltas)}")
  if weights is not None and np.shape(weights) != (len(deltas),):
    raise ValueError(f"weights must be {len(deltas)} numbers, one for each of deltas; got {shown(weights)}")


def _weighted(x: ArrayLike, weights: ArrayLike | None) -> ArrayLike:
  if weights is None:
    return x.astype(np.float32)
  return x * namespace(x).asarray(weights, np.float32).reshape(-1, *(1,) * (x.ndim - 1))


def weighted_sum(
    models: Sequence[ArrayLike], base: ArrayLike | None, *, coefficients: Sequence[ArrayLike], total: ArrayLike = 1.0,
    trims: Sequence[Trim] | None = None,
) -> LeafMerge:
  """`base + sum_i c_i trim_i(model_i - base)`; without a base, the sum of `c_i model_i` by way of the first model:

      total * model_0 + sum_i c_i (model_i - model_0),   total = sum_i c_i

  which gives equal models back bit for bit where the coefficients add up to one.

  Args:
    models: arrays of one leaf.
    base: of the same shape, or None.
    coefficients: a number for each model, or `[..., 1]` for each row of it.
    total: sum of the coefficients, for a merge without a base.
    trims: one for each model; None keeps all.
  """
  del models
  coefficients, total = [number(c) for c in coefficients], number(total)
  trims = trims or [WHOLE] * len(coefficients)

  def combine(start: int, models: Sequence[ArrayLike], base: ArrayLike | None) -> ArrayLike:
    reference = float32(models[0] if base is None else base)
    part = lambda factor: of_rows(factor, start, reference)
    result = reference if base is not None else rounded(reference * part(total))
    for i, (model, coefficient, trim) in enumerate(zip(models, coefficients, trims, strict=True)):
      if i or base is not None:
        result = result + rounded(trim.apply(start, float32(model) - reference) * part(coefficient))
    return result

  rows = any(t.rows for t in trims) or any(np.ndim(c) for c in coefficients)
  return LeafMerge(combine, rows, carries=all(trim is WHOLE for trim in trims))


def elected_sum(
    models: Sequence[ArrayLike], base: ArrayLike, *, trims: Sequence[Trim], weights: Sequence[ArrayLike],
    scale: ArrayLike = 1.0, normalize: bool = True, method: Election = "sum", zero_is_positive: bool = True,
) -> LeafMerge:
  """`base + scale * disjoint_mean(deltas, sign_election(deltas))` of the trimmed task vectors, or the sum of those that
  agree where it is not to be normalized.

  Args:
    models: arrays of one leaf.
    base: of the same shape.
    trims: one for each model.
    weights: a number for each.
    scale: of the merged task vector.
    normalize: divide by the weights of the models that agree.
    method: see `sign_election`.
    zero_is_positive: how a sum of zero counts.
  """
  del models
  weights, scale = [number(w) for w in weights], number(scale)

  def combine(start: int, models: Sequence[ArrayLike], base: ArrayLike) -> ArrayLike:
    base = float32(base)
    votes, up, down, rising, falling = 0, 0, 0, [], []
    for model, weight, trim in zip(models, weights, trims, strict=True):
      vote = rounded(trim.apply(start, difference(model, base)) * weight)
      rising.append(vote > 0)
      falling.append(vote < 0)
      rise = masked(vote, rising[-1])
      votes, up, down = votes + _ballot(vote, method), up + rise, down + (vote - rise)
    elected = votes >= 0 if zero_is_positive else votes > 0
    merged = select(elected, up, down)
    if normalize:
      agreeing = [(elected & r) | (~elected & f) for r, f in zip(rising, falling, strict=True)]
      share = sum_where(agreeing, weights)
      merged = merged / (share + (share == 0))
    return base + rounded(merged * scale)

  return LeafMerge(combine, any(t.rows for t in trims))


def standings(
    models: Sequence[ArrayLike], base: ArrayLike, *, trims: Sequence[Trim], weights: Sequence[ArrayLike],
    method: Election = "sum",
) -> list[ArrayLike]:
  """How many entries elect + and how many -, undecided ones aside."""

  def elected(start: int, base: ArrayLike, *models: ArrayLike) -> list[ArrayLike]:
    votes = sum(_ballot(rounded(trim.apply(start, difference(m, base)) * number(w)), method)
                for m, trim, w in zip(models, trims, weights, strict=True))
    return [votes > 0, votes < 0]

  return counts(elected, (base, *models), rows=any(t.rows for t in trims))


def _ballot(vote: ArrayLike, method: Election) -> ArrayLike:
  return vote if method == "sum" else namespace(vote).sign(vote)
