"""Random parameters and data by NumPy: a test module makes them as it is imported, and compiles nothing for it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxft.tree.paths import map_with_path


def normal(seed: int, *shape: int, dtype: Any = np.float32) -> jax.Array:
  return jax.device_put(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def integers(seed: int, low: int, high: int, *shape: int) -> jax.Array:
  """Of `low` to `high - 1`."""
  return jax.device_put(np.random.default_rng(seed).integers(low, high, shape, np.int32))


def blocks(seed: int, *, layers: int, dim: int, hidden: int) -> Any:
  """Params as those of `stack_params` of the contract of transforms."""
  def draw(i: int, m: int, n: int) -> jax.Array:
    drawn = np.random.default_rng((seed, i)).standard_normal((layers, m, n))
    return jax.device_put((drawn * m**-0.5).astype(np.float32))

  up, down = draw(0, dim, hidden), draw(1, hidden, dim)
  return {"layers": {"up": {"kernel": up}, "down": {"kernel": down}}}


def params(init: Callable[[], Any], seed: int, *, stddev: float = 0.02) -> Any:
  """Params as `init()` would make them, by its shapes: normal but for scales, which are 1, and biases, which are 0."""
  draw = np.random.default_rng(seed)

  def of(path: str, x: Any) -> np.ndarray:
    name = path.rsplit("/", 1)[-1]
    drawn = {"scale": np.ones, "bias": np.zeros}.get(name, lambda shape: stddev * draw.standard_normal(shape))(x.shape)
    return drawn.astype(x.dtype)

  return jax.device_put(map_with_path(of, jax.eval_shape(init)))
