"""Labels that a fitted model repairs: those that it is sure are wrong, or all of them a little."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxft.checks import in_range
from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, check_arrays, explain_errors


@check_arrays
def relabel(
    labels: Int[AnyArray, " n"],
    probs: Float[AnyArray, "n classes"],
    *,
    threshold: float | None = None,
    mix: float = 0.0,
) -> Float[Array, "n classes"]:
  """Targets from labels and what a model makes of the same examples: `(1 - mix) onehot(y) + mix p`.

  With a threshold, y is the model's class where that is another one and its probability reaches the threshold. The
  probabilities should come from a model that has not seen the example's label (`folds`), since one that has repeats it.

  Args:
    labels: in [0, classes).
    probs: of a fitted model.
    threshold: > 0; above 1 no label changes. None changes none.
    mix: in [0, 1], how much of a target is the model's.

  Returns:
    The targets, float32; each row adds up to what its `probs` do. A label out of range gives NaN.

  Raises:
    ValueError: a number out of range, or a probability that is not traced and not finite.

  Example:
    >>> probs = jnp.array([[0.9, 0.1], [0.4, 0.6]])
    >>> relabel(jnp.array([1, 0]), probs, threshold=0.8)  # of the second the model is not sure
    Array([[1., 0.],
           [1., 0.]], dtype=float32)

  Source: one reading of the self-calibrated fine-tuning of Zhong et al. 2023, Vega (arXiv 2302.09268), who give no
  formula.
  """
  in_range("mix", mix, "[0, 1]")
  if threshold is not None:
    in_range("threshold", threshold, "(0, inf)")
  require_finite(probs=probs)
  labels, probs = jnp.asarray(labels), jnp.asarray(probs, jnp.float32)
  classes = probs.shape[1]
  known = (labels >= 0) & (labels < classes)
  if threshold is not None:
    sure = jnp.max(probs, axis=1) >= threshold
    labels = jnp.where(sure, jnp.argmax(probs, axis=1).astype(labels.dtype), labels)
  targets = (1 - mix) * jax.nn.one_hot(labels, classes) + mix * probs
  return jnp.where(known[:, None], targets, jnp.nan)


@explain_errors
def folds(rng: np.random.Generator, n: int, count: int) -> Int[np.ndarray, " n"]:
  """The fold of each example, at random and as even as can be: a model of the others judges it.

  >>> np.bincount(folds(np.random.default_rng(0), 10, 4))
  array([3, 3, 2, 2])

  Args:
    rng: draws the order.
    n: examples.
    count: folds, from 2 to n.

  Raises:
    ValueError: count is out of range.
  """
  if not 2 <= count <= n:
    raise ValueError(f"count must lie in 2..{n}, the number of examples; got {count}")
  return rng.permutation(np.arange(n) % count)
