"""Mixup: inputs, or their encodings, and their labels in shares of two examples."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxft.checks import in_range
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def mixup(
    key: jax.Array, x: Float[AnyArray, " batch *dims"], y: Float[AnyArray, "batch classes"], *, alpha: float = 1.0,
    per_example: bool = False,
) -> tuple[Float[Array, " batch *dims"], Float[Array, "batch classes"]]:
  """`l x_i + (1 - l) x_j` and the same of the labels, with l from Beta(alpha, alpha) and j a permutation of the batch.

  Of sentence vectors it is senMixup, of the embeddings of words, padded to one length, wordMixup: then mix the mask of
  what is attended to by its union. With `soft_cross_entropy` the loss is `l` that of i's label and `1 - l` of j's.

  >>> x, y = mixup(jax.random.key(0), jnp.eye(3), jnp.eye(3), alpha=0.5)
  >>> bool(jnp.all(x == y)), y.sum(axis=1).round(3)
  (True, Array([1., 1., 1.], dtype=float32))

  Args:
    key: draws l and j.
    x: inputs or encodings.
    y: labels, one-hot or soft.
    alpha: > 0.
    per_example: l for each row; one for the batch otherwise, as the source has it.

  Raises:
    ValueError: alpha <= 0 or not finite.

  Source: Zhang et al. 2017 (arXiv 1710.09412); of text Guo et al. 2019 (arXiv 1905.08941).
  """
  in_range("alpha", alpha, "(0, inf)")
  for_share, for_partner = jax.random.split(key)
  size = x.shape[0]
  share = jax.random.beta(for_share, alpha, alpha, (size if per_example else 1,))
  partner = jax.random.permutation(for_partner, size)

  def mixed(a: Array) -> Array:
    part = share.reshape(-1, *(1,) * (a.ndim - 1)).astype(a.dtype)
    return part * a + (1 - part) * a[partner]

  return mixed(jnp.asarray(x)), mixed(jnp.asarray(y))
