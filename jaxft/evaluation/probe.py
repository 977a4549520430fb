"""Linear probes on frozen features: ridge regression with its own choice of penalty, and logistic regression."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxft.evaluation.correlation import pearson, r_squared
from jaxft.evaluation.ranges import require_labels, require_range
from jaxft.finite import or_nan, require_finite
from jaxft.signatures import AnyArray, check_arrays, explain_errors

PENALTIES = tuple(10.0**e for e in range(-3, 6))


class Ridge(NamedTuple):
  """A fitted ridge regression `x @ weights + bias`.

  Attributes:
    weights: `[features, targets]`, float64 numpy.
    bias: `[targets]`.
    penalty: the one chosen.
    leave_one_out: mean squared leave-one-out error on the training data of each penalty tried.
  """

  weights: np.ndarray
  bias: np.ndarray
  penalty: float
  leave_one_out: dict[float, float]

  def predict(self, features: np.ndarray) -> np.ndarray:
    """`[items, targets]`."""
    return np.asarray(features, np.float64) @ self.weights + self.bias


@explain_errors
def fit_ridge(features: np.ndarray, targets: np.ndarray, *, penalties: Sequence[float] = PENALTIES) -> Ridge:
  """Ridge regression with an unpenalized bias; the penalty is chosen by leave-one-out on the same data.

  `min_w sum_i (y_i - w x_i - b)^2 + penalty |w|^2`. The error of leaving example i out is in closed form
  `e_i / (1 - 1/n - h_i)` with the residual e_i and the leverage h_i, so one decomposition serves all penalties.

  Args:
    features: `[items, features]`; scale them first if their scales differ.
    targets: `[items]` or `[items, targets]`.
    penalties: those to choose from; one entry fixes it.

  Raises:
    ValueError: fewer than two items, lengths that differ, values that are not finite, or penalties not > 0 and finite.

  Computed on the host in float64: a probe is solved once, and the smallest penalties ask for the precision.

  Example:
    >>> x = np.arange(6.0)[:, None]
    >>> model = fit_ridge(x, 2 * x[:, 0] + 1)
    >>> np.round(model.predict(np.array([[10.0]])), 1)
    array([[21.]])
  """
  x, y = np.asarray(features, np.float64), np.asarray(targets, np.float64)
  y = y[:, None] if y.ndim == 1 else y
  if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 2:
    raise ValueError(
        f"features must be [items >= 2, features] and targets [items] or [items, targets]; got shapes "
        f"{np.shape(features)} and {np.shape(targets)}"
    )
  require_finite(features=x, targets=y)
  if not penalties or any(not 0 < p < math.inf for p in penalties):
    raise ValueError(f"penalties must be > 0 and finite, at least one; got {penalties!r}")
  x_mean, y_mean = x.mean(0), y.mean(0)
  u, s, vt = np.linalg.svd(x - x_mean, full_matrices=False)
  uy = u.T @ (y - y_mean)
  errors = {}
  for penalty in penalties:
    shrink = (s**2 / (s**2 + penalty))[:, None]
    residual = (y - y_mean) - u @ (shrink * uy)
    leverage = (u**2) @ shrink + 1 / len(x)
    errors[float(penalty)] = float(np.mean((residual / np.maximum(1 - leverage, 1e-12)) ** 2))
  best = min(errors, key=errors.__getitem__)
  weights = vt.T @ ((s / (s**2 + best))[:, None] * uy)
  return Ridge(weights, y_mean - x_mean @ weights, best, errors)


class RidgeScore(NamedTuple):
  """How well a ridge probe predicts held-out targets: coefficient of determination and Pearson's r."""

  r2: float
  pearson: float
  penalty: float


@explain_errors
def ridge_probe(
    features: np.ndarray, targets: np.ndarray, test_features: np.ndarray, test_targets: np.ndarray,
    *, penalties: Sequence[float] = PENALTIES,
) -> RidgeScore:
  """Fits a ridge probe and scores it on held-out data, which has no part in the fit or in the choice of penalty.

  Args:
    features: `[items, features]` to fit on.
    targets: `[items]`.
    test_features: `[test items, features]`.
    test_targets: `[test items]`.
    penalties: see `fit_ridge`.

  Raises:
    ValueError: see `fit_ridge`; targets that are not vectors; no test data, or of other shapes; or test values that
      are not finite.

  Example:
    >>> x = np.arange(8.0)[:, None]
    >>> score = ridge_probe(x[:6], 2 * x[:6, 0], x[6:], 2 * x[6:, 0])
    >>> round(score.r2, 2), round(score.pearson, 2), score.penalty
    (1.0, 1.0, 0.001)
  """
  if np.ndim(targets) != 1 or np.ndim(test_targets) != 1:
    raise ValueError(f"targets must be vectors; got shapes {np.shape(targets)} and {np.shape(test_targets)}")
  wanted = (len(test_targets), *np.shape(features)[1:])
  if not len(test_targets) or np.shape(test_features) != wanted:
    raise ValueError(f"test_features must be [test items >= 1, features], with test_targets {np.shape(test_targets)} "
                     f"and features {np.shape(features)}; got {np.shape(test_features)}")
  require_finite(test_features=test_features, test_targets=test_targets)
  ridge = fit_ridge(features, targets, penalties=penalties)
  predictions, wanted = ridge.predict(test_features)[:, 0], np.asarray(test_targets)
  return RidgeScore(
      float(r_squared(predictions, wanted)), float(pearson(predictions, wanted)), ridge.penalty
  )


class Logistic(NamedTuple):
  """A fitted multinomial logistic regression; `weights` `[features, classes]`, `bias` `[classes]`."""

  weights: Float[Array, "features classes"]
  bias: Float[Array, " classes"]

  def logits(self, features: Float[AnyArray, "items features"]) -> Float[Array, "items classes"]:
    """Unnormalized log-probabilities."""
    return jnp.matmul(features.astype(jnp.float32), self.weights, precision=jax.lax.Precision.HIGHEST) + self.bias


@check_arrays
def fit_logistic(
    features: Float[AnyArray, "items features"],
    labels: Int[AnyArray, " items"],
    *,
    classes: int,
    penalty: float = 1.0,
    max_steps: int = 100,
    tolerance: float = 1e-4,
) -> Logistic:
  """Logistic regression by L-BFGS: `min penalty/2 |w|^2 + sum_i nll_i`, with an unpenalized bias.

  Args:
    features: features.
    labels: classes, 0 to `classes` - 1.
    classes: number of classes.
    penalty: scikit-learn's 1/C.
    max_steps: L-BFGS steps at most (mteb's 100).
    tolerance: stops where no component of the mean gradient exceeds it.

  Returns:
    The fit; runs under jit and vmap.

  Raises:
    ValueError: a feature is not finite or a label is no class, under jit the fit is NaN then; lengths that differ,
      classes or max_steps < 1, penalty or tolerance that is not >= 0 and finite.

  Example:
    >>> model = fit_logistic(jnp.array([[0.0], [1.0]]), jnp.array([0, 1]), classes=2)
    >>> jnp.argmax(model.logits(jnp.array([[-1.0], [3.0]])), axis=-1)
    Array([0, 1], dtype=int32)
  """
  for name, value in {"classes": classes, "max_steps": max_steps}.items():
    if value < 1:
      raise ValueError(f"{name} must be >= 1; got {value}")
  for name, value in {"penalty": penalty, "tolerance": tolerance}.items():
    if not isinstance(value, Tracer) and not 0 <= value < math.inf:
      raise ValueError(f"{name} must be >= 0 and finite; got {value}")
  fine = require_finite(features=features) & require_labels(classes, labels=labels)
  return or_nan(fine, _minimize(features.astype(jnp.float32), labels, penalty, tolerance, classes, max_steps))


@partial(jax.jit, static_argnames=("classes", "max_steps"))
def _minimize(features, labels, penalty, tolerance, classes, max_steps) -> Logistic:
  count = features.shape[0]

  def objective(params: Logistic) -> Float[Array, ""]:
    nll = optax.softmax_cross_entropy_with_integer_labels(params.logits(features), labels)
    return (jnp.sum(nll) + penalty / 2 * jnp.sum(jnp.square(params.weights))) / count

  solver = optax.lbfgs()
  value_and_grad = optax.value_and_grad_from_state(objective)

  def step(carry):
    params, state, _, i = carry
    value, grad = value_and_grad(params, state=state)
    updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=objective)
    return optax.apply_updates(params, updates), state, optax.tree.norm(grad, ord=jnp.inf), i + 1

  start = Logistic(jnp.zeros((features.shape[1], classes), jnp.float32), jnp.zeros((classes,), jnp.float32))
  carry = (start, solver.init(start), jnp.asarray(jnp.inf, jnp.float32), jnp.asarray(0))
  carry: Any = jax.lax.while_loop(lambda c: (c[2] > tolerance) & (c[3] < max_steps), step, carry)
  return carry[0]


@check_arrays
def few_shot_accuracy(
    features: Float[AnyArray, "items features"],
    labels: Int[AnyArray, " items"],
    test_features: Float[AnyArray, "test features"],
    test_labels: Int[AnyArray, " test"],
    key: jax.Array,
    *,
    shots: int = 8,
    draws: int = 10,
    penalty: float = 1.0,
) -> Float[Array, " draws"]:
  """Test accuracy of a logistic probe fitted to a few examples of each class, for several draws of them.

  Args:
    features: the pool that examples are drawn from.
    labels: its classes, 0..K-1, each with at least `shots` examples.
    test_features: held-out features.
    test_labels: their classes.
    key: typed key of the draws.
    shots: examples of each class.
    draws: how often they are drawn; mteb reports the mean.
    penalty: see `fit_logistic`.

  Raises:
    ValueError: a class has fewer than `shots` examples, a test label is no class of the pool, a label is negative, a
      feature is not finite, shapes that differ, shots or draws < 1, or a penalty that `fit_logistic` refuses.

  Example:
    >>> x, y = jnp.array([[0.0], [0.1], [1.0], [0.9]]), jnp.array([0, 0, 1, 1])
    >>> few_shot_accuracy(x, y, x, y, jax.random.key(0), shots=1, draws=3)
    Array([1., 1., 1.], dtype=float32)

  Source: mteb's classification protocol (Muennighoff et al. 2022, arXiv 2210.07316).
  """
  if shots < 1 or draws < 1:
    raise ValueError(f"shots and draws must be >= 1; got {shots} and {draws}")
  require_finite(features=features, test_features=test_features)
  require_range(0, math.inf, labels=labels)
  counts = np.bincount(np.asarray(labels))
  if counts.min() < shots:
    raise ValueError(f"class {int(counts.argmin())} has {int(counts.min())} examples; shots = {shots} needs as many")
  classes = len(counts)
  require_labels(classes, test_labels=test_labels)
  features, labels = jnp.asarray(features), jnp.asarray(labels)

  def accuracy(key: jax.Array) -> Float[Array, ""]:
    order = jnp.lexsort((jax.random.uniform(key, labels.shape), labels))  # by class, shuffled within each
    starts = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(jnp.bincount(labels, length=classes))[:-1]])
    chosen = order[(starts[:, None] + jnp.arange(shots)).reshape(-1)]
    probe = fit_logistic(features[chosen], labels[chosen], classes=classes, penalty=penalty)
    return jnp.mean(jnp.argmax(probe.logits(test_features), axis=-1) == test_labels)

  return jax.jit(jax.vmap(accuracy))(jax.random.split(key, draws))
