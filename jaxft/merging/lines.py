"""LiNeS: scale an update linearly with depth, so that shallow layers stay near the pretrained weights.

Source: Wang et al. 2024, "LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging"
(arXiv 2410.17146).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxft.checks import in_range
from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, explain_errors
from jaxft.tree.depth import layer_of, stack_depths, stack_of
from jaxft.tree.paths import Tree, is_array, leaves_with_paths, map_with_path


@explain_errors
def depth_schedule(num_layers: int, *, first: float, last: float, kind: str = "linear") -> Float[np.ndarray, " layers"]:
  """Coefficients of the layers 0 to L-1, from `first` to `last`.

  >>> depth_schedule(5, first=0.2, last=1.0)
  array([0.2, 0.4, 0.6, 0.8, 1. ])

  Args:
    num_layers: L >= 1. A single layer gets `last`, as the limit of a network whose only block is its last.
    first: coefficient of the first layer.
    last: coefficient of the last layer.
    kind: `linear`; `cosine` (half a period, flat at both ends); `step` (first half `first`, second half `last`);
      `constant` (`first` everywhere).
  """
  if num_layers < 1:
    raise ValueError(f"num_layers must be >= 1; got {num_layers}")
  t = np.linspace(0.0, 1.0, num_layers) if num_layers > 1 else np.ones(1)
  ramps = {"linear": t, "cosine": (1 - np.cos(np.pi * t)) / 2, "step": (t >= 0.5) * 1.0, "constant": 0 * t}
  in_range("first", first)
  in_range("last", last)
  if kind not in ramps:
    raise ValueError(f"kind must be one of {', '.join(ramps)}; got {kind!r}")
  return first + (last - first) * ramps[kind]


@explain_errors
def scale_by_depth(
    delta: Tree,
    coefficients: Float[AnyArray, " layers"] | Mapping[str, Float[AnyArray, " _"]],
    *,
    outside: float | Array,
) -> Tree:
  """Multiplies each leaf of a task vector by the coefficient of its layer.

  >>> delta = {"layers": {"w": jnp.ones((3, 2))}, "embed": jnp.ones(2)}
  >>> scale_by_depth(delta, jnp.array([0.0, 0.5, 1.0]), outside=2.0)["layers"]["w"]
  Array([[0. , 0. ],
         [0.5, 0.5],
         [1. , 1. ]], dtype=float32)

  Args:
    delta: a task vector of any origin.
    coefficients: `[L]`, one factor per layer; may be traced. Of a model with several stacks, such as two towers, one
      such vector for each by its name (`stack_depths`), or one for all that are as deep.
    outside: factor of the leaves that belong to no layer (embeddings, final norm, head).

  Raises:
    ValueError: a stack without coefficients; a leaf's layer lies beyond its coefficients, there are more of them than
      layers and delta has no holes where these could be, or one is not finite.
  """
  depths = stack_depths(delta)
  by_stack = dict(coefficients) if isinstance(coefficients, Mapping) else dict.fromkeys(depths, coefficients)
  if set(by_stack) != set(depths):
    raise ValueError(f"coefficients must be of the stacks {', '.join(depths) or '(none)'}; got {', '.join(by_stack)}")
  require_finite(outside=outside)
  for values in coefficients.values() if isinstance(coefficients, Mapping) else (coefficients,):
    require_finite(coefficients=values)
  by_stack = {stack: jnp.asarray(values, jnp.float32) for stack, values in by_stack.items()}
  whole = all(leaf is not None for _, leaf in leaves_with_paths(delta))
  for stack, values in by_stack.items():
    if whole and depths[stack] < len(values):
      raise ValueError(
          f"coefficients must have one entry for each of the {depths[stack]} layers of {stack}; got {len(values)}")

  def scale(path: str, leaf: Any) -> Any:
    if not is_array(leaf):
      return None
    layer = layer_of(path, leaf)
    if layer is None:
      factor = jnp.asarray(outside, jnp.float32)
    else:
      values = by_stack[stack_of(path) or ""]
      if np.max(layer) >= len(values):
        raise ValueError(f"coefficients has {len(values)} layers, but {path} is in layer {int(np.max(layer))}")
      factor = values[layer]
      factor = factor.reshape(factor.shape + (1,) * (leaf.ndim - factor.ndim))
    return (leaf.astype(jnp.float32) * factor).astype(leaf.dtype)

  return map_with_path(scale, delta)


@explain_errors
def lines(
    delta: Tree,
    *,
    alpha: float,
    beta: float,
    outside: float | None = None,
) -> Tree:
  """LiNeS: layer l of L is scaled by `alpha + beta * l / (L - 1)`, l = 0 .. L-1, in each stack of its own.

  >>> lines({"layers": {"w": jnp.ones((3, 2))}}, alpha=0.5, beta=0.5)
  {'layers': {'w': Array([[0.5 , 0.5 ],
         [0.75, 0.75],
         [1.  , 1.  ]], dtype=float32)}}

  Args:
    delta: a task vector, merged or not.
    alpha: factor of the first layer. For one task the source takes `beta = 1 - alpha`: the last layer is kept whole.
    beta: what is added by the last layer.
    outside: factor of the leaves outside the layers. None takes alpha, as the authors' code does for all of them;
      a language model's final norm and head sit after the last layer and may want `alpha + beta`.

  Raises:
    ValueError: no leaf of `delta` belongs to a layer.
  """
  depths = stack_depths(delta)
  if not depths:
    raise ValueError("delta has no leaf inside a layer stack (`layers/...`): other models are arranged so by the "
                     "function that uses them, jaxft.tree.axes_of(apply, params, *inputs, layers=...), where layers "
                     "says which subtrees are layers if siblings that are alike do not")
  coefficients = {stack: depth_schedule(n, first=alpha, last=alpha + beta) for stack, n in depths.items()}
  return scale_by_depth(delta, coefficients, outside=alpha if outside is None else outside)


@explain_errors
def lines_alpha(summed: Tree, merged: Tree, *, num_models: int, ord: int = 1) -> Float[Array, ""]:
  """The source's alpha for merging: the first layer then gets an update of the size of the plain average's.

      alpha = ||sum_i tau_i|| / (N ||tau_merged||)

  >>> lines_alpha({"w": jnp.array([4.0, 2.0])}, {"w": jnp.array([3.0, 0.0])}, num_models=2)
  Array(1., dtype=float32)

  Args:
    summed: the sum of the task vectors.
    merged: the merged task vector before scaling.
    num_models: N.
    ord: order of the norm over all elements. The paper leaves it open; 1 is what the authors' code takes.

  Raises:
    ValueError: num_models < 1, or merged is zero or holds NaN.
  """
  if num_models < 1:
    raise ValueError(f"num_models must be at least 1; got {num_models}")
  norm = lambda tree: sum(jnp.sum(jnp.abs(x.astype(jnp.float32)) ** ord) for x in jax.tree.leaves(tree)) ** (1 / ord)
  size = norm(merged)
  if not isinstance(size, Tracer) and not size > 0:
    raise ValueError(f"merged must not be zero, nor hold NaN; its norm is {float(size)}")
  return norm(summed) / (num_models * size)
