"""RegMean: the matrix that is closest to every model on that model's own inputs, in closed form."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from jaxft.checks import in_range, not_empty
from jaxft.merging.averages import average
from jaxft.signatures import explain_errors
from jaxft.transforms.low_rank.input_covariance import add_inputs
from jaxft.tree.finite_leaves import check_finite
from jaxft.tree.paths import Tree, map_with_path


@explain_errors
def gram(features: Float[Array, "... m"], *, where: Bool[Array, "..."] | None = None) -> Float[Array, "m m"]:
  """`X^T X / n` of the inputs of a linear layer, in float32, n the positions that count.

  `jaxft.transforms.low_rank.input_covariance.input_covariances` gives `X^T X` for all layers of a model.

  >>> features = jnp.array([[1.0, 0.0], [3.0, 4.0]])
  >>> gram(features)  # (1 * 1 + 3 * 3) / 2 first
  Array([[5., 6.],
         [6., 8.]], dtype=float32)
  >>> gram(features, where=jnp.array([False, True]))  # 3 * 3 first
  Array([[ 9., 12.],
         [12., 16.]], dtype=float32)

  Args:
    features: the inputs.
    where: which positions count; padding does not.
  """
  not_empty("features", features)
  if where is not None and not isinstance(where, Tracer) and not np.any(where):
    raise ValueError("where must let at least one position count; got none")
  total = add_inputs(None, features, where=where)
  return total / (features.size // features.shape[-1] if where is None else jnp.sum(where))


@explain_errors
def regmean(models: Sequence[Tree], grams: Sequence[Tree], *, alpha: float = 0.9, ridge: float = 1e-6) -> Tree:
  """`W = (sum_i G_i)^-1 sum_i G_i W_i` for the matrices that have Gram matrices; all other leaves are averaged.

  Solved for what the matrices have apart from their average, so that equal models, and directions that no input has,
  give the average.

  >>> models = [{"kernel": jnp.zeros((2, 1))}, {"kernel": jnp.ones((2, 1))}]
  >>> grams = [{"kernel": jnp.diag(jnp.array([3.0, 1.0]))}, {"kernel": jnp.diag(jnp.array([1.0, 3.0]))}]
  >>> regmean(models, grams)["kernel"].T.round(4)  # each row leans to the model that has more inputs there
  Array([[0.25, 0.75]], dtype=float32)

  Args:
    models: checkpoints with the same leaves; matrices `[..., m, n]` are applied as `x @ W`.
    grams: for each model a tree like it, of `[..., m, m]` at the matrices to solve for, None elsewhere: `X^T X / n` of
      the model's own inputs. What `input_covariances` gives counts the positions too: divide by them to weigh alike.
    alpha: what entries off the diagonal are multiplied with, in [0, 1]; 0 weighs each row by its inputs' energy.
    ridge: relative to the mean of the diagonal, added to it.

  Returns:
    The merged checkpoint, solved in float32, rounded once to the dtypes of the first.

  Raises:
    ValueError: there are not as many grams as models, a Gram matrix is missing in one of the models or has another
      shape than its matrix asks for, alpha is outside [0, 1] or ridge negative, a Gram matrix that is not
      traced holds NaN or infinity, the system is singular, or see `average`.

  Source: Jin et al. 2023 (arXiv 2212.09849); the source takes alpha between 0.1 and 1.
  """
  if len(grams) != len(models):
    raise ValueError(f"grams must have one tree for each of {len(models)} models; got {len(grams)}")
  in_range("alpha", alpha, "[0, 1]")
  in_range("ridge", ridge, "[0, inf)")
  check_finite({f"grams[{i}]": gram for i, gram in enumerate(grams)})
  count = len(models)

  def merge(path: str, mean: Any, *rest: Any) -> Any:
    ws, gs = rest[:count], rest[count:]
    if all(g is None for g in gs):
      return mean
    for i, g in enumerate(gs):
      shape = getattr(mean, "shape", ())
      wanted = None if len(shape) < 2 else (*shape[:-1], shape[-2])
      if g is None or tuple(g.shape) != wanted:
        raise ValueError(f"grams[{i}] must be {wanted} for {path}, which is {getattr(mean, 'shape', None)}; "
                         f"got {None if g is None else tuple(g.shape)}")
    return _solve(jax.tree.map(lambda w: w.astype(jnp.float32), list(ws)), list(gs), alpha, ridge, mean.dtype)

  merged = map_with_path(merge, average(models), *models, *grams)
  check_finite({"the merge": merged}, ": the system is singular, or it overflows the dtype; raise ridge")
  return merged


@partial(jax.jit, static_argnums=4)
def _solve(ws: list[Array], gs: list[Array], alpha: Any, ridge: Any, dtype: Any) -> Array:
  eye = jnp.eye(gs[0].shape[-1])
  gs = [g.astype(jnp.float32) * (alpha + (1 - alpha) * eye) for g in gs]
  total = sum(gs)
  energy = jnp.trace(total, axis1=-2, axis2=-1)[..., None, None] / eye.shape[0]
  center = ws[0] + sum(w - ws[0] for w in ws) / len(ws)
  target = sum(jnp.matmul(g, w - center, precision="highest") for g, w in zip(gs, ws, strict=True))
  return (center + jnp.linalg.solve(total + (ridge * energy + (energy == 0)) * eye, target)).astype(dtype)
