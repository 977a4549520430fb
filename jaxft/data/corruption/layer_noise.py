"""Noise on what chosen layers put out, as an edit of a model's activations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Num

from jaxft.checks import in_range
from jaxft.data.corruption.vectors import adaptive_gaussian_noise
from jaxft.models.sites import edit_class
from jaxft.signatures import AnyArray, explain_errors


@edit_class
class LayerNoise:
  """`noise(key, x, where, noise_std=noise_std)` in layers where noise_std is above 0; its arrays have a layer axis."""

  key: Any
  noise_std: Any
  where: Any
  noise: Any

  def __call__(self, x: Array) -> Array:
    noisy = lambda x: self.noise(self.key, x, self.where, noise_std=self.noise_std)
    return jax.lax.cond(self.noise_std > 0, noisy, lambda x: x, x)


@explain_errors
def layer_noise(
    key: Key[Array, ""],
    layers: Bool[AnyArray, " layers"],
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
    *,
    noise_std: float | Float[Array, ""] = 0.1,
    noise: Callable[..., Array] = adaptive_gaussian_noise,
) -> LayerNoise:
  """Noise in the chosen layers of a pass, drawn anew in each: `edits={"layers/out": layer_noise(key, chosen, mask)}`.

  Layers that are not chosen put out what they did, bit for bit, and cost nothing. Two noisy passes take two keys.

  Args:
    key: draws the noise.
    layers: which are to be noisy, from `jaxft.choices.top_layers` of `jaxft.analysis.layer_snr`.
    where: tokens that get noise; None gives all of them.
    noise_std: > 0, what `noise` takes by this name; may be traced.
    noise: `(key, states, where, noise_std=...) -> states`.

  Raises:
    ValueError: noise_std below 0 or not finite.

  Example:
    >>> edit = layer_noise(jax.random.key(0), jnp.array([False, True]))
    >>> edit.key.shape, np.asarray(edit.noise_std)
    ((2,), array([0. , 0.1], dtype=float32))

  Source: NoiseFiT, Khadangi et al. 2025 (arXiv 2504.03302).
  """
  in_range("noise_std", noise_std, "[0, inf)")
  layers = jnp.asarray(layers)
  if where is not None:
    where = jnp.broadcast_to(jnp.asarray(where), (len(layers), *where.shape))
  return LayerNoise(jax.random.split(key, len(layers)), jnp.where(layers, noise_std, 0.0), where, noise)
