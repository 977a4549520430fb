"""Building a model of other layers of one checkpoint: depth up-scaling, pruning, and the passthrough of mergekit."""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxft.signatures import explain_errors
from jaxft.tree.depth import num_layers
from jaxft.tree.paths import Tree, is_leaf


@explain_errors
def take_layers(params: Tree, layers: Sequence[int], *, stack: str = "layers") -> Tree:
  """The same model with the given layers, in the given order: `[0, 1, 1, 2]` has the second one twice.

  Copies are parameters of their own: nothing ties them, and an optimizer starts anew on them.

      {'layers': {'w': [3, ...]}},            [0, 1, 1, 2]  ->  {'layers': {'w': [4, ...]}}
      {'layers': {'0': a, '1': b, '2': c}},   [0, 1, 1, 2]  ->  {'layers': {'0': a, '1': b, '2': b, '3': c}}

  The config's number of layers is to be changed with them: `dataclasses.replace(config, num_layers=len(layers))`.

  >>> take_layers({"layers": {"w": jnp.arange(3.0)}}, [0, 1, 1, 2])
  {'layers': {'w': Array([0., 1., 1., 2.], dtype=float32)}}

  Args:
    params: a nested dict with its layers stacked or unrolled under `stack`; all else stays.
    layers: indices, 0 the first; at least one.
    stack: the name that holds the layers.

  Raises:
    ValueError: no index, one out of range, no such stack, or a stack that is cut.

  Source: the depth up-scaling of Yi-9B, 01.AI 2024 (arXiv 2403.04652): layers 12 to 27 of 32 are repeated once.
  """
  if stack not in params:
    raise ValueError(f"stack must be a name in params, {sorted(params)}; got {stack!r}")
  held = params[stack]
  if any(":" in name for name in held):
    raise ValueError(f"the layers under {stack!r} are cut in pieces, {sorted(held)}; join them with stack_layers")
  unrolled = all(re.fullmatch(r"\d+", name) for name in held)
  depth = len(held) if unrolled else num_layers(params)
  layers = [int(i) for i in layers]
  if not layers or min(layers) < 0 or max(layers) >= depth:
    raise ValueError(f"layers must be indices in 0..{depth - 1}, at least one; got {layers}")
  if unrolled:
    return {**params, stack: {str(new): held[str(old)] for new, old in enumerate(layers)}}
  index = jnp.asarray(layers)
  take = lambda x: x if x is None else jnp.take(x, index, axis=0)
  return {**params, stack: jax.tree.map(take, held, is_leaf=is_leaf)}


@explain_errors
def repeated_block(num_layers: int, start: int, stop: int) -> list[int]:
  """The layers of a depth up-scaled model: all, with those from `start` to `stop - 1` once more after their own.

  >>> repeated_block(4, 1, 3)
  [0, 1, 2, 1, 2, 3]

  Raises:
    ValueError: the block is empty or lies outside of the layers.
  """
  if not 0 <= start < stop <= num_layers:
    raise ValueError(f"start and stop must lie in order in 0..{num_layers}; got {start} and {stop}")
  return [*range(stop), *range(start, num_layers)]
