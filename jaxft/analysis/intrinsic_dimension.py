"""The intrinsic dimension of a task: the smallest subspace in which fine-tuning does nearly as well."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from jaxft.checks import in_range
from jaxft.finite import svd
from jaxft.leaves.materialize import materialize
from jaxft.signatures import explain_errors
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.paths import Tree


@explain_errors
def intrinsic_dimension(
    scores: Mapping[int, float], full: float, *, target: float = 0.9, baseline: float = 0.0, interpolate: bool = False
) -> float | None:
  """d90: the smallest measured d whose score is at least `baseline + target * (full - baseline)`.

  >>> scores = {10: 0.5, 100: 0.7, 1000: 0.9}
  >>> intrinsic_dimension(scores, 1.0, target=0.8), intrinsic_dimension(scores, 1.0, target=0.8, interpolate=True)
  (1000.0, 316.22776601683825)

  Args:
    scores: by dimension, the best over learning rates.
    full: the score of full fine-tuning.
    target: in (0, 1].
    baseline: 0 as in the source; the score of the majority class gives a figure that trivial tasks do not lower.
    interpolate: between the dimensions on either side, linear in log d.

  Returns:
    The dimension, None where no score reaches the target.

  Raises:
    ValueError: no scores, a dimension < 1, target outside (0, 1], or a score that is not finite.

  Source: Li et al. 2018 (arXiv 1804.08838); Aghajanyan et al. 2020 (arXiv 2012.13255).
  """
  if not scores or min(scores) < 1:
    raise ValueError(f"scores must have at least one dimension, each >= 1; got {sorted(scores)}")
  in_range("target", target, "(0, 1]")
  for name, value in (*((f"scores[{d}]", s) for d, s in scores.items()), ("full", full), ("baseline", baseline)):
    in_range(name, value)
  threshold = baseline + target * (full - baseline)
  dims = sorted(scores)
  for below, dim in zip([None, *dims], dims, strict=False):
    if scores[dim] < threshold:
      continue
    if not interpolate or below is None:
      return float(dim)
    share = (threshold - scores[below]) / (scores[dim] - scores[below])
    return math.exp(math.log(below) + share * (math.log(dim) - math.log(below)))
  return None


@explain_errors
def subspace_alignment(
    key: Key[Array, ""], params: Tree, delta: Tree, transform: ParamTransform
) -> Float[Array, ""]:
  """The share of `|delta|^2` that lies in the directions which a transform can move the params in from its start.

      |U^T delta|^2 / |delta|^2,   U an orthonormal basis of the columns of d join / d trainable

  For a random subspace of d of D dimensions and an update that knows nothing of it, about `d / D`; for LoRA, whose b is
  zero at the start, what its a can see. Forms the `[D, d]` Jacobian: for small models.

  >>> from jaxft.transforms import train
  >>> params, delta = {"a": jnp.zeros(1), "b": jnp.zeros(1)}, {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
  >>> subspace_alignment(jax.random.key(0), params, delta, train("a"))  # 9 / (9 + 16)
  Array(0.36, dtype=float32)

  Args:
    key: of the transform's draws.
    params: where training starts.
    delta: an update, a tree of arrays like params.
    transform: see `jaxft.transforms.ParamTransform`.

  Raises:
    ValueError: delta has another number of entries than params.
  """
  frozen, trainable = transform.split(key, params)
  start, unravel = ravel_pytree(trainable)
  flat = ravel_pytree(delta)[0].astype(jnp.float32)
  if flat.size != (size := sum(x.size for x in jax.tree.leaves(params))):
    raise ValueError(f"delta must have the {size} entries of params; got {flat.size}")
  move = lambda x: ravel_pytree(materialize(transform.join(frozen, unravel(x))))[0]
  u, s, _ = svd(jax.jacfwd(move)(start))
  # What moves nothing at the start, such as the scales of a vector of zeros, has no direction.
  inside = jnp.where(s > s[0] * size * jnp.finfo(jnp.float32).eps, u.T @ flat, 0.0)
  return jnp.sum(inside**2) / jnp.sum(flat**2)
