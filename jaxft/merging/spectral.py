"""Editing the spectrum of a fine-tuned matrix: shrinking intruder dimensions, truncating an update to a rank."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxft.analysis.spectra import intruder_dimensions
from jaxft.checks import in_range
from jaxft.finite import svd
from jaxft.signatures import AnyArray, explain_errors
from jaxft.tree.choice import Choice
from jaxft.tree.paths import Tree, map_with_path


@explain_errors
def scale_singular_components(
    w: Float[AnyArray, "*layers m n"], chosen: Bool[AnyArray, "*layers k"], factor: float
) -> Float[Array, "*layers m n"]:
  """`w + (factor - 1) sum_{i chosen} s_i u_i v_i^T`: some of the leading components scaled, all others as they are.

  >>> w = jnp.diag(jnp.array([4.0, 2.0, 1.0]))
  >>> jnp.diag(scale_singular_components(w, jnp.array([True, False]), 0.5))
  Array([2., 2., 1.], dtype=float32)

  Args:
    w: a matrix or a stack of them.
    chosen: of its k leading components.
    factor: 1 changes nothing, 0 removes.
  """
  in_range("factor", factor)
  u, s, vt = svd(w.astype(jnp.float32))
  k = chosen.shape[-1]
  edit = jnp.matmul(u[..., :k] * (s[..., :k] * chosen * (factor - 1.0))[..., None, :], vt[..., :k, :])
  return (edit + w.astype(jnp.float32)).astype(w.dtype)


@explain_errors
def reduce_intruders(
    base: Tree, tuned: Tree, *, k: int = 10, eps: float = 0.5, factor: float = 0.75,
    side: Literal["out", "in"] = "out", select: Choice = "**/kernel",
) -> Tree:
  """Scales the intruder dimensions of a fine-tuned checkpoint, which wins back what it forgot for a little of its task.

  >>> base = {"kernel": jnp.diag(jnp.array([3.0, 2.0, 1.0]))}
  >>> tuned = {"kernel": base["kernel"] + 3.0}  # which has a direction of its own, (1, 1, 1)
  >>> reduced = reduce_intruders(base, tuned, k=1, eps=0.8, factor=0.5)
  >>> [int(jnp.linalg.norm(tree["kernel"], 2)) for tree in (base, tuned, reduced)]
  [3, 11, 5]

  Args:
    base, tuned: checkpoints; components are those of `tuned` itself, not of the difference.
    k, eps, side, select: see `intruder_dimensions`.
    factor: of the intruders' singular values: 1 changes nothing, 0 removes them, and with them what the base had along
      the same direction.

  Raises:
    ValueError: see `intruder_dimensions`.

  Source: Shuttleworth et al. 2024 (arXiv 2410.21228).
  """
  found = intruder_dimensions(base, tuned, k=k, eps=eps, side=side, select=select)
  edit = lambda path, w: scale_singular_components(w, found[path], factor) if path in found else w
  return map_with_path(edit, tuned)


@explain_errors
def truncated_factors(
    delta: Float[Array, "*stack m n"], rank: int
) -> tuple[Float[Array, "*stack m rank"], Float[Array, "*stack rank n"]]:
  """The best factors `a [m, rank]`, `b [rank, n]` of a matrix, the singular values shared evenly: a LoRA of an update.

  Exact where the matrix has no more than that rank.

  >>> a, b = truncated_factors(jnp.diag(jnp.array([4.0, 1.0])), 1)
  >>> jnp.matmul(a, b)
  Array([[4., 0.],
         [0., 0.]], dtype=float32)

  Raises:
    ValueError: rank is not in 1..min(m, n).
  """
  if not 1 <= rank <= min(delta.shape[-2:]):
    raise ValueError(f"rank must lie in 1..{min(delta.shape[-2:])} for a matrix {tuple(delta.shape)}; got {rank}")
  u, s, vt = svd(delta.astype(jnp.float32))
  root = jnp.sqrt(s[..., :rank])
  return u[..., :rank] * root[..., None, :], root[..., :, None] * vt[..., :rank, :]
