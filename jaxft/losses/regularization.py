"""Penalties: on weights, how far they are from a reference, one number each, to be added to a reduced loss; and on
embeddings, how little they spread, which come as the shares of the rows and are added to a loss's values."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from jaxft.checks import in_range
from jaxft.losses.contrastive import cosine_similarity
from jaxft.losses.reduction import count_of
from jaxft.signatures import AnyArray, Tree, check_arrays, explain_errors


@explain_errors
def l1_to_reference(
    params: Tree, reference: Tree, *, where: Tree | None = None, normalizer: float | None = None
) -> Float[Array, ""]:
  """`sum |params - reference| / normalizer`, which pulls single weights exactly onto the reference.

  The gradient at the reference is 0, so that what has not moved is not moved.

  Args:
    params: a tree of arrays; holes are passed over.
    reference: a tree like it; no gradient flows there.
    where: a tree like it of booleans or of masks that broadcast against the leaves; None counts everything.
    normalizer: None takes the number of entries of `params`. The source divides by that of all parameters of the model,
      frozen ones included.

  Raises:
    ValueError: the trees or shapes differ, or normalizer is not > 0 and finite.

  Example:
    >>> float(l1_to_reference({"w": jnp.array([1.0, -2.0])}, {"w": jnp.zeros(2)}))
    1.5

  Source: Ansell et al. 2022, LT-SFT (arXiv 2110.07560), with a weight of 0.1 for language modelling.
  """
  # |x| as x sign(x): the derivative of jnp.abs at 0 is 1 in some versions of JAX.
  size = lambda x: x * jax.lax.stop_gradient(jnp.sign(x))
  return _distance(size, params, reference, where, normalizer)


@explain_errors
def l2_to_reference(
    params: Tree, reference: Tree, *, where: Tree | None = None, normalizer: float | None = 2.0
) -> Float[Array, ""]:
  """`sum (params - reference)^2 / normalizer`: L2-SP, weight decay towards the pretrained weights.

  Args:
    params, reference, where: see `l1_to_reference`.
    normalizer: 2 for L2-SP; None takes the number of entries of `params`.

  Raises:
    ValueError: the trees or shapes differ, or normalizer is not > 0 and finite.

  Example:
    >>> float(l2_to_reference({"w": jnp.array([1.0, -2.0])}, {"w": jnp.zeros(2)}))
    2.5

  Source: Li et al. 2018 (arXiv 1802.01483).
  """
  return _distance(jnp.square, params, reference, where, normalizer)


@explain_errors
def sum_of_norms(tree: Tree, *, leading: int = 0, eps: float = 1e-12) -> Float[Array, ""]:
  """`sum over tensors of |x|_2`, not squared: a push of one size on each tensor, however small it is.

  Args:
    tree: a tree of arrays, such as the scores of a learned mask; holes are passed over.
    leading: axes in front that count tensors, 1 for stacked layers, so that the penalty is that of unrolled ones.
    eps: added under the root, for the gradient at zero.

  Raises:
    ValueError: eps is not >= 0 and finite.

  Example:
    >>> float(sum_of_norms({"w": jnp.array([3.0, 4.0]), "b": jnp.array([2.0])}))
    7.0

  Source: the penalty of Zheng et al. 2023, R-AMT (arXiv 2307.15049), with a weight of 1e-4.
  """
  if not 0 <= eps < math.inf:
    raise ValueError(f"eps must be >= 0 and finite; got {eps}")
  square = lambda x: jnp.sum(jnp.square(x.astype(jnp.float32)), axis=tuple(range(leading, x.ndim)))
  return sum((jnp.sum(jnp.sqrt(s + eps)) for s in map(square, jax.tree.leaves(tree))), jnp.zeros(()))


@check_arrays
def global_orthogonal(
    embeddings: Float[AnyArray, "batch dim"],
    *,
    mean_weight: float = 1.0,
    second_moment_weight: float = 1.0,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """Cosines of unrelated rows as of random directions: of mean 0, and of a second moment not above `1 / dim`.

  `w1 (mean_{i != j} c_ij)^2 + w2 max(0, mean_{i != j} c_ij^2 - 1 / dim)`, as the shares of the rows.

  Args:
    embeddings: of rows that are unrelated, one side of the pairs of a batch.
    mean_weight: w1 >= 0.
    second_moment_weight: w2 >= 0.
    where: rows that count; the others give 0 and weigh 0.

  Returns:
    `(values, weights)` of the rows, float32, whose mean is the penalty; a share may be negative.

  Raises:
    ValueError: a weight below 0 or not finite.

  Example:
    >>> values, weights = global_orthogonal(jnp.ones((3, 4)))  # all cosines are 1
    >>> np.array(values).round(3), weights
    (array([1.75, 1.75, 1.75], dtype=float32), Array([1., 1., 1.], dtype=float32))

  Source: Zhang et al. 2017 (arXiv 1708.06320).

  sentence-transformers: `GlobalOrthogonalRegularizationLoss`
  """
  in_range("mean_weight", mean_weight, "[0, inf)")
  in_range("second_moment_weight", second_moment_weight, "[0, inf)")
  size, dim = embeddings.shape
  kept = jnp.ones(size, bool) if where is None else where
  if where is not None:
    embeddings = jnp.where(where[:, None], embeddings, 0)
  pair = kept[:, None] & kept & ~jnp.eye(size, dtype=bool)
  cosine = jnp.where(pair, cosine_similarity(embeddings, embeddings), 0.0)
  count = jnp.sum(kept)
  others = jnp.maximum(count - 1, 1)
  of_rows, squares = jnp.sum(cosine, axis=1) / others, jnp.sum(cosine * cosine, axis=1) / others
  mean = lambda x: jnp.sum(jnp.where(kept, x, 0.0)) / jnp.maximum(count, 1)
  values = mean_weight * of_rows * mean(of_rows)
  values += second_moment_weight * jnp.where(mean(squares) > 1 / dim, squares - 1 / dim, 0.0)
  return jnp.where(kept, values, 0.0), count_of(where, values.shape)


def _distance(
    f: Callable[[Array], Array], params: Tree, reference: Tree, where: Tree | None, normalizer: float | None
) -> Float[Array, ""]:
  if normalizer is not None and not isinstance(normalizer, Tracer) and not 0 < normalizer < math.inf:
    raise ValueError(f"normalizer must be > 0 and finite, or None for the number of entries; got {normalizer}")
  for name, tree in (("reference", reference), ("where", where)):
    if (tree is not None or name == "reference") and (got := jax.tree.structure(tree)) != jax.tree.structure(params):
      raise ValueError(f"{name} must be a tree like params, {jax.tree.structure(params)}; got {got}")

  def part(keys: tuple[Any, ...], new: Array, old: Array, mask: Any) -> Float[Array, ""]:
    if new.shape != old.shape:
      raise ValueError(f"reference must have the shapes of params; {jax.tree_util.keystr(keys)} has {old.shape}, "
                       f"params {new.shape}")
    difference = new.astype(jnp.float32) - jax.lax.stop_gradient(old.astype(jnp.float32))
    shape = np.shape(mask)
    aligned = zip(reversed(shape), reversed(new.shape), strict=False)  # broadcasting aligns the last axes
    if len(shape) > new.ndim or any(n not in (1, m) for n, m in aligned):
      raise ValueError(f"where must broadcast against params; {jax.tree_util.keystr(keys)} has {shape}, "
                       f"params {new.shape}")
    # Selected before f, so that what is masked reaches neither the value nor the gradient.
    return jnp.sum(f(jnp.where(mask, difference, 0.0)))

  where = jax.tree.map(lambda _: True, params) if where is None else where
  parts = jax.tree.leaves(jax.tree_util.tree_map_with_path(part, params, reference, where))
  count = sum(x.size for x in jax.tree.leaves(params)) if normalizer is None else normalizer
  return sum(parts, jnp.zeros(())) / count
