"""How loud noise is in each layer, against the states that it is added to."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from jaxft.checks import in_range
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def layer_snr(
    states: Float[AnyArray, "layers batch time dim"],
    noise: Callable[[Array, Float[Array, "batch time dim"]], Float[Array, "batch time dim"]],
    key: jax.Array,
    *,
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
    draws: int = 10,
) -> Float[Array, " layers"]:
  """NoiseFiT's signal-to-noise ratio: `mean |h_l| / (mean over draws of mean |noise(h_l) - h_l| + 1e-6)`.

  The noise is added to each layer's own states, not carried on to the next. `top_layers` then chooses.

  Args:
    states: of one batch of training data: what the site `layers/out` records.
    noise: `(key, states of a layer) -> states`, such as a partial `adaptive_gaussian_noise`.
    key: draws the noise, anew in each layer and draw.
    where: tokens that count; None counts all.
    draws: at least 1.

  Raises:
    ValueError: draws below 1.

  Example:
    >>> states = jnp.ones((2, 1, 3, 4)) * jnp.array([1.0, 4.0]).reshape(2, 1, 1, 1)
    >>> np.asarray(layer_snr(states, lambda key, h: h + 2.0, jax.random.key(0))).round(3)
    array([0.5, 2. ], dtype=float32)

  Source: Khadangi et al. 2025 (arXiv 2504.03302), whose code counts padding.
  """
  in_range("draws", draws, "[1, inf)")
  states = jnp.asarray(states)
  counts = jnp.ones(states.shape[1:3], bool) if where is None else jnp.asarray(where) != 0
  size = lambda x: jnp.sum(jnp.where(counts[..., None], jnp.abs(x.astype(jnp.float32)), 0.0))
  total = jnp.maximum(jnp.sum(counts), 1) * states.shape[-1]

  def ratio(layer: tuple[Array, Array]) -> Array:
    h, key = layer
    clean = jnp.where(counts[..., None], h, 0)  # what does not count may hold anything
    apart = jax.lax.map(lambda k: size(noise(k, clean) - clean), jax.random.split(key, draws))
    return size(clean) / total / (jnp.mean(apart) / total + 1e-6)

  return jax.lax.map(ratio, (states, jax.random.split(key, states.shape[0])))
