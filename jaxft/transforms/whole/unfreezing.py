"""Freezing from the bottom: Telly's fixed depth, and gradual unfreezing, which lowers it stage by stage.

Freezing the bottom saves the backward pass below it, but only where the layers can be told apart: cut a stack at the
depths first. A change of depth changes what is compiled, so it is a change of transform between two calls of the
step, never a mask inside it, which would cost what full tuning costs:

    params = cut_layers(params, at=[4, 8])
    for transform in gradual_unfreezing([8, 4, 0]):
      recipe = Recipe(objective, transform, optimizer)
      new, frozen = init_state(key, params, recipe)
      if state is not None:
        new = new._replace(step=state.step, opt_state=carry_over(state.opt_state, new.opt_state))
      state, step = new, make_train_step(recipe)
      ...                                                    # some steps
      params = transform.join(frozen, state.trainable)
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import numpy as np

from jaxft.signatures import explain_errors
from jaxft.transforms.protocol import ParamTransform
from jaxft.transforms.whole.freeze import freeze
from jaxft.tree.choice import EMBEDDINGS, Choice, mask
from jaxft.tree.depth import layer_of, num_layers
from jaxft.tree.paths import Tree, leaves_with_paths, map_with_path


@explain_errors
def freeze_below(depth: int, *, first: Choice = EMBEDDINGS) -> ParamTransform:
  """Telly-K: freezes the embeddings and layers 0 to depth - 1, and trains the layers above and all that follows them.

  FLOPs of a training step: about `(2 L + 4 (L - depth)) / 6 L` of full tuning's in the layers.

  >>> import jax.numpy as jnp
  >>> params = {"embed": jnp.ones(2), "layers": {str(i): jnp.ones(2) for i in range(3)}}
  >>> freeze_below(2).split(jax.random.key(0), params)[1]
  {'embed': None, 'layers': {'0': None, '1': None, '2': Array([1., 1.], dtype=float32)}}

  Args:
    depth: K; 0 freezes the embeddings alone, and with them a tied head.
    first: a choice of the leaves below the first layer; what it has inside the layers is passed over.

  Raises:
    ValueError: depth is negative; from `split`: it exceeds the number of layers, or lies inside a stack, which then
      must be cut there, or first is a glob that matches nothing.

  Source: Shi et al. 2023 (arXiv 2304.05216).
  """
  if not (isinstance(depth, int) and depth >= 0):
    raise ValueError(f"depth must be an integer >= 0; got {depth!r}")

  def is_below(path: str, leaf: Any, is_first: bool) -> bool:
    layer = None if leaf is None else layer_of(path, leaf)
    return is_first if layer is None else bool(np.max(layer) < depth)

  def split(key: jax.Array, params: Tree) -> tuple[Tree, Tree]:
    layers = num_layers(params)
    if depth > layers:
      raise ValueError(f"depth must be at most the number of layers, {layers}; got {depth}")
    for path, leaf in leaves_with_paths(params):
      layer = None if leaf is None else layer_of(path, leaf)
      if layer is not None and np.min(layer) < depth <= np.max(layer):
        raise ValueError(
            f"depth {depth} lies inside the stack of {path}, layers {np.min(layer)}:{np.max(layer) + 1}; cut it first: "
            f"cut_layers(params, at=[{depth}])"
        )
    return freeze(map_with_path(is_below, params, mask(first, params, name="first"))).split(key, params)

  return ParamTransform(split, freeze(False).join)  # what is put together does not depend on the choice


@explain_errors
def gradual_unfreezing(depths: Sequence[int], *, first: Choice = EMBEDDINGS) -> list[ParamTransform]:
  """One transform for each stage, top layers first: stage i trains the layers from `depths[i]` on.

  >>> import jax.numpy as jnp
  >>> params = {"embed": jnp.ones(2), "layers": {str(i): jnp.ones(2) for i in range(3)}}
  >>> stages = gradual_unfreezing([2, 0])
  >>> [len(jax.tree.leaves(stage.split(jax.random.key(0), params)[1])) for stage in stages]
  [1, 3]

  Args:
    depths: strictly decreasing, such as `[11, 10, ..., 0]`, one layer more each epoch; larger stages compile less
      often. After the last, the embeddings are trained by `full()`.
    first: see `freeze_below`.

  Raises:
    ValueError: depths is empty or does not decrease strictly.

  Source: Howard and Ruder 2018 (arXiv 1801.06146).
  """
  depths = list(depths)
  if not depths or any(a <= b for a, b in pairwise(depths)):
    raise ValueError(f"depths must decrease strictly, from the first stage's to the last's; got {depths}")
  if not all(isinstance(depth, int) and depth >= 0 for depth in depths):
    raise ValueError(f"depths must be integers >= 0; got {depths}")
  return [freeze_below(depth, first=first) for depth in depths]


@explain_errors
def carry_over(old: Tree, new: Tree) -> Tree:
  """`new` with the arrays of `old` at every path where both have one of the same shape and dtype.

  For the optimizer's state between two stages: what trained before keeps its moments, what joins starts with those of
  `new`. Training then goes on exactly as if the gradients of what joins had been zero until now: with Adam, whose step
  count goes on too, its first updates are larger than at a fresh start, by `(1 - b1) / sqrt(1 - b2)` (3.2 at the
  defaults) in the first one. Leave `carry_over` out to start all moments and schedules anew instead.

  >>> old, new = {"a": np.ones(2), "b": np.ones(2)}, {"a": np.zeros(2), "b": np.zeros(3)}
  >>> carry_over(old, new)
  {'a': array([1., 1.]), 'b': array([0., 0., 0.])}
  """
  known = {path: leaf for path, leaf in leaves_with_paths(old) if leaf is not None}

  def take(path: str, leaf: Any) -> Any:
    found = known.get(path)
    same = leaf is not None and found is not None and (found.shape, found.dtype) == (leaf.shape, leaf.dtype)
    return found if same else leaf

  return map_with_path(take, new)
