"""Losses between two passes over one example, by two views or by two models, and on the certainty of one."""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxft.checks import in_range, one_of
from jaxft.losses.contrastive import cosine_similarity, normalize
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


FeatureMetric = Literal["cosine", "mse", "euclidean"]


@check_arrays
def feature_consistency(
    features: Float[AnyArray, "*batch dim"],
    targets: Float[AnyArray, "*batch dim"],
    *,
    metric: FeatureMetric = "cosine",
    where: Bool[AnyArray, "*batch"] | None = None,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """How far features are from those of a frozen model, a teacher or another view.

  `1 - cos(f, t)`, the mean over coordinates of `(f - t)^2`, or `|f - t|`.

  Args:
    features: of any leading axes.
    targets: constants.
    metric: "cosine", "mse" or "euclidean". Of unit vectors "mse" is 2 / dim times "cosine".
    where: what counts; the rest gives 0 and weighs 0.

  Returns:
    `(values, weights)` over the leading axes, float32.

  Raises:
    ValueError: an unknown metric.

  Example:
    >>> values, weights = feature_consistency(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]]))
    >>> np.array(values).round(3), weights
    (array([1.], dtype=float32), Array([1.], dtype=float32))

  Source: of embeddings with perturbed views CoPrompt, Roy and Etemad 2023 (arXiv 2306.01195); of a teacher's vectors
  Reimers and Gurevych 2020 (arXiv 2004.09813).

  sentence-transformers: `EmbedDistillLoss`, `MSELoss`, `SparseMSELoss`
  """
  one_of("metric", metric, get_args(FeatureMetric))
  targets = jax.lax.stop_gradient(targets)
  if where is not None:
    features, targets = (jnp.where(where[..., None], x, 0) for x in (features, targets))
  if metric == "cosine":
    values = 1 - jnp.sum(normalize(features) * normalize(targets), axis=-1)
  else:
    features, targets = (jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32)) for x in (features, targets))
    square = jnp.square(features - targets)
    if metric == "mse":
      values = jnp.mean(square, axis=-1)
    else:
      total = jnp.sum(square, axis=-1)
      values = jnp.where(total > 0, jnp.sqrt(jnp.where(total > 0, total, 1.0)), 0.0)
  return values if where is None else jnp.where(where, values, 0.0), count_of(where, values.shape)


@check_arrays
def cross_model_contrastive(
    old: Float[AnyArray, "batch dim"],
    new: Float[AnyArray, "batch dim"],
    labels: Int[AnyArray, " batch"],
    *,
    temperature: float = 0.1,
    same_class: Literal["drop", "zero"] = "drop",
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """HOC: an example's old feature is to be near its new one and far from the new ones of other classes.

  `loss_i = -s_ii + log sum over label_j != label_i of exp s_ij`, `s_ij = cos(old_i, new_j) / t`

  The positive is not in the sum: values may be negative.

  Args:
    old: features by the frozen model, constants.
    new: features by the model in training.
    labels: classes.
    temperature: t > 0, the inverse of the source's mu.
    same_class: "drop" leaves candidates of the row's class out, its own new feature among them; "zero", as the source's
      code has it, puts their similarity to 0, so that each adds 1 to the sum.
    where: rows that count; the others are candidates for nobody, give 0 and weigh 0.

  Returns:
    `(values, weights)` of the rows, float32; where no other class is there, "drop" gives `-s_ii`.

  Raises:
    ValueError: temperature <= 0 or not finite, or an unknown `same_class`.

  Example:
    >>> values, weights = cross_model_contrastive(jnp.eye(2), jnp.eye(2), jnp.array([0, 1]))
    >>> np.array(values).round(3)  # -10 + log e^0
    array([-10., -10.], dtype=float32)

  Source: Biondi et al. 2024, Stationary Representations (arXiv 2405.02581).
  """
  in_range("temperature", temperature, "(0, inf)")
  one_of("same_class", same_class, ("drop", "zero"))
  old = jax.lax.stop_gradient(old)
  if where is not None:
    old, new = (jnp.where(where[:, None], x, 0) for x in (old, new))
  logits = cosine_similarity(old, new) / temperature
  own = jnp.diagonal(logits)
  same = labels[:, None] == labels
  absent = jnp.zeros(same.shape, bool) if where is None else jnp.broadcast_to(~where, same.shape)
  low = jnp.finfo(logits.dtype).min / 2
  rest = jnp.where(same, low, logits) if same_class == "drop" else jnp.where(same, 0.0, logits)
  rest = jnp.where(absent, low, rest)
  some = jnp.ones(own.shape, bool) if same_class == "zero" else jnp.any(~same & ~absent, axis=1)
  values = jnp.where(some, jax.nn.logsumexp(rest, axis=1), 0.0) - own
  return values if where is None else jnp.where(where, values, 0.0), count_of(where, values.shape)


def _float32(logits: Float[AnyArray, "batch classes"], kept: Bool[AnyArray, " batch"]) -> Float[Array, "batch classes"]:
  """What does not count is replaced before it is read: NaN and infinity then reach neither value nor gradient."""
  return jnp.where(kept[:, None], logits, 0).astype(jnp.float32)
