"""Rotary position embedding, in the half-split layout of Hugging Face checkpoints."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxft.checks import in_range
from jaxft.signatures import explain_errors


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How Llama 3.1 stretches rotary frequencies for a longer context; those of short periods stay.

  Attributes:
    factor: by how much periods longer than `original_length / low_freq_factor` grow.
    low_freq_factor, high_freq_factor: periods shorter than `original_length / high_freq_factor` stay; between the two
      the frequency goes over linearly in `original_length / period`.
    original_length: the context before, in tokens.
  """

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_length: int

  def __post_init__(self):
    if not 0 < self.low_freq_factor < self.high_freq_factor:
      raise ValueError("low_freq_factor must lie in (0, high_freq_factor); got "
                       f"{self.low_freq_factor} and {self.high_freq_factor}")

  def __call__(self, frequencies: Float[np.ndarray, " half"]) -> Float[np.ndarray, " half"]:
    """The stretched frequencies, in radians a token."""
    low, high = self.low_freq_factor, self.high_freq_factor
    turns = self.original_length * frequencies / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / self.factor)


@dataclasses.dataclass(frozen=True)
class LinearScaling:
  """All rotary frequencies divided by a factor, as if positions lay closer together.

  Source: Chen et al. 2023, position interpolation (arXiv 2306.15595).
  """

  factor: float

  def __post_init__(self):
    if not self.factor > 0:
      raise ValueError(f"factor must be positive; got {self.factor}")

  def __call__(self, frequencies: Float[np.ndarray, " half"]) -> Float[np.ndarray, " half"]:
    """The stretched frequencies, in radians a token."""
    return frequencies / self.factor


class Rotation(NamedTuple):
  """Cosines and sines of every position's angles, float32, ready to broadcast against heads."""

  cos: Float[Array, "#batch time 1 half"]
  sin: Float[Array, "#batch time 1 half"]


@explain_errors
def rotation(
    positions: Int[Array, "#batch time"], *, head_dim: int, theta: float,
    scaling: RopeScaling | LinearScaling | None = None
) -> Rotation:
  """The angles `position * theta^(-2 i / head_dim)`, i < head_dim / 2: made once, used by every layer.

  >>> rotation(jnp.arange(3)[None], head_dim=8, theta=1e4).cos.shape
  (1, 3, 1, 4)
  """
  in_range("theta", theta, "(0, inf)")
  frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  if scaling is not None:
    frequencies = jnp.asarray(scaling(2 * np.pi / wavelengths(head_dim, theta)), jnp.float32)
  angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
  return Rotation(jnp.cos(angles), jnp.sin(angles))


@explain_errors
def rotate(x: Float[Array, "batch time heads head_dim"], by: Rotation) -> Float[Array, "batch time heads head_dim"]:
  """Rotates each pair `(x[i], x[i + head_dim/2])` by its position's angle; in float32, returned in x's dtype.

  >>> x = jnp.ones((1, 3, 2, 8))
  >>> turned = rotate(x, rotation(jnp.arange(3)[None], head_dim=8, theta=1e4))
  >>> bool((turned[:, 0] == x[:, 0]).all()), bool(jnp.allclose(jnp.linalg.norm(turned, axis=-1), 8**0.5))
  (True, True)

  Source: Su et al. 2021 (arXiv 2104.09864), with the pairs half a head apart instead of adjacent.
  """
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = (first * by.cos - second * by.sin, second * by.cos + first * by.sin)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


@explain_errors
def wavelengths(head_dim: int, theta: float) -> Float[np.ndarray, " half"]:
  """The period of each pair's rotation, in tokens: `2 pi theta^(2 i / head_dim)`.

  Pairs with periods beyond the context tell far positions apart; raising the base adds such pairs.

  >>> wavelengths(4, 100.0).round(2)
  array([ 6.28, 62.83])
  """
  in_range("theta", theta, "(0, inf)")
  return 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)


@explain_errors
def with_rope_base(config: Any, base: float, *, max_length: int | None = None) -> Any:
  """The config of a decoder with another base of its rotary frequencies, for a longer context.

  The params stay as they are, but read at another base they are another model: short contexts get worse until it is
  trained on. Yi raises 1e4 to 5e6 (as released) for contexts of 200,000 tokens.

  >>> from jaxft.models import DecoderConfig
  >>> config = DecoderConfig(vocab_size=8, dim=4, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=4, mlp_dim=4)
  >>> with_rope_base(config, 5e6, max_length=200_000).rope_theta
  5000000.0

  Args:
    config: a `DecoderConfig`.
    base: above 1.
    max_length: the longer context, in tokens; None keeps the config's.

  Raises:
    ValueError: base is not above 1, or max_length is below 1.

  Source: 01.AI 2024, Yi (arXiv 2403.04652), after Xiong et al. 2023 (arXiv 2309.16039).
  """
  if not base > 1:
    raise ValueError(f"base must be above 1; got {base}")
  if max_length is not None and max_length < 1:
    raise ValueError(f"max_length must be at least 1; got {max_length}")
  return dataclasses.replace(config, rope_theta=float(base), max_length=max_length or config.max_length)
