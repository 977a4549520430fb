"""What the best of n responses by a proxy is truly worth, for many n at once and without resampling."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import gammaln

from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, explain_errors


@explain_errors
def best_of_n_curve(
    proxy: Float[AnyArray, "prompts responses"], gold: Float[AnyArray, "prompts responses"], n: Sequence[int]
) -> Float[np.ndarray, "prompts sizes"]:
  """Expected gold reward of the response that the proxy ranks first among n, for each prompt: over-optimization.

  Over all subsets of n of the N responses, with i the rank of a response by the proxy, from the worst:

      sum_i gold_i C(i - 1, n - 1) / C(N, n)

  which is unbiased, where drawing n once for each prompt would be noisy. Responses that the proxy ties share alike.

  Args:
    proxy: rewards that choose.
    gold: what responses are worth.
    n: sizes of the sets, each in [1, N].

  Returns:
    `[prompts, sizes]`, float64: with n = 1 the mean of gold, with n = N the gold of the proxy's favourite.

  Raises:
    ValueError: shapes that differ, values that are not finite, no size, or one outside [1, N].

  Example:
    >>> best_of_n_curve(np.array([[1.0, 2.0, 3.0]]), np.array([[0.0, 6.0, 3.0]]), [1, 2, 3])
    array([[3., 4., 3.]])

  Source: the estimator of Nakano et al. 2021 (arXiv 2112.09332).
  """
  proxy, gold = np.asarray(proxy, np.float64), np.asarray(gold, np.float64)
  if proxy.ndim != 2 or proxy.shape != gold.shape:
    raise ValueError(f"proxy and gold must be [prompts, responses]; got {proxy.shape} and {gold.shape}")
  require_finite(proxy=proxy, gold=gold)
  responses, sizes = proxy.shape[1], np.asarray(n)
  if not sizes.size or not np.issubdtype(sizes.dtype, np.integer) or sizes.min() < 1 or sizes.max() > responses:
    raise ValueError(f"n must be integers in [1, responses = {responses}], at least one; got {list(n)}")
  order = np.argsort(proxy, axis=1, kind="stable")
  proxy, gold = np.take_along_axis(proxy, order, axis=1), np.take_along_axis(gold, order, axis=1)
  for row, values in zip(proxy, gold, strict=True):
    starts = np.flatnonzero(np.r_[True, row[1:] != row[:-1]])
    counts = np.diff(np.r_[starts, responses])
    values[:] = np.repeat(np.add.reduceat(values, starts) / counts, counts)
  rank = np.arange(1, responses + 1)[:, None]
  log_choose = lambda of, k: gammaln(of + 1) - gammaln(k + 1) - gammaln(np.maximum(of - k, 0) + 1)
  weights = np.where(rank >= sizes, np.exp(log_choose(rank - 1, sizes - 1) - log_choose(responses, sizes)), 0.0)
  return gold @ weights


@explain_errors
def best_of_n_divergence(n: Float[AnyArray, " sizes"] | Sequence[int]) -> Float[np.ndarray, " sizes"]:
  """`log n - (n - 1) / n`: how far choosing the best of n moves a policy, in nats of KL divergence; an upper bound.

  Args:
    n: sizes, at least 1.

  Raises:
    ValueError: a size below 1.

  Example:
    >>> best_of_n_divergence([1, 16]).round(3)
    array([0.   , 1.835])

  Source: Stiennon et al. 2020 (arXiv 2009.01325).
  """
  sizes = np.asarray(n, np.float64)
  if not (sizes >= 1).all():
    raise ValueError(f"n must be at least 1; got {sizes.tolist()}")
  return np.log(sizes) - (sizes - 1) / sizes
