"""How much each layer changes what it is given: the cosine of its input and its output."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxft.signatures import explain_errors


@explain_errors
def layer_cosines(
    states: Float[Array, "states batch time dim"], mask: Shaped[Array, "batch time"] | None = None
) -> Float[Array, " layers"]:
  """The mean over real tokens of `cos(x_l, x_{l+1})` for each layer; near 1, the layer hardly does anything.

  >>> states = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 5.0]]).reshape(3, 1, 1, 2)  # scaled, then turned
  >>> layer_cosines(states)
  Array([1., 0.], dtype=float32)

  Args:
    states: the L + 1 states from before the first layer to after the last: what the sites `embed` (`embed/out` of an
      encoder) and `layers/out` record, joined.
    mask: nonzero at real tokens; None where all are.

  Returns:
    L numbers.

  Source: the choice of layers to repeat in Yi, 01.AI 2024 (arXiv 2403.04652).
  """
  x = states.astype(jnp.float32)
  if mask is not None:  # what is masked may hold anything
    x = jnp.where((mask != 0)[None, :, :, None], x, 0.0)
  dots = jnp.sum(x[:-1] * x[1:], axis=-1)
  norms = jnp.linalg.norm(x, axis=-1)
  cosines = dots / jnp.maximum(norms[:-1] * norms[1:], 1e-12)
  weights = jnp.ones(states.shape[1:3]) if mask is None else (mask != 0).astype(jnp.float32)
  return jnp.sum(cosines * weights, axis=(1, 2)) / jnp.maximum(jnp.sum(weights), 1e-9)
