"""Gradient dropout by agreement: a task's gradient survives where a reference loss does not object."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxft.checks import in_range
from jaxft.signatures import Tree, explain_errors
from jaxft.tree.paths import fold_in_path, path_of


@explain_errors
def agreement(
    gradient: Float[Array, "..."], reference: Float[Array, "..."], *, eps: float = 1e-8
) -> Float[Array, "..."]:
  """`P = (1 + sign(g) (g + r) / (|g| + |r| + eps)) / 2`: the probability that each coordinate of g survives.

  1 where the signs agree or r is zero; `|g| / (|g| + |r|)` where they differ; 1/2 where g is zero.

  Example:
    >>> agreement(jnp.array([1.0, 1.0]), jnp.array([2.0, -1.0]))
    Array([1. , 0.5], dtype=float32)
  """
  g, r = gradient.astype(jnp.float32), reference.astype(jnp.float32)
  return 0.5 * (1.0 + jnp.sign(g) * (g + r) / (jnp.abs(g) + jnp.abs(r) + eps))


@explain_errors
def agreement_dropout(
    key: Key[Array, ""], gradients: Tree, references: Tree, *, strength: float = 1.0, eps: float = 1e-8
) -> Tree:
  """Drops coordinates of a gradient at random where they go against a reference gradient.

      g <- ((1 - strength) + strength * 1[P > U]) * g,   U uniform for each coordinate and step,   P of `agreement`

  The reference only gates, it is never added. Two gradients of one forward pass come from one `jax.vjp` and two
  cotangents. Apply it after gradients are summed over devices; gradients that are global arrays already are.

  Args:
    key: of this step; each leaf folds in its path.
    gradients: of the task's loss with its penalties.
    references: of a loss that keeps what the model knows, such as the divergence from its first predictions.
    strength: in [0, 1]; 0 leaves the gradients as they are.
    eps: of the denominator.

  Raises:
    ValueError: strength outside [0, 1].

  Example:
    >>> kept = agreement_dropout(jax.random.key(0), {"w": jnp.ones(4)}, {"w": jnp.array([1.0, 1.0, -1.0, -1.0])})
    >>> kept["w"]
    Array([1., 1., 0., 0.], dtype=float32)

  Source: Zheng et al. 2023, R-AMT (arXiv 2307.15049), there lambda; after Chen et al. 2020 (arXiv 2010.06808).
  """
  in_range("strength", strength, "[0, 1]")
  in_range("eps", eps, "[0, inf)")

  def drop(keys: tuple[Any, ...], g: Array, r: Array) -> Array:
    agreed = agreement(g, r, eps=eps)
    survives = agreed > jax.random.uniform(fold_in_path(key, path_of(keys)), g.shape)
    kept = jnp.where(survives, g, (1.0 - strength) * g)
    return jnp.where(jnp.isnan(agreed), jnp.nan, kept).astype(g.dtype)  # a reference of NaN says nothing

  return jax.tree_util.tree_map_with_path(drop, gradients, references)
