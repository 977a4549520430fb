"""S2FT: structured sparse fine-tuning of a few attention heads and MLP channels."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.transforms.depth import layer_of
from jaxft.transforms.filters import mask
from jaxft.transforms.paths import Tree, leaves_with_paths
from jaxft.transforms.protocol import ParamTransform
from jaxft.transforms.selection import select_units, unit_indices
from jaxft.transforms.submatrix import submatrix


def s2ft(
    key: jax.Array, params: Tree, *, head_dim: int, heads: float = 0.052, channels: float = 0.02,
    value_heads: float = 0.0, up_channels: float = 0.0, scope: Literal["global", "layer"] = "global",
    out: str = "**/attention/out/kernel", down: str = "**/mlp/down/kernel",
    value: str = "**/attention/value/kernel", up: str = "**/mlp/up/kernel", dtype: Any = jnp.float32,
) -> ParamTransform:
  """Trains the rows of `out` and `down`, and the columns of `value` and `up`, that belong to randomly drawn units.

  On the input side (out, down) the backward pass keeps only the drawn channels of the activations, which is why the
  source puts its budget there.

  Args:
    key: concrete: which units train is drawn here, not in `split`.
    params: arrays or shapes, stacked or unrolled.
    head_dim: entries of a head.
    heads, channels: fraction of the query heads of `out` and of the channels of `down`, of all layers together.
    value_heads, up_channels: likewise of `value` and `up`; 0 leaves them frozen.
    scope: "layer" draws the same number in each layer; see `select_units`.
    out, down, value, up: globs of the four matrices.
    dtype: of what trains.

  Raises:
    ValueError: a fraction outside [0, 1] or so small that no unit is drawn at all, or a matrix that head_dim does not
      divide.

  Source: Yang et al. 2024 (arXiv 2412.06289), whose fractions for Llama-2-7B are the defaults; Llama-3-8B takes
  heads=0, channels=0.03.
  """
  budgets = (
      (out, -2, head_dim, heads), (down, -2, 1, channels), (value, -1, head_dim, value_heads), (up, -1, 1, up_channels),
  )
  indices, axes = {}, {}
  for i, (glob, axis, unit, fraction) in enumerate(budgets):
    if not fraction:
      continue
    sizes = _units_by_layer(params, glob, axis, unit)
    drawn = select_units(jax.random.fold_in(key, i), sizes, fraction=fraction, scope=scope)
    found = unit_indices(drawn, unit)
    if found.shape[-1]:
      indices[glob], axes[glob] = found, axis
  if not indices:
    raise ValueError(
        f"heads, channels, value_heads and up_channels must draw at least one unit; got {heads}, {channels}, "
        f"{value_heads} and {up_channels}")
  return submatrix(indices, axis=axes, dtype=dtype)


def _units_by_layer(params: Tree, glob: str, axis: int, unit: int) -> Sequence[int]:
  sizes: dict[int, int] = {}
  for (path, leaf), matched in zip(leaves_with_paths(params), jax.tree.leaves(mask(glob, params)), strict=True):
    if not matched:
      continue
    if leaf.shape[axis] % unit:
      raise ValueError(f"head_dim must divide axis {axis} of {path} {tuple(leaf.shape)}; got {unit}")
    layer = layer_of(path, leaf)
    if layer is None:
      raise ValueError(f"{path} must lie in a layer; see jaxft.transforms.depth for the names of stacks")
    sizes.update({int(i): leaf.shape[axis] // unit for i in np.atleast_1d(layer)})
  return [sizes.get(i, 0) for i in range(max(sizes) + 1)]
