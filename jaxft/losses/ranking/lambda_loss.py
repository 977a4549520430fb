"""Losses of all pairs of a row's list: RankNet, and LambdaLoss, which weighs pairs by what their order adds to nDCG."""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxft.checks import in_range, one_of
from jaxft.losses.ranking.listwise import read_lists
from jaxft.signatures import AnyArray, check_arrays

Scheme = Literal["none", "ndcg1", "ndcg2", "lambda_rank", "ndcg2++"]


@check_arrays
def rank_net(
    scores: Float[AnyArray, "batch candidates"],
    labels: Float[AnyArray, "batch candidates"],
    *,
    sigma: float = 1.0,
    k: int | None = None,
    where: Bool[AnyArray, "batch candidates"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """Logistic loss of each pair of candidates: that with the higher label is to have the higher score.

  `loss_i = mean over label_j > label_l of log(1 + exp(-sigma (s_j - s_l)))`

  Args:
    scores: of a row's candidates.
    labels: what each is worth.
    sigma: > 0, how sharply scores are told apart.
    k: pairs of which at least one is among the k highest scores; None takes all.
    where: candidates that count.

  Returns:
    `(values, weights)` of the rows, float32, in nats: a row weighs its number of pairs, so that the mean is that of all
    pairs.

  Raises:
    ValueError: sigma <= 0 or not finite, or k below 1.

  Example:
    >>> values, weights = rank_net(jnp.zeros((1, 3)), jnp.array([[1.0, 0.0, 0.0]]))
    >>> np.array(values).round(3), weights  # log 2 of two pairs
    (array([0.693], dtype=float32), Array([2.], dtype=float32))

  Source: Burges et al. 2005.

  sentence-transformers: `RankNetLoss`, with `reduction_log="natural"`
  """
  values, weights = lambda_loss(scores, labels, scheme="none", sigma=sigma, k=k, where=where)
  return values * math.log(2), weights


@check_arrays
def lambda_loss(
    scores: Float[AnyArray, "batch candidates"],
    labels: Float[AnyArray, "batch candidates"],
    *,
    scheme: Scheme = "ndcg2++",
    k: int | None = None,
    sigma: float = 1.0,
    mu: float = 10.0,
    where: Bool[AnyArray, "batch candidates"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """The loss of each pair of candidates weighed by how much nDCG hangs on their order.

      loss_i = mean over label_j > label_l of w_jl log2(1 + exp(-sigma (s_j - s_l)))

  With ranks r by score, gains `G = (2^label - 1) / max DCG` and discounts `D(r) = log2(1 + r)`, w is

  - "none": 1;
  - "ndcg1": `G_j / D(r_j)`, of all pairs, also those of equal labels;
  - "ndcg2": `|1 / D(|r_j - r_l|) - 1 / D(|r_j - r_l| + 1)| |G_j - G_l|`;
  - "lambda_rank": `|1 / D(r_j) - 1 / D(r_l)| |G_j - G_l|`;
  - "ndcg2++": mu times that of "ndcg2" and that of "lambda_rank".

  Args:
    scores: of a row's candidates. Equal ones rank in their order.
    labels: what each is worth; below 0 it gains as 0 does.
    scheme: the weights, constants.
    k: pairs of which at least one is among the k highest scores, and the DCG of the k best; None takes all.
    sigma: > 0, how sharply scores are told apart.
    mu: of "ndcg2++", >= 0.
    where: candidates that count.

  Returns:
    `(values, weights)` of the rows, float32, in bits: a row weighs its number of pairs, so that the mean is that of all
    pairs.

  Raises:
    ValueError: an unknown scheme, sigma <= 0, mu below 0, or k below 1.

  Example:
    >>> values, weights = lambda_loss(jnp.zeros((1, 2)), jnp.array([[0.0, 1.0]]), scheme="lambda_rank")
    >>> np.array(values).round(3), weights  # 1 - 1 / log2(3)
    (array([0.369], dtype=float32), Array([1.], dtype=float32))

  Source: Wang et al. 2018, The LambdaLoss Framework for Ranking Metric Optimization.

  sentence-transformers: `LambdaLoss`
  """
  one_of("scheme", scheme, get_args(Scheme))
  in_range("sigma", sigma, "(0, inf)")
  in_range("mu", mu, "[0, inf)")
  if k is not None and k < 1:
    raise ValueError(f"k must be at least 1, or None for all; got {k}")
  scores, labels, kept, _ = read_lists(scores, labels, where)
  size = scores.shape[1]
  top = size if k is None else k
  # By score, what does not count last.
  order = jnp.argsort(jnp.where(kept, -scores, jnp.inf), axis=1, stable=True)
  scores, labels, kept = (jnp.take_along_axis(x, order, axis=1) for x in (scores, labels, kept))
  rank = jnp.arange(1, size + 1)
  pairs = kept[:, :, None] & kept[:, None] & ((rank[:, None] <= top) | (rank <= top))
  if scheme != "ndcg1":
    pairs &= labels[:, :, None] > labels[:, None]
  weights = jax.lax.stop_gradient(_weights(jnp.where(kept, labels, 0.0), scheme, top, mu))
  difference = sigma * (scores[:, :, None] - scores[:, None])
  each = jnp.where(pairs, weights * jax.nn.softplus(-difference) / math.log(2), 0.0)
  count = jnp.sum(pairs, axis=(1, 2)).astype(jnp.float32)
  return jnp.sum(each, axis=(1, 2)) / jnp.maximum(count, 1), count


def _weights(labels: Float[Array, "batch candidates"], scheme: Scheme, k: int, mu: float) -> Array:
  """Of each pair of candidates, which are in the order of their scores."""
  if scheme == "none":
    return jnp.ones(())
  size = labels.shape[1]
  discount = jnp.log2(1 + jnp.arange(1, size + 2, dtype=jnp.float32))  # of the ranks 1 to size + 1
  value = jnp.exp2(jnp.maximum(labels, 0.0)) - 1
  best = -jnp.sort(-value, axis=1)[:, :k] / discount[: min(k, size)]
  gain = value / jnp.maximum(jnp.sum(best, axis=1, keepdims=True), 1e-10)
  if scheme == "ndcg1":
    return (gain / discount[:size])[:, :, None]
  apart = jnp.abs(jnp.arange(size)[:, None] - jnp.arange(size))
  ndcg2 = jnp.where(apart > 0, jnp.abs(1 / discount[apart - 1] - 1 / discount[apart]), 0.0)
  rank = 1 / discount[:size]
  lambda_rank = jnp.abs(rank[:, None] - rank)
  by_scheme = {"ndcg2": ndcg2, "lambda_rank": lambda_rank, "ndcg2++": mu * ndcg2 + lambda_rank}
  return by_scheme[scheme] * jnp.abs(gain[:, :, None] - gain[:, None])
