"""A tiny random model of a real architecture: what a script is tried with in seconds, where no weight matters.

All that decides which code runs is the real model's: architecture, vocabulary, positions, pooling, tied tables, biases.
Widths and depth are as small as they may be; the params are random.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxft.formats.families import family_of
from jaxft.formats.huggingface_config import Config
from jaxft.tree.paths import map_with_path

LAYERS = 2  # the fewest that a stack can be cut into
DIM = 48  # divides by what block-wise methods divide by: 2, 3, 4, 6, 8, 12, 16
HEADS = 4
STDDEV = 0.2  # of the matrices: about 1 / sqrt(DIM), so that the layers matter beside the residual stream


def tiny_config(config: Config) -> Config:
  """The config of a model of this architecture with 2 layers of 48 dimensions; of a ConvNet, every kind of block."""
  return family_of(config).shrink(config, LAYERS, HEADS, DIM)


def init_tiny(config: Config, *, dtype: DTypeLike = jnp.float32) -> dict[str, Any]:
  """Random params for a `tiny_config`, stacked, the same at every call."""
  rng = np.random.default_rng(0)  # not the model's own init: what XLA compiles for it takes longer than all else here

  def draw(path: str, like: jax.ShapeDtypeStruct) -> jax.Array:
    fixed = {"scale": np.ones, "bias": np.zeros}.get(path.rpartition("/")[2])
    values = STDDEV * rng.standard_normal(like.shape, np.float32) if fixed is None else fixed(like.shape)
    return jnp.asarray(values, dtype)

  return map_with_path(draw, jax.eval_shape(partial(family_of(config).init, config=config), jax.random.key(0)))
