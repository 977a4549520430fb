"""Dropout as an edit of a site, with its keys among the edit's arrays: for passes that are to differ a little."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxft.models.sites import edit_class


@edit_class
class Dropout:
  """`x * m / (1 - rate)`, `m ~ Bernoulli(1 - rate)` for each entry; `key` and `rate` have a leading layer axis."""

  key: Any
  rate: Any

  def __call__(self, x: Array) -> Array:
    keep = jax.random.bernoulli(self.key, 1.0 - self.rate, x.shape)
    return jnp.where(keep, x / (1.0 - self.rate), 0.0)


def layer_dropout(key: Key[Array, ""], num_layers: int, rate: float) -> Dropout:
  """Dropout for a site inside the layers, drawn anew in each: `edits={"layers/mlp/out": layer_dropout(key, 6, 0.1)}`.

  The same key draws the same entries at every site, so give each site its own.

  Raises:
    ValueError: rate outside [0, 1).
  """
  if not 0.0 <= rate < 1.0:
    raise ValueError(f"rate must lie in [0, 1); got {rate}")
  return Dropout(jax.random.split(key, num_layers), jnp.full((num_layers,), rate))
