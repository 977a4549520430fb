"""Merges by angle: slerp, Karcher mean, normalized mean direction, model stock.

All of them are linear combinations of the models, with coefficients that depend on the models only through their inner
products. A leaf is read once for its Gram matrix, the coefficients are worked out from that on the host in float64, and
a weighted sum does the rest. A Gram matrix here is `[..., K, K]`: one for the leaf, or one for each row.

The Gram matrix is in float64 too: near 0 and pi an angle takes twice the digits that it has, and in float32 two numbers
of opposite signs would stand at an angle of pi - 3e-4, of which slerp divides by the sine.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxft.merging.kernels.namespace import ArrayLike, namespace
from jaxft.merging.kernels.reductions import tree_sums
from jaxft.merging.kernels.trims import difference

# Of weighted units that add up to a shorter vector than this share of their weights, the direction is rounding error.
_BALANCED = 1e-6
# What mergekit takes for a norm of zero: in slerp, in nuslerp, and of the product of two in model_stock.
_SLERP_ZERO, _NUSLERP_ZERO, _STOCK_ZERO = 1e-8, 1e-7, 1e-6


class Coefficients(NamedTuple):
  """What `weighted_sum` takes: numbers for the leaf, or arrays `[rows, 1]`."""

  coefficients: list[np.ndarray]
  total: np.ndarray


def gram_of_models(models: Sequence[ArrayLike], origin: ArrayLike | None, *, rows: bool = False) -> ArrayLike:
  """The inner products of the models, as seen from the origin: `[K, K]`, or `[rows, K, K]`, float64.

  Each product of two float32 numbers is exact, so that only the sums, whose order is written down, are rounded.
  """
  pairs = [(i, j) for i in range(len(models)) for j in range(i + 1)]

  def products(start: int, origin: ArrayLike | None, *models: ArrayLike) -> list[ArrayLike]:
    del start
    arms = [difference(m, origin).astype(np.float64) for m in models]
    return [arms[i] * arms[j] for i, j in pairs]

  sums = dict(zip(pairs, tree_sums(products, (origin, *models), rows=rows), strict=True))
  xp = namespace(models[0])
  entry = lambda i, j: sums[max(i, j), min(i, j)].reshape(-1)
  matrix = xp.stack([xp.stack([entry(i, j) for j in range(len(models))]) for i in range(len(models))])
  return xp.moveaxis(matrix, -1, 0) if rows else matrix[..., 0]


def slerp_coefficients(
    gram: Float[np.ndarray, "*rows 2 2"], t: float, *, linear_above: float = 0.9995
) -> Float[np.ndarray, "*rows 2"]:
  """`sin((1-t) omega) / sin omega` and `sin(t omega) / sin omega`, omega the angle between the two.

  The models are not normalized, so the norm is not interpolated exactly. Where `|cos omega|` exceeds `linear_above`,
  and where a model is zero, the coefficients are `1 - t` and `t`.

  Source: Shoemake 1985; as in mergekit (arXiv 2403.13257).
  """
  norms = _norms(gram)
  product = norms[..., 0] * norms[..., 1]
  cos = np.clip(gram[..., 0, 1] / np.where(product > 0, product, 1.0), -1.0, 1.0)
  linear = (np.abs(cos) > linear_above) | (product == 0)
  omega = np.arccos(np.where(linear, 0.0, cos))
  pair = lambda t, line: np.where(linear, line, np.sin(t * omega) / np.sin(omega))
  return np.stack([pair(1 - t, 1 - t), pair(t, t)], axis=-1)


def mean_direction_coefficients(
    gram: Float[np.ndarray, "*rows K K"], weights: Sequence[float] | np.ndarray, *, normalize: bool = True
) -> Float[np.ndarray, "*rows K"]:
  """The direction of the weighted mean of the unit vectors, at the weighted mean of the norms.

  This is what mergekit's `multislerp` computes: it maps the units to the tangent space at that same mean, where their
  weighted sum is zero. For the mean on the sphere see `karcher_coefficients`.

  Args:
    gram: of the models.
    weights: `[K]`.
    normalize: divide the weights by their sum.

  Raises:
    ValueError: the weighted units of more than two models add up to zero; two are then averaged.
  """
  weights = np.asarray(weights, np.float64)
  if normalize:
    weights = weights / weights.sum()
  norms = _norms(gram)
  units = weights / np.where(norms > 0, norms, 1.0)
  length = _length(gram, units)[..., None]
  none = length < _BALANCED * np.abs(weights).sum()
  if len(weights) > 2 and np.any(none & (norms.max(-1, keepdims=True) > 0)):
    raise ValueError("the weighted mean direction of the models is zero: opposite models with weights that balance")
  return np.where(none, weights, units / np.where(none, 1.0, length) * (weights * norms).sum(-1, keepdims=True))


def karcher_coefficients(
    gram: Float[np.ndarray, "*rows K K"], weights: Sequence[float] | np.ndarray | None = None, *, iterations: int = 10,
    tolerance: float = 1e-5,
) -> Float[np.ndarray, "*rows K"]:
  """The mean on the sphere, by steps along the mean of the logarithms, at the weighted mean of the norms.

      v = sum_i a_i theta_i / sin(theta_i) (u_i - cos(theta_i) u),   u <- cos|v| u + sin|v| v / |v|

  Everything stays in the span of the models, so the iteration runs on the coefficients.

  Args:
    gram: of the models.
    weights: `[K]`, divided by their sum; None weighs all alike, as mergekit does.
    iterations: at most.
    tolerance: a step below it is the last; angles and norms below it count as none, and so do angles as near to pi,
      where no direction leads from the one to the other.
  """
  if gram.ndim > 2:
    return np.stack([karcher_coefficients(g, weights, iterations=iterations, tolerance=tolerance) for g in gram])
  norms = _norms(gram)
  given = np.full(len(gram), 1.0) if weights is None else np.asarray(weights, np.float64)
  given = given / given.sum()
  a = np.where(norms > tolerance, given, 0.0)
  if not a.sum():
    return np.zeros(len(gram))
  a = a / a.sum()
  safe = np.where(norms > 0, norms, 1.0)
  gram = gram / safe[:, None] / safe[None, :]  # of the units
  mean = a if _length(gram, a) >= tolerance else np.eye(len(gram))[np.argmax(a > 0)]
  mean = mean / _length(gram, mean)
  for _ in range(iterations):
    cos = np.clip(gram @ mean, -1.0, 1.0)
    theta = np.arccos(cos)
    none = (theta < tolerance) | (theta > np.pi - tolerance)
    factors = np.where(none, 0.0, a * theta / np.where(none, 1.0, np.sin(theta)))
    step = factors - (factors * cos).sum() * mean
    size = _length(gram, step)
    if size < tolerance:
      break
    mean = np.cos(size) * mean + np.sin(size) / size * step
    mean = mean / _length(gram, mean)
  return mean / safe * (given * norms).sum()


def stock_coefficients(gram: Float[np.ndarray, "*rows K K"]) -> Float[np.ndarray, "*rows K"]:
  """Model stock: how far to go from the base to the mean of K fine-tuned models.

      t = K cos / (1 + (K - 1) cos),   cos = the mean cosine of the pairs of task vectors

  Args:
    gram: of the task vectors of K >= 2 models.

  Source: Jang et al. 2024 (arXiv 2403.19522); the mean over pairs is mergekit's reading for K > 2. Where the divisor
  vanishes the base is kept, as there.
  """
  count, norms = gram.shape[-1], _norms(gram)
  i, j = np.triu_indices(count, 1)
  cos = np.clip(gram[..., i, j] / np.maximum(norms[..., i] * norms[..., j], _STOCK_ZERO), -1.0, 1.0).mean(-1)
  divisor = 1 + (count - 1) * cos
  t = np.where(np.abs(divisor) < 1e-6, 0.0, count * cos / np.where(np.abs(divisor) < 1e-6, 1.0, divisor))
  return np.repeat(t[..., None] / count, count, axis=-1)


def short_of_slerp(gram: Float[np.ndarray, "*rows 2 2"], *, zero: float = _SLERP_ZERO) -> str | None:
  """What to know where mergekit turns by a right angle, for want of a norm, and `slerp_coefficients` does not."""
  norms = _norms(gram)
  if np.any((norms.min(-1) <= zero) & (norms.max(-1) > zero)):
    return ("is zero, or next to it, in one of the two models, and so has no direction there: the line between the two "
            "is taken, or the angle that there is; mergekit takes a right angle")
  return None


def short_of_nuslerp(gram: Float[np.ndarray, "*rows 2 2"]) -> str | None:
  """`short_of_slerp` with nuslerp's smallest norm."""
  return short_of_slerp(gram, zero=_NUSLERP_ZERO)


def opposed(gram: Float[np.ndarray, "*rows K K"], *, tolerance: float = 1e-5) -> str | None:
  """What to know where `karcher_coefficients` finds two models that point in opposite directions."""
  norms, (i, j) = _norms(gram), np.triu_indices(gram.shape[-1], 1)
  product = norms[..., i] * norms[..., j]
  if np.any((product > 0) & (gram[..., i, j] < -(1 - tolerance ** 2 / 2) * product)):
    return ("points in opposite directions in two of the models, and no direction leads from the one to the other: "
            "neither moves the mean away from the other; mergekit follows its rounding errors there")
  return None


def short_of_stock(gram: Float[np.ndarray, "*rows K K"]) -> str | None:
  """What to know where `stock_coefficients` takes a cosine for smaller than it is, as mergekit does."""
  norms, (i, j) = _norms(gram), np.triu_indices(gram.shape[-1], 1)
  if np.any((norms[..., i] * norms[..., j] < _STOCK_ZERO) & (gram[..., i, j] != 0)):
    return ("differs so little from the base that its cosines count as smaller than they are (norms whose product is "
            f"below {_STOCK_ZERO:g}), as in mergekit: it stays nearer to the base than the angles say")
  return None


def as_coefficients(values: Float[np.ndarray, "*rows K"]) -> Coefficients:
  """For `weighted_sum`, rounded once to float32."""
  total = values.sum(-1)
  shaped = lambda x: x.astype(np.float32) if x.ndim == 0 else x.astype(np.float32)[:, None]
  return Coefficients([shaped(np.asarray(values[..., i])) for i in range(values.shape[-1])], shaped(np.asarray(total)))


def _norms(gram: np.ndarray) -> np.ndarray:
  return np.sqrt(np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), 0.0))


def _length(gram: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
  return np.sqrt(np.maximum(np.einsum("...i,...ij,...j->...", coefficients, gram, coefficients), 0.0))
