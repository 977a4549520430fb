"""Choosing the most certain examples of each class."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxft.checks import in_range
from jaxft.finite import require_finite
from jaxft.signatures import explain_errors


@explain_errors
def top_per_class(probs: Float[Array, "n classes"], k: int) -> tuple[Bool[Array, " n"], Int[Array, " n"]]:
  """The k examples that each class scores highest, whatever other classes make of them: a balanced trusted set.

  >>> probs = jnp.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.7, 0.3]])
  >>> chosen, label = top_per_class(probs, 1)  # every example is predicted as 0; 1 takes its likeliest all the same
  >>> chosen, label
  (Array([ True, False,  True, False], dtype=bool), Array([0, 0, 1, 0], dtype=int32))

  Args:
    probs: of each example and class, such as zero-shot predictions without labels.
    k: examples of each class; UFM takes `min(n // classes, 100)`.

  Returns:
    Which examples are chosen by some class, at most `k * classes` of them as one may be chosen by several; and a label
    for each example: of a chosen one the class with the largest probability among those that chose it, else the
    predicted class. Of equal scores the first are taken. Under `jax.jit` an example with NaN is never chosen, and has
    the label -1.

  Raises:
    ValueError: k is not in 1..n, or a probability that is not traced is not finite.

  Source: the trusted set of UFM, Zhang et al. 2024 (arXiv 2407.02880), appendix E, where its code marks every example.
  """
  n, classes = probs.shape
  if not 1 <= k <= n:
    raise ValueError(f"k must lie in 1..{n}, the number of examples; got {k}")
  require_finite(probs=probs)
  fine = jnp.isfinite(probs).all(axis=-1)
  probs = jnp.where(fine[:, None], probs, -jnp.inf)
  rows = jax.lax.top_k(probs.T, k)[1]
  taken = jnp.zeros((n, classes), bool).at[rows, jnp.arange(classes)[:, None]].set(True)
  chosen = jnp.any(taken, axis=-1) & fine
  own = jnp.argmax(jnp.where(taken, probs, -jnp.inf), axis=-1)
  return chosen, jnp.where(fine, jnp.where(chosen, own, jnp.argmax(probs, axis=-1)), -1)


@explain_errors
def confident(
    probs: Float[Array, "n classes"], *, threshold: float | None = None, top_per_class: int | None = None
) -> tuple[Bool[Array, " n"], Int[Array, " n"]]:
  """The examples whose predicted class is certain: probable enough, or among the likeliest of that class, or both.

  Their labels are the model's own: pseudo-labels to learn from. A count per class keeps frequent classes from taking
  over; unlike `top_per_class`, no example is taken for a class that it is not predicted as.

  >>> probs = jnp.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
  >>> confident(probs, threshold=0.7)[0]
  Array([ True,  True, False,  True], dtype=bool)
  >>> confident(probs, top_per_class=1)
  (Array([ True, False, False,  True], dtype=bool), Array([0, 0, 0, 1], dtype=int32))

  Args:
    probs: of each example and class.
    threshold: in (0, inf); above 1 nothing is chosen.
    top_per_class: >= 1; of equal probabilities the first are taken.

  Returns:
    Which examples are chosen, and the predicted class of each. Under `jax.jit` an example with NaN is never chosen, and
    has the label -1.

  Raises:
    ValueError: neither is given, one is out of range, or a probability that is not traced is not finite.

  Source: in the transductive fine-tuning of Zhong et al. 2023, Vega (arXiv 2302.09268), as one reading of it.
  """
  if threshold is None and top_per_class is None:
    raise ValueError("threshold or top_per_class must be given; got neither")
  if threshold is not None:
    in_range("threshold", threshold, "(0, inf)")
  if top_per_class is not None:
    in_range("top_per_class", top_per_class, "[1, inf)")
  require_finite(probs=probs)
  fine = jnp.isfinite(probs).all(axis=-1)
  peak, label = jnp.max(probs, axis=-1), jnp.argmax(probs, axis=-1)
  chosen = fine
  if threshold is not None:
    chosen &= peak >= threshold
  if top_per_class is not None:
    own = jnp.where((label[:, None] == jnp.arange(probs.shape[1])) & fine[:, None], peak[:, None], -jnp.inf)
    order = jnp.argsort(jnp.argsort(-own, axis=0), axis=0)
    chosen &= jnp.take_along_axis(order, label[:, None], axis=1)[:, 0] < top_per_class
  return chosen, jnp.where(fine, label, -1)
