"""What fine-tuning did to the spectra of matrices: intruder dimensions, effective rank."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxft.checks import nearest
from jaxft.finite import svd
from jaxft.signatures import AnyArray, explain_errors
from jaxft.tree.choice import Choice, mask
from jaxft.tree.finite_leaves import check_finite
from jaxft.tree.paths import Tree, leaves_with_paths


class Overlap(NamedTuple):
  """Singular vectors of a tuned matrix against those of its base, of `r = min(m, n)`.

  Attributes:
    values: singular values of the tuned matrix, falling, `[*layers, r]`; axes in front as in `tuned`.
    cosines: of each of its vectors, the largest `|cosine|` with any vector of the base, `[*layers, r]`.
  """

  values: Float[Array, "*layers r"]
  cosines: Float[Array, "*layers r"]


@explain_errors
def singular_overlap(
    base: Float[AnyArray, "*layers m n"], tuned: Float[AnyArray, "*checkpoints_and_layers m n"], *,
    side: Literal["out", "in"] = "out",
) -> Overlap:
  """`max_i |<u_j, u0_i>|` for each singular vector u_j of the tuned matrix, over all u0_i of the base.

  >>> base = jnp.diag(jnp.array([3.0, 2.0]))
  >>> tuned = base @ jnp.array([[0.6, 0.8], [-0.8, 0.6]])  # the outputs turned by 53 degrees
  >>> singular_overlap(base, tuned).cosines.round(3)
  Array([0.8, 0.8], dtype=float32)

  Args:
    base: a kernel `[in, out]` or a stack of them, taken one after the other; in float32.
    tuned: of the same shape, or with more axes in front, for several checkpoints of one base: it is decomposed once.
    side: "out": vectors in the space of outputs, the right ones of an `[in, out]` kernel and the left ones of the
      source's `[out, in]` weights; "in": the other ones.

  Raises:
    ValueError: shapes differ, or side is neither.

  Source: Shuttleworth et al. 2024 (arXiv 2410.21228).
  """
  if base.ndim < 2 or tuned.shape[-base.ndim:] != base.shape:
    raise ValueError(f"base and tuned must be matrices of one shape; got {tuple(base.shape)} and {tuple(tuned.shape)}")
  if side not in ("out", "in"):
    raise ValueError(f"side must be out or in; got {side!r}")
  return _overlap(base, tuned, side)


# Compiled as one, as all loops that run outside of a user's `jit`: one by itself is lowered anew at every call.
@partial(jax.jit, static_argnames="side")
def _overlap(base: Array, tuned: Array, side: str) -> Overlap:
  def vectors(w: Array) -> tuple[Array, Array]:
    u, s, vt = svd(w.astype(jnp.float32))
    return s, (vt if side == "out" else u.T)

  def layer(pair: tuple[Array, Array]) -> Overlap:
    w0, tuned = pair
    _, before = vectors(w0)

    def one(w: Array) -> Overlap:
      s, after = vectors(w)
      return Overlap(s, jnp.max(jnp.abs(after @ before.T), axis=1))

    return jax.lax.map(one, tuned)

  *_, m, n = base.shape
  layers = base.reshape(-1, m, n)
  found = jax.lax.map(layer, (layers, jnp.moveaxis(tuned.reshape(-1, len(layers), m, n), 1, 0)))
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(*tuned.shape[:-2], -1), found)


@explain_errors
def intruder_dimensions(
    base: Tree, tuned: Tree, *, k: int = 10, eps: float = 0.5, side: Literal["out", "in"] = "out",
    select: Choice = "**/kernel",
) -> dict[str, Bool[Array, "... _"]]:
  """Which of the k leading singular vectors of each tuned matrix are like none of the base: `max |cosine| < eps`.

  >>> base = {"kernel": jnp.diag(jnp.array([3.0, 2.0, 1.0]))}
  >>> tuned = {"kernel": base["kernel"] + 3.0}  # which has a direction of its own, (1, 1, 1)
  >>> intruder_dimensions(base, tuned, k=2, eps=0.8)
  {'kernel': Array([ True,  True], dtype=bool)}

  Args:
    base, tuned: checkpoints.
    k: how many leading vectors are looked at; fewer where a matrix has fewer, or singular values of zero.
    eps: in (0, 1). It means less in small dimensions: of 64 random unit vectors, one has a cosine of about 0.3.
    side: see `singular_overlap`.
    select: a choice of matrices.

  Returns:
    By path, True for an intruder; `sum(x.sum() for x in ....values())` is the source's count.

  Raises:
    ValueError: eps outside (0, 1), k < 1, a glob that matches nothing, a matrix that tuned lacks or has in another
      shape, or NaN or infinity in one of them.

  Source: Shuttleworth et al. 2024 (arXiv 2410.21228). Vectors of nearly equal singular values are arbitrary among each
  other, so that small noise on a flat spectrum counts too: look at `singular_overlap` beside it.
  """
  if not 0.0 < eps < 1.0:
    raise ValueError(f"eps must lie in (0, 1); got {eps}")
  if k < 1:
    raise ValueError(f"k must be >= 1; got {k}")
  others = dict(leaves_with_paths(tuned))
  found: dict[str, Any] = {}
  for (path, w0), chosen in zip(leaves_with_paths(base), jax.tree.leaves(mask(select, base)), strict=True):
    if not chosen:
      continue
    w = others.get(path)
    if w is None or w.shape != w0.shape:
      got = f"it lacks that path; {nearest(path, list(others))}" if w is None else f"got {tuple(w.shape)}"
      raise ValueError(f"tuned must have the matrices of base; of {path} {tuple(w0.shape)} {got}")
    check_finite({"base": {path: w0}, "tuned": {path: w}})
    values, cosines = singular_overlap(w0, w, side=side)
    rank_limit = values[..., :1] * max(w0.shape[-2:]) * jnp.finfo(jnp.float32).eps
    found[path] = (cosines[..., :k] < eps) & (values[..., :k] > rank_limit)
  return found


@explain_errors
def effective_rank(w: Float[Array, "*layers m n"]) -> Float[Array, " *layers"]:
  """`exp(H(p))`, H the entropy of `p_i = s_i / sum s` of the singular values: n for the identity, 1 for rank one.

  0 for a matrix of zeros. Source: Roy and Vetterli 2007.

  >>> effective_rank(jnp.eye(4)).round(3), effective_rank(jnp.ones((4, 4))).round(3)
  (Array(4., dtype=float32), Array(1., dtype=float32))
  """
  s = jnp.linalg.svd(w.astype(jnp.float32), compute_uv=False)
  total = jnp.sum(s, axis=-1, keepdims=True)
  p = s / jnp.where(total == 0, 1.0, total)  # NaN stays NaN
  entropy = -jnp.sum(jnp.where(p == 0, 0.0, p * jnp.log(jnp.where(p == 0, 1.0, p))), axis=-1)
  return jnp.where(total[..., 0] == 0, 0.0, jnp.exp(entropy))


@explain_errors
def stable_rank(w: Float[Array, "*layers m n"]) -> Float[Array, " *layers"]:
  """`|w|_F^2 / |w|_2^2`: at most the rank, and little moved by small singular values; 0 for zeros.

  >>> stable_rank(jnp.diag(jnp.array([2.0, 1.0, 1.0])))  # (4 + 1 + 1) / 4
  Array(1.5, dtype=float32)
  """
  s = jnp.linalg.svd(w.astype(jnp.float32), compute_uv=False)
  return jnp.sum(jnp.square(s / jnp.where(s[..., :1] == 0, 1.0, s[..., :1])), axis=-1)
