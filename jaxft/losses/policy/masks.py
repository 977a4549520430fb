"""Which tokens of a rollout learn."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from jaxft.checks import in_range
from jaxft.losses.reduction import masked
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def top_entropy_mask(
    entropies: Float[AnyArray, "batch time"],
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"],
    *,
    fraction: float = 0.2,
) -> Bool[Array, "batch time"]:
  """The share of tokens where the policy is least certain: entropies at or above the quantile of all that count.

  Args:
    entropies: of the distributions that predict the tokens, as of `token_statistics`.
    where: the tokens that count, of the whole batch.
    fraction: in (0, 1]; 1 keeps all.

  Raises:
    ValueError: fraction out of range.

  Example:
    >>> top_entropy_mask(jnp.array([[0.1, 0.9, 0.5, 7.0]]), jnp.array([[1, 1, 1, 0]]), fraction=0.3)
    Array([[False,  True, False, False]], dtype=bool)

  Source: Wang et al. 2025 (arXiv 2506.01939).

  TRL: `GRPOTrainer`, `top_entropy_quantile`
  """
  in_range("fraction", fraction, "(0, 1]")
  counts = jnp.asarray(where) != 0
  (entropies,) = masked(where, jax.lax.stop_gradient(entropies))
  if fraction == 1:
    return counts
  return counts & (entropies >= jnp.nanquantile(jnp.where(counts, entropies, jnp.nan), 1 - fraction))


@check_arrays
def drop_truncated(
    tokens: Int[AnyArray, "batch time"],
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"],
    eos_id: int | Int[AnyArray, " ids"],
) -> Float[Array, "batch time"]:
  """The weights of tokens, 0 in responses that do not end with an end-of-text token: they were cut off, not finished.

  Args:
    tokens: ids.
    where: the tokens of the response, or how much each weighs.
    eos_id: the token, or the tokens, that end a response.

  Example:
    >>> tokens, where = jnp.array([[5, 6, 2, 0], [5, 6, 7, 8]]), jnp.array([[0, 1, 1, 0], [0, 1, 1, 1]])
    >>> drop_truncated(tokens, where, 2)
    Array([[0., 1., 1., 0.],
           [0., 0., 0., 0.]], dtype=float32)

  Source: Yu et al. 2025, DAPO (arXiv 2503.14476).

  TRL: `GRPOTrainer`, `mask_truncated_completions`
  """
  counts = jnp.asarray(where) != 0
  last = counts & (jnp.cumsum(counts[:, ::-1], axis=1)[:, ::-1] == 1)
  ended = jnp.any(last & jnp.isin(tokens, jnp.asarray(eos_id)), axis=1, keepdims=True)
  return jnp.where(ended, jnp.asarray(where, jnp.float32), 0.0)
