"""Losses of a row's list of candidates against what each is worth."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxft.checks import in_range
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def list_net(
    scores: Float[AnyArray, "batch candidates"],
    labels: Float[AnyArray, "batch candidates"],
    *,
    where: Bool[AnyArray, "batch candidates"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """Cross-entropy between which candidate the labels put first and which the scores do, both as a softmax.

  `loss_i = -sum_j softmax(labels_i)_j log softmax(scores_i)_j`

  Args:
    scores: of a row's candidates.
    labels: what each is worth; constants.
    where: candidates that count; a row with none is padding.

  Returns:
    `(values, weights)` of the rows, float32.

  Example:
    >>> values, weights = list_net(jnp.zeros((1, 3)), jnp.array([[1.0, 0.0, 0.0]]))
    >>> np.array(values).round(3), weights
    (array([1.099], dtype=float32), Array([1.], dtype=float32))

  Source: Cao et al. 2007, the top-one form.

  sentence-transformers: `ListNetLoss`
  """
  scores, labels, kept, some = read_lists(scores, labels, where)
  log_of = lambda x: jax.nn.log_softmax(jnp.where(kept, x, jnp.finfo(x.dtype).min / 2), axis=1)
  each = jnp.where(kept, jnp.exp(log_of(labels)) * log_of(scores), 0.0)
  return jnp.where(some, -jnp.sum(each, axis=1), 0.0), some.astype(jnp.float32)


@check_arrays
def list_mle(
    scores: Float[AnyArray, "batch candidates"],
    labels: Float[AnyArray, "batch candidates"],
    *,
    position_aware: bool = False,
    where: Bool[AnyArray, "batch candidates"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """`-log` of the probability of the labels' order, drawn without replacement by the scores (Plackett and Luce).

  `loss_i = -sum_k w_k log(exp s_(k) / sum_{l >= k} exp s_(l))`, where (k) is the k-th by label

  Args:
    scores: of a row's candidates.
    labels: what each is worth; equal ones keep their order, so that `-arange` says that the lists are in order.
    position_aware: w_k is `2^(n - k) - 1` over the sum of these, n being the number of candidates, in place of 1, so
      that the front of the list counts most.
    where: candidates that count; a row with none is padding.

  Returns:
    `(values, weights)` of the rows, float32; of one candidate the value is 0.

  Example:
    >>> values, weights = list_mle(jnp.zeros((1, 3)), jnp.array([[1.0, 3.0, 2.0]]))
    >>> np.array(values).round(3), weights  # log 3!
    (array([1.792], dtype=float32), Array([1.], dtype=float32))

  Source: Xia et al. 2008; Lan et al. 2014, Position-Aware ListMLE.

  sentence-transformers: `ListMLELoss`, `PListMLELoss`
  """
  scores, labels, kept, some = read_lists(scores, labels, where)
  order = jnp.argsort(jnp.where(kept, -labels, jnp.inf), axis=1, stable=True)
  scores, kept = (jnp.take_along_axis(x, order, axis=1) for x in (scores, kept))
  low = jnp.where(kept, scores, jnp.finfo(scores.dtype).min / 2)
  rest = jax.lax.cumlogsumexp(low, axis=1, reverse=True)
  each = jnp.where(kept, rest - scores, 0.0)
  if position_aware:
    count = jnp.sum(kept, axis=1, keepdims=True)
    rank = jnp.arange(1, scores.shape[1] + 1)
    # Over 2^n, which divides out: 2^(n - k) has no float32 from 128 candidates on.
    weight = jnp.where(kept, jnp.exp2(-rank.astype(jnp.float32)) - jnp.exp2(-count.astype(jnp.float32)), 0.0)
    total = jnp.sum(weight, axis=1, keepdims=True)
    each *= jnp.where(total > 0, weight / jnp.where(total > 0, total, 1.0), 0.0)
  return jnp.where(some, jnp.sum(each, axis=1), 0.0), some.astype(jnp.float32)


@check_arrays
def rank_mse(
    scores: Float[AnyArray, "batch candidates"],
    labels: Float[AnyArray, "batch candidates"],
    *,
    alpha: float = 1.0,
    where: Bool[AnyArray, "batch candidates"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """ADR-MSE: how far the smoothed rank of each candidate is from its rank by label, discounted as in nDCG.

      rank_j = 1 + sum_{k != j} sigmoid(alpha (s_k - s_j)),   loss_i = mean_j (rank_j - r_j)^2 / log2(r_j + 1)

  Args:
    scores: of a row's candidates.
    labels: what each is worth; equal ones share the mean of their ranks r.
    alpha: > 0, how sharply scores are told apart.
    where: candidates that count; a row with none is padding.

  Returns:
    `(values, weights)` of the rows, float32: a row weighs its number of candidates.

  Raises:
    ValueError: alpha <= 0 or not finite.

  Example:
    >>> values, weights = rank_mse(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]))
    >>> np.array(values).round(3), weights  # both at rank 1.5
    (array([0.204], dtype=float32), Array([2.], dtype=float32))

  Source: Schlatt et al. 2024, Rank-DistiLLM (arXiv 2405.07920).

  sentence-transformers: `ADRMSELoss`
  """
  in_range("alpha", alpha, "(0, inf)")
  scores, labels, kept, _ = read_lists(scores, labels, where)
  other = kept[:, None] & ~jnp.eye(scores.shape[1], dtype=bool)
  smooth = 1 + jnp.sum(jnp.where(other, jax.nn.sigmoid(alpha * (scores[:, None] - scores[:, :, None])), 0.0), axis=2)
  higher, equal = labels[:, None] > labels[:, :, None], labels[:, None] == labels[:, :, None]
  true = 1 + jnp.sum(jnp.where(other, higher + 0.5 * equal, 0.0), axis=2)
  count = jnp.sum(kept, axis=1).astype(jnp.float32)
  each = jnp.where(kept, jnp.square(true - smooth) / jnp.log2(true + 1), 0.0)
  return jnp.sum(each, axis=1) / jnp.maximum(count, 1), count


def read_lists(scores, labels, where):
  """In float32 with 0 where nothing counts, what counts, and which rows hold something."""
  kept = jnp.ones(scores.shape, bool) if where is None else where
  read = lambda x: jnp.asarray(jnp.where(kept, x, 0), jnp.promote_types(x.dtype, jnp.float32))
  return read(scores), jax.lax.stop_gradient(read(labels)), kept, jnp.any(kept, axis=1)
