"""Layers that see a window of the last positions, between layers that see all."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxft.signatures import AnyArray


@dataclasses.dataclass(frozen=True)
class Window:
  """Each `every`-th layer of a decoder sees all positions before its own, the others a window of them.

  Scores outside of the window are computed and masked, so that a window saves memory traffic in no pass here.

  Attributes:
    size: positions that one sees, itself among them.
    every: from one layer that sees all to the next; the first of them is layer `every - 1`.
    rope_theta: base of the rotary frequencies of the layers with a window.

  Source: Gemma Team 2025, Gemma 3 (arXiv 2503.19786), with a window of 1,024 in five of six layers.
  """

  size: int
  every: int = 6
  rope_theta: float = 10_000.0

  def __post_init__(self):
    for name in ("size", "every"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} of a window must be at least 1; got {getattr(self, name)}")

  def sees_all(self, layer: Int[Array, ""] | int) -> Bool[Array, ""] | bool:
    """Whether a layer has no window; its index may be traced."""
    return (layer + 1) % self.every == 0

  def near(
      self, order: Int[AnyArray, "#batch time"], slots: Int[AnyArray, "#batch slots"]
  ) -> Bool[Array, "#batch time slots"]:
    """Which slots lie in the window of each position or after it, by their place among the real ones of the row.

    >>> Window(2).near(jnp.arange(3)[None], jnp.arange(3)[None])[0].astype(int)  # causality comes on top
    Array([[1, 1, 1],
           [1, 1, 1],
           [0, 1, 1]], dtype=int32)
    """
    return jnp.asarray(order)[:, :, None] - jnp.asarray(slots)[:, None, :] < self.size
