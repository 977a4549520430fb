"""How much of a model hangs on the small components of its matrices: decompose, drop them, measure the rest."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxft.finite import svd
from jaxft.signatures import explain_errors


@explain_errors
def scaled_svd(
    w: Float[Array, "m n"], scale: Float[Array, " m"]
) -> tuple[Float[Array, "m k"], Float[Array, " k"], Float[Array, "k n"]]:
  """ASVD's decomposition `w = inputs @ diag(s) @ outputs`, in order of what w does to inputs of that scale.

  With D = diag(scale), `D w = u diag(s) outputs` is a singular value decomposition, and `inputs = D^-1 u`.

  >>> w, scale = jnp.eye(2), jnp.array([1.0, 10.0])  # the second input is ten times as large, and comes first
  >>> inputs, s, outputs = scaled_svd(w, scale)
  >>> s, jnp.matmul(inputs * s, outputs).round(3)
  (Array([10.,  1.], dtype=float32), Array([[1., 0.],
         [0., 1.]], dtype=float32))

  Args:
    w: a kernel `[in, out]`.
    scale: of each input, positive; the source takes the root of its mean magnitude. Ones give the plain decomposition.

  Source: Yuan et al. 2023, ASVD (arXiv 2312.05821). CorDA's is `jaxft.transforms.oriented_svd`.
  """
  u, s, outputs = svd(scale[:, None] * w.astype(jnp.float32))
  return u / scale[:, None], s, outputs


@explain_errors
def truncate_components(
    inputs: Float[Array, "*layers m k"], s: Float[Array, "*layers k"], outputs: Float[Array, "*layers k n"], drop: int
) -> Float[Array, "*layers m n"]:
  """`w = inputs @ diag(s) @ outputs` without its `drop` last components, the smallest.

  >>> u, s, vt = jnp.linalg.svd(jnp.diag(jnp.array([3.0, 2.0])))
  >>> truncate_components(u, s, vt, 1)
  Array([[3., 0.],
         [0., 0.]], dtype=float32)

  Args:
    inputs, s, outputs: of a decomposition in falling order, of one matrix or of a stack: an SVD, `scaled_svd`,
      `oriented_svd`.
    drop: how many components to leave out.

  Raises:
    ValueError: drop is not in [0, k].

  Source: the analysis of Yang et al. 2024, CorDA (arXiv 2406.05223).
  """
  if not 0 <= drop <= s.shape[-1]:
    raise ValueError(f"drop must lie in [0, {s.shape[-1]}]; got {drop}")
  keep = s.shape[-1] - drop
  return (inputs[..., :keep] * s[..., None, :keep]) @ outputs[..., :keep, :]
