"""Calibration: do predicted probabilities match frequencies?"""

import math
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxft.checks import one_of
from jaxft.evaluation.ranges import require_labels, require_range
from jaxft.finite import or_nan, require_finite
from jaxft.models.bounds import values_of
from jaxft.signatures import AnyArray, check_arrays

Scheme = Literal["uniform", "mass"]


@check_arrays
def calibration_error(
    probs: Float[AnyArray, "items classes"],
    labels: Int[AnyArray, " items"],
    *,
    bins: int = 15,
    norm: float = 1,
    scheme: Scheme = "uniform",
    where: Bool[AnyArray, " items"] | None = None,
) -> Float[Array, ""]:
  """Expected calibration error of the predicted class; with `norm=inf` the maximum one.

  `ECE = sum_m |B_m| / n |accuracy(B_m) - mean confidence(B_m)|`, `MCE = max_m |...|`.

  Args:
    probs: probabilities of each class.
    labels: the right class.
    bins: number of bins.
    norm: 1 or `math.inf`.
    scheme: "uniform" bins of equal width, (low, high] with 0 in the first; "mass" bins of equal size, by rank
      (adaptive ECE); there equal confidences rank by row, so that the order of the rows can move them between bins.
    where: items that count.

  Returns:
    The error in [0, 1]; 0 where no item counts.

  Raises:
    ValueError: bins < 1, another norm, an unknown scheme, shapes that differ; or, of what counts, a probability that is
      not in [0, 1] or a label that is no class. Under `jax.jit`, where numbers are not known, the error is NaN then.

  Example:
    >>> probs, labels = jnp.array([[0.75, 0.25], [0.75, 0.25]]), jnp.array([0, 1])
    >>> float(calibration_error(probs, labels))  # says 3/4, is right in 1/2
    0.25

  Source: Guo et al. 2017 (arXiv 1706.04599); Nixon et al. 2019 (arXiv 1904.01685) for bins of equal mass.
  """
  fine = _require_forecasts(probs, labels, where)
  correct = (jnp.argmax(probs, axis=-1) == labels).astype(jnp.float32)
  error = _binned_error(jnp.max(probs, axis=-1), correct, bins=bins, norm=norm, scheme=scheme, where=where)
  return or_nan(fine, error)


@check_arrays
def classwise_calibration_error(
    probs: Float[AnyArray, "items classes"],
    labels: Int[AnyArray, " items"],
    *,
    bins: int = 15,
    scheme: Scheme = "uniform",
    where: Bool[AnyArray, " items"] | None = None,
) -> Float[Array, ""]:
  """Mean over classes of the calibration error of "is it class k", at every probability and not only the largest.

  Args, Raises: see `calibration_error`.

  Example:
    >>> probs, labels = jnp.array([[0.75, 0.25], [0.75, 0.25]]), jnp.array([0, 1])
    >>> float(classwise_calibration_error(probs, labels))
    0.25

  Source: Kull et al. 2019 (arXiv 1910.12656).
  """
  fine = _require_forecasts(probs, labels, where)
  one_hot = jax.nn.one_hot(labels, probs.shape[-1])
  error = lambda p, correct: _binned_error(p, correct, bins=bins, norm=1, scheme=scheme, where=where)
  return or_nan(fine, jnp.mean(jax.vmap(error, in_axes=1)(probs, one_hot)))


def _require_forecasts(probs, labels, where=None):
  """Whether what counts are probabilities, to rounding, and classes; see `require_finite`."""
  fine = require_finite(where, probs=probs) & require_range(0, 1, where, slack=1e-5, probs=probs)
  return fine & require_labels(probs.shape[-1], where, labels=labels)


def _binned_error(confidence, correct, *, bins, norm, scheme, where):
  if bins < 1:
    raise ValueError(f"bins must be >= 1; got {bins}")
  if norm not in (1, math.inf):
    raise ValueError(f"norm must be 1 or inf; got {norm}")
  one_of("scheme", scheme, get_args(Scheme))
  confidence = confidence.astype(jnp.float32)
  where = jnp.ones(confidence.shape, bool) if where is None else where
  count = jnp.sum(where)
  if scheme == "uniform":
    # How many inner edges lie strictly below: an edge itself belongs to the bin under it.
    index = jnp.searchsorted(jnp.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
  else:
    rank = jnp.argsort(jnp.argsort(jnp.where(where, confidence, jnp.inf)))
    index = rank * bins // jnp.maximum(count, 1)
  index = jnp.where(where, index, bins)  # one bin too many, which takes what does not count
  total = lambda v: jax.ops.segment_sum(jnp.where(where, v, 0), index, num_segments=bins + 1)[:bins]
  gap = jnp.abs(total(correct) - total(confidence))  # |B_m| times the gap of bin m
  if norm == 1:
    return jnp.sum(gap) / jnp.maximum(count, 1)
  return jnp.max(gap / jnp.maximum(total(jnp.ones_like(confidence)), 1))


@check_arrays
def brier_score(probs: Float[AnyArray, "items classes"], labels: Int[AnyArray, " items"]) -> Float[Array, " items"]:
  """`sum_k (p_k - [k = label])^2` of each item, in [0, 2].

  Raises:
    ValueError: shapes that differ, a probability that is not in [0, 1], or a label that is no class; under `jax.jit`
      the scores are NaN then.

  Example:
    >>> brier_score(jnp.array([[0.5, 0.5], [1.0, 0.0]]), jnp.array([0, 0]))
    Array([0.5, 0. ], dtype=float32)

  Source: Brier 1950, in its multi-class form (as lm-eval has it, not halved).
  """
  fine = _require_forecasts(probs, labels)
  return or_nan(fine, jnp.sum(jnp.square(probs.astype(jnp.float32) - jax.nn.one_hot(labels, probs.shape[-1])), axis=-1))


@check_arrays
def fit_temperature(
    logits: Float[AnyArray, "items classes"],
    labels: Int[AnyArray, " items"],
    *,
    low: float = 0.01,
    high: float = 100.0,
    steps: int = 60,
    where: Bool[AnyArray, " items"] | None = None,
) -> Float[Array, ""]:
  """The temperature T that minimizes the negative log-likelihood of `softmax(logits / T)`; fit it on held-out items.

  The loss is convex in 1/T, so its slope there is bisected.

  Args:
    logits: logits; divide by T to use it.
    labels: the right class.
    low, high: bounds of T; `low` is the answer where every item is right, `high` where chance would do better.
    steps: bisections of the interval.
    where: items that count.

  Raises:
    ValueError: not 0 < low < high, steps < 1, shapes that differ; of what counts, a logit that is not finite or a label
      that is no class; or no item that counts has logits that differ, so that every temperature does. Under `jax.jit`,
      where numbers are not known, the temperature is NaN then.

  Example:
    >>> logits, labels = jnp.array([[8.0, 0.0]] * 4), jnp.array([0, 0, 0, 1])
    >>> round(float(fit_temperature(logits, labels)), 2)  # 8 / T is then log 3
    7.28

  Source: Guo et al. 2017 (arXiv 1706.04599).
  """
  if not 0 < low < high < math.inf:
    raise ValueError(f"low and high must satisfy 0 < low < high, finite; got {low} and {high}")
  if steps < 1:
    raise ValueError(f"steps must be >= 1; got {steps}")
  fine = require_finite(where, logits=logits) & require_labels(logits.shape[-1], where, labels=labels)
  logits = logits.astype(jnp.float32)
  where = jnp.ones(labels.shape, bool) if where is None else where
  logits = jnp.where(where[:, None], logits, 0)
  decided = jnp.any(jnp.max(logits, axis=-1) > jnp.min(logits, axis=-1))
  if values_of(decided) is None:
    fine = fine & decided
  elif not decided:
    raise ValueError("logits must differ between classes in an item that counts; got none: any temperature fits")
  return or_nan(fine, _bisect(logits, labels, where, low, high, steps))


@partial(jax.jit, static_argnames="steps")
def _bisect(logits, labels, where, low, high, steps) -> Float[Array, ""]:
  def loss(inverse: Float[AnyArray, ""]) -> Float[Array, ""]:
    return jnp.sum(jnp.where(where, optax.softmax_cross_entropy_with_integer_labels(logits * inverse, labels), 0))

  def halve(_, bounds):
    lower, upper = bounds
    middle = (lower + upper) / 2
    colder = jax.grad(loss)(jnp.exp(-middle)) > 0  # 1/T too large: T has to rise
    return jnp.where(colder, middle, lower), jnp.where(colder, upper, middle)

  bounds = jnp.log(jnp.asarray([low, high], jnp.float32))
  lower, upper = jax.lax.fori_loop(0, steps, halve, (bounds[0], bounds[1]))
  return jnp.exp((lower + upper) / 2)
