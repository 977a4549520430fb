"""Losses between two passes over one example, and on the certainty of one: training without labels."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from jaxft.losses.reduction import count_of
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def entropy(
    logits: Float[AnyArray, "batch classes"], where: Bool[AnyArray, " batch"] | None = None
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """`-sum_c p_c log p_c` of `p = softmax(logits)`, in nats: minimized at test time, it makes predictions certain.

  Args:
    logits: of each example.
    where: examples that count; the others give 0 and weigh 0, whatever their logits hold.

  Returns:
    `(values, weights)`, float32: values in [0, log classes].

  Example:
    >>> values, weights = entropy(jnp.zeros((2, 4)), where=jnp.array([True, False]))
    >>> np.array(values).round(3), weights
    (array([1.386, 0.   ], dtype=float32), Array([1., 0.], dtype=float32))

  Source: as an objective at test time Wang et al. 2021, Tent (arXiv 2006.10726); of merging coefficients Yang et al.
  2024, AdaMerging (arXiv 2310.02575).
  """
  kept = jnp.ones(logits.shape[0], bool) if where is None else where
  log_p = jax.nn.log_softmax(_float32(logits, kept))
  # A class of probability 0 adds 0, where 0 times -inf would be NaN, in the gradient too.
  values = -jnp.sum(jnp.exp(log_p) * jnp.where(log_p > -jnp.inf, log_p, 0.0), axis=-1)
  return jnp.where(kept, values, 0.0), count_of(where, values.shape)


@check_arrays
def pseudo_label(
    weak_logits: Float[AnyArray, "batch classes"],
    strong_logits: Float[AnyArray, "batch classes"],
    *,
    threshold: float | Float[AnyArray, ""] = 0.95,
    power: float | None = None,
    mean_over: Literal["batch", "certain"] = "batch",
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """Cross-entropy of a strongly augmented view on what the model predicts of a weak one, where it is certain.

      q = p_weak^power / sum p_weak^power,   loss = -1[max q > threshold] sum_c q_c log p_strong,c

  Args:
    weak_logits: of the view that gives the target; no gradient flows there.
    strong_logits: of the view that is trained.
    threshold: certainty that a target must exceed; may be traced (UFM raises it linearly from 0.9 to 1).
    power: None takes the predicted class (FixMatch). 1 takes the probabilities as they are, more sharpens them
      (1 / T of MixMatch and UDA), less flattens them; UFM takes 0.5, which flattens.
    mean_over: "batch" weighs every example, as FixMatch does; "certain" those with a certain target alone, which may be
      none.
    where: examples that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)`, float32: values in nats, 0 where the target is not certain, NaN where the weak logits are or a
      traced threshold is out of range.

  Raises:
    ValueError: threshold, power or mean_over out of range.

  Example:
    >>> weak, strong = jnp.array([[9.0, 0.0], [0.1, 0.0]]), jnp.zeros((2, 2))
    >>> values, weights = pseudo_label(weak, strong)  # the second example is not certain enough
    >>> np.array(values).round(3), weights
    (array([0.693, 0.   ], dtype=float32), Array([1., 1.], dtype=float32))

  Source: Sohn et al. 2020, FixMatch (arXiv 2001.07685); soft targets as in UFM, Zhang et al. 2024 (arXiv 2407.02880),
  appendix E, whose code halves the probabilities in place of taking their root and so changes nothing.
  """
  if power is not None and not 0 < power < math.inf:
    raise ValueError(f"power must be > 0 and finite, or None for the predicted class; got {power}")
  if not isinstance(threshold, Tracer) and not 0 <= threshold <= 1:
    raise ValueError(f"threshold must lie in [0, 1]; got {threshold}")
  if mean_over not in ("batch", "certain"):
    raise ValueError(f"mean_over must be 'batch' or 'certain'; got {mean_over!r}")
  kept = jnp.ones(weak_logits.shape[0], bool) if where is None else where
  log_weak = jax.nn.log_softmax(jax.lax.stop_gradient(_float32(weak_logits, kept)))
  target = jax.nn.softmax((1.0 if power is None else power) * log_weak)
  peak = jnp.max(target, axis=-1)
  # No comparison holds with NaN: what is unknown would pass for uncertain, and cost nothing.
  unknown = kept & (jnp.isnan(peak) | jnp.logical_not((threshold >= 0) & (threshold <= 1)))
  certain = kept & (peak > threshold) | unknown
  if power is None:
    target = jax.nn.one_hot(jnp.argmax(target, axis=-1), target.shape[-1])
  log_strong = jax.nn.log_softmax(_float32(strong_logits, kept))
  values = -jnp.sum(target * jnp.where(target > 0, log_strong, 0.0), axis=-1)
  values = jnp.where(unknown, jnp.nan, values)
  return jnp.where(certain, values, 0.0), count_of(kept if mean_over == "batch" else certain, values.shape)


def _float32(logits: Float[AnyArray, "batch classes"], kept: Bool[AnyArray, " batch"]) -> Float[Array, "batch classes"]:
  """What does not count is replaced before it is read: NaN and infinity then reach neither value nor gradient."""
  return jnp.where(kept[:, None], logits, 0).astype(jnp.float32)
