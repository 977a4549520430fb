"""The loss along the straight line between two checkpoints, and what averaging weights has to do with ensembles."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxft.checks import in_range, not_empty
from jaxft.signatures import explain_errors
from jaxft.tree.interpolation import interpolate
from jaxft.tree.paths import Tree


@explain_errors
def linear_path(
    loss: Callable[[Tree], Any], a: Tree, b: Tree, ts: Sequence[float] = tuple(np.linspace(0, 1, 11))
) -> Float[np.ndarray, " points"]:
  """`loss((1 - t) a + t b)` for each t: flat where both checkpoints lie in one basin, a hill where they do not.

  >>> loss = lambda params: jnp.sum(jnp.square(params["w"]))
  >>> linear_path(loss, {"w": jnp.array([1.0])}, {"w": jnp.array([-1.0])}, ts=[0, 0.5, 1])  # one basin
  array([1., 0., 1.])

  Args:
    loss: `params -> scalar`, such as `jax.jit(...)` over a whole split; called once for each point.
    a, b: checkpoints with the same leaves.
    ts: points, 0 at a and 1 at b; beyond them extrapolates.

  Raises:
    ValueError: the checkpoints differ in leaves or shapes.
  """
  return np.array([float(loss(interpolate(a, b, float(t)))) for t in ts])


@explain_errors
def barrier(losses: Float[np.ndarray, " points"], ts: Sequence[float] | None = None) -> float:
  """`max_t [L(t) - ((1 - t) L(0) + t L(1))]`: how far the path rises above the chord between its ends.

  At least 0, as both ends count. Below about the noise of L the two are linearly connected.

  >>> barrier(np.array([1.0, 5.0, 2.0]))  # 5 - (1 + 2) / 2
  3.5

  Args:
    losses: along a path, its first at t = 0 and its last at t = 1.
    ts: the points; None takes them evenly spaced.

  Raises:
    ValueError: fewer than two losses, or another number of points, or points that do not rise from 0 to 1.

  Source: Frankle et al. 2020 (arXiv 1912.05671).
  """
  losses = np.asarray(losses, np.float64)
  at = np.linspace(0, 1, losses.size) if ts is None else np.asarray(ts, np.float64)
  if losses.ndim != 1 or losses.size < 2 or at.shape != losses.shape or at[0] != 0 or at[-1] != 1 or (
      not (np.diff(at) > 0).all()):
    raise ValueError(
        f"losses must be a vector of at least 2 values at ts that rise from 0 to 1; got shape {losses.shape} at {at}")
  return float(np.max(losses - ((1 - at) * losses[0] + at * losses[-1])))


class SoupGap(NamedTuple):
  """The loss of a soup of two checkpoints less that of their ensemble.

  Attributes:
    true: `L_soup - L_ensemble`; below 0 the soup is better.
    approximation: `curvature + variance`.
    curvature: `-t (1 - t) / 2 d^2 L / dt^2` at the soup: a convex path makes the soup better.
    variance: `t (1 - t) / 2 beta^2 E_x Var_{Y ~ softmax(beta f)} (f_Y(x; b) - f_Y(x; a))`: where predictions are
      uncertain, disagreement of the two makes it worse.
  """

  true: Float[Array, ""]
  approximation: Float[Array, ""]
  curvature: Float[Array, ""]
  variance: Float[Array, ""]


@explain_errors
def soup_ensemble_gap(
    logits: Callable[[Tree, Any], Float[Array, "batch classes"]], a: Tree, b: Tree, inputs: Any,
    labels: Int[Array, " batch"], *, t: float = 0.5, beta: float = 1.0, step: float | None = None,
) -> SoupGap:
  """How much worse the soup `(1 - t) a + t b` is than the ensemble of logits, and what second order makes of it.

  The losses are cross-entropies of `beta * logits`. The approximation holds for nearby checkpoints: to second order
  the soup's logits differ from the ensemble's by `-t (1 - t) / 2` of their second derivative along the path.

  >>> logits = lambda params, x: x * params["w"]  # linear in the weights: soup and ensemble are one function
  >>> a, b, x = {"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 2.0])}, jnp.ones((1, 1))
  >>> [round(float(gap), 3) for gap in soup_ensemble_gap(logits, a, b, x, jnp.array([0]))]
  [0.0, 0.0, -0.264, 0.264]

  Args:
    logits: `(params, inputs) -> [batch, classes]`.
    a, b: checkpoints with the same leaves.
    inputs: of the whole set that is averaged over.
    labels: the right classes.
    t: share of b.
    beta: inverse temperature; the source takes the one that minimizes the soup's loss.
    step: None differentiates twice; a number takes central differences of that width in t, for networks with kinks
      (ReLU), of which the second derivative sees only the pieces.

  Raises:
    ValueError: t is not in [0, 1], beta or step is not positive, or the checkpoints differ in leaves or shapes.

  Source: Wortsman et al. 2022, model soups (arXiv 2203.05482), section 4; derived anew.
  """
  in_range("t", t, "[0, 1]")
  for name, array in (("inputs", inputs), ("labels", labels)):
    not_empty(name, array)
  for name, value in (("beta", beta), ("step", 1.0 if step is None else step)):
    in_range(name, value, "(0, inf)")

  def cross_entropy(scores: Float[Array, "batch classes"]) -> Float[Array, ""]:
    log_p = jax.nn.log_softmax(beta * scores.astype(jnp.float32))
    return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=-1))

  at = lambda t: logits(interpolate(a, b, t), inputs).astype(jnp.float32)
  loss = lambda t: cross_entropy(at(t))
  t = jnp.float32(t)
  first, last, soup = at(jnp.float32(0.0)), at(jnp.float32(1.0)), at(t)
  if step is None:
    slope = lambda t: jax.jvp(loss, (t,), (jnp.ones(()),))[1]
    bend = jax.jvp(slope, (t,), (jnp.ones(()),))[1]
  else:
    bend = (loss(t + step) - 2 * loss(t) + loss(t - step)) / step**2
  p, change = jax.nn.softmax(beta * soup), last - first
  mean = jnp.sum(p * change, axis=-1, keepdims=True)
  spread = jnp.mean(jnp.sum(p * jnp.square(change - mean), axis=-1))
  half = t * (1 - t) / 2
  true = cross_entropy(soup) - cross_entropy((1 - t) * first + t * last)
  curvature, variance = -half * bend, half * beta**2 * spread
  return SoupGap(true, curvature + variance, curvature, variance)
