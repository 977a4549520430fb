"""Task arithmetic, TIES, DARE, DELLA and breadcrumbs of one leaf: a trim for each task vector, then one of two sums."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.merging.kernels.blocks import LeafMerge
from jaxft.merging.kernels.consensus import Election, elected_sum, standings, weighted_sum
from jaxft.merging.kernels.namespace import ArrayLike
from jaxft.merging.kernels.trims import WHOLE, Trim

TrimOf = Callable[..., Trim]


def trimmed_sum(
    models: Sequence[ArrayLike], base: ArrayLike, *, coefficients: Sequence[ArrayLike], trim: TrimOf | None = None,
    trim_settings: Sequence[Mapping[str, Any]] = (), streams: Sequence[ArrayLike] | None = None,
) -> LeafMerge:
  """`base + sum_i c_i trim_i(model_i - base)`.

  Args:
    models: arrays of one leaf.
    base: of the same shape.
    coefficients: a number for each model; see `sum_coefficients`.
    trim: one of `jaxft.merging.kernels.trims`; None keeps all entries.
    trim_settings: its arguments, for each model.
    streams: of random numbers, for each model, where the trim draws any.
  """
  return weighted_sum(models, base, coefficients=coefficients, trims=_trims(models, base, trim, trim_settings, streams))


def elected_trimmed_sum(
    models: Sequence[ArrayLike], base: ArrayLike, *, weights: Sequence[ArrayLike], scale: ArrayLike = 1.0,
    normalize: bool = True, consensus: Election = "sum", zero_is_positive: bool = True, trim: TrimOf | None = None,
    trim_settings: Sequence[Mapping[str, Any]] = (), streams: Sequence[ArrayLike] | None = None,
) -> LeafMerge:
  """`base + scale * ` the mean, or the sum, over the models whose trimmed entry has the elected sign.

  Args:
    models, base, trim, trim_settings, streams: see `trimmed_sum`.
    weights, scale, normalize, consensus, zero_is_positive: see `elected_sum`.
  """
  return elected_sum(
      models, base, trims=_trims(models, base, trim, trim_settings, streams), weights=weights, scale=scale,
      normalize=normalize, method=consensus, zero_is_positive=zero_is_positive)


def trimmed_standings(
    models: Sequence[ArrayLike], base: ArrayLike, *, weights: Sequence[ArrayLike], consensus: Election,
    trim: TrimOf | None = None, trim_settings: Sequence[Mapping[str, Any]] = (),
    streams: Sequence[ArrayLike] | None = None,
) -> list[ArrayLike]:
  """How many entries elect + and how many -; see `elected_trimmed_sum`."""
  trims = _trims(models, base, trim, trim_settings, streams)
  return standings(models, base, trims=trims, weights=weights, method=consensus)


def sum_coefficients(
    weights: Sequence[float] | np.ndarray, *, scale: float = 1.0, normalize: bool = False
) -> list[np.float32]:
  """`scale * w_i`, divided by the sum of the weights where asked to (by 1 where that is below 1e-8)."""
  weights = np.asarray(weights, np.float64)
  total = weights.sum() if normalize else 1.0
  return list((scale * weights / (total if abs(total) >= 1e-8 else 1.0)).astype(np.float32))


def _trims(
    models: Sequence[ArrayLike], base: ArrayLike, trim: TrimOf | None, settings: Sequence[Mapping[str, Any]],
    streams: Sequence[ArrayLike] | None,
) -> list[Trim]:
  if trim is None:
    return [WHOLE] * len(models)
  drawn = [{}] * len(models) if streams is None else [{"stream": stream} for stream in streams]
  return [trim(m, base, **s, **d) for m, s, d in zip(models, settings, drawn, strict=True)]
