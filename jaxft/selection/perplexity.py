"""Filtering by perplexity: a text that a model finds likely is taken for a clean one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxft.checks import in_range
from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, check_arrays, explain_errors


@check_arrays
def sequence_perplexity(
    logits: Float[AnyArray, "batch time vocab"], targets: Int[AnyArray, "batch time"],
    where: Bool[AnyArray, "batch time"],
) -> Float[Array, " batch"]:
  """`exp(-mean_t log p(target_t))` of each text over the tokens that count.

  >>> sequence_perplexity(jnp.zeros((1, 3, 8)), jnp.zeros((1, 3), int), jnp.array([[False, True, True]])).round(3)
  Array([8.], dtype=float32)

  Args:
    logits: those at a place score the target there.
    targets: the tokens.
    where: tokens that count: a caption's, not those of the prompt or of padding. A text without one gives NaN.

  Source: Liu et al. 2024, POINTS (arXiv 2409.04828).
  """
  log_probs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32), axis=-1)
  each = jnp.take_along_axis(log_probs, jnp.asarray(targets)[..., None], axis=-1)[..., 0]
  return jnp.exp(-jnp.sum(jnp.where(where, each, 0.0), axis=1) / jnp.sum(where, axis=1))


@explain_errors
def select_band(
    scores: Float[AnyArray, " records"], *, low: float = 0.0, high: float = 0.2,
    eligible: Bool[AnyArray, " records"] | None = None,
) -> Int[np.ndarray, " chosen"]:
  """The rows whose scores lie between two quantiles, the lowest fifth as it stands; ascending.

  Of n rows in order, those from `floor(low n)` to `floor(high n)`; of equal scores the first are lower. The lowest tail
  holds short and repeated texts: a floor on the length by `eligible`, or a band above 0, is the control for that.

  >>> select_band(np.array([3.0, 1.0, 2.0, 5.0, 4.0]), high=0.4)
  array([1, 2])

  Args:
    scores: such as perplexities; lower is better.
    low, high: shares, 0 <= low < high <= 1.
    eligible: rows that may be chosen, of which the shares are.

  Raises:
    ValueError: low or high out of range, or an eligible score that is not finite.

  Source: the lowest 20% as in Liu et al. 2024, POINTS (arXiv 2409.04828).
  """
  in_range("low", low, "[0, 1)")
  in_range("high", high, "(0, 1]")
  if low >= high:
    raise ValueError(f"low must be below high = {high}; got {low}")
  scores = np.asarray(scores)
  rows = np.arange(len(scores)) if eligible is None else np.flatnonzero(np.asarray(eligible))
  require_finite(scores=scores[rows])
  cut: Callable[[float], int] = lambda share: int(np.floor(share * len(rows) + 1e-9))
  return np.sort(rows[np.argsort(scores[rows], kind="stable")[cut(low) : cut(high)]])
