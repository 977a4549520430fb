"""Choosing the most certain examples of each class."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxft.finite import require_finite


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
