"""Scaling the optimizer's updates leaf by leaf, such as learning rates that decay with depth."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxft.checks import in_range
from jaxft.finite import require_finite
from jaxft.signatures import Tree, explain_errors
from jaxft.tree.choice import EMBEDDINGS, Choice, choice_scales, mask
from jaxft.tree.depth import layer_of, num_layers, stack_depths, stack_of
from jaxft.tree.paths import leaves_with_paths, map_with_path


@explain_errors
def scale_updates(scales: Tree) -> optax.GradientTransformation:
  """Multiplies each update by its scale: put last in an `optax.chain`, it scales the learning rate of each leaf.

  Args:
    scales: a tree with the structure of what trains, of numbers or of arrays that broadcast against the leaves: from
      `layerwise_decay`, `lora_plus`, `damping`, or `choice_scales` for a choice of leaves, layers or entries.

  Raises:
    ValueError: a scale is NaN or infinite, or boolean, which may mean layers or entries; from `update`: it does not fit
      its leaf.

  Example:
    >>> optimizer = optax.chain(optax.sgd(1.0), scale_updates({"w": 0.1, "b": 1.0}))
    >>> gradients = {"w": jnp.ones(1), "b": jnp.ones(1)}
    >>> updates, state = optimizer.update(gradients, optimizer.init(gradients))
    >>> updates
    {'b': Array([-1.], dtype=float32), 'w': Array([-0.1], dtype=float32)}
  """
  if any(jnp.result_type(s) == bool for s in jax.tree.leaves(scales)):
    raise ValueError("scales must be numbers; got booleans: choice_scales(choice, trainable) makes scales of a choice")

  require_finite(**{f"scales at {path}": s for path, s in leaves_with_paths(scales)})

  def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, Any]:
    del params

    def scale(u: Any, s: Any) -> Any:
      shape = np.shape(s)
      aligned = zip(reversed(shape), reversed(u.shape), strict=False)  # broadcasting aligns the last axes
      if len(shape) > u.ndim or any(a not in (1, b) for a, b in aligned):
        raise ValueError(f"scales must broadcast against what trains; got {shape} for a leaf {u.shape}")
      return u * jnp.asarray(s, u.dtype)

    return jax.tree.map(scale, updates, scales), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@explain_errors
def layerwise_decay(
    rate: float, trainable: Tree, *, first: Choice = EMBEDDINGS, layers: int | None = None, offset: int = 1
) -> Tree:
  """Scales that decay from the head to the embeddings: `rate ** (layers - i - 1 + offset)` for layer i.

  What lies outside the layers counts as above them (scale 1), but for what `first` matches, which counts as below
  (`rate ** (layers + offset)`). A leaf of stacked layers gets a vector along its leading axis.

  Args:
    rate: decay per layer, in (0, 1]; published values lie between 0.65 and 0.95.
    trainable: what trains, arrays or shapes.
    first: a choice of the leaves below the first layer; a glob may match none.
    layers: the depth of the model; None takes the deepest layer of `trainable`, which is wrong where the last layers
      are frozen. Each of several stacks has its own depth.
    offset: from the head to the last layer, in layers: 1, or 2 as the released code of ELECTRA counts.

  Returns:
    The tree of scales, for `scale_updates`.

  Raises:
    ValueError: rate outside (0, 1], offset negative, or fewer layers than trainable has.

  Example:
    >>> params = {"tokens": {"embedding": jnp.ones((5, 2))}, "layers": {"kernel": jnp.ones((3, 2, 2))}}
    >>> scales = layerwise_decay(0.5, params)
    >>> scales["layers"]["kernel"].ravel(), scales["tokens"]["embedding"]
    (array([0.125, 0.25 , 0.5  ], dtype=float32), np.float32(0.0625))

  Sources: Howard and Ruder 2018 (arXiv 1801.06146); in this form Clark et al. 2020 (arXiv 2003.10555).
  """
  in_range("rate", rate, "(0, 1]")
  in_range("offset", offset, "[0, inf)")
  depths = stack_depths(trainable)
  if layers is not None:
    deepest = num_layers(trainable)
    if layers < deepest:
      raise ValueError(f"layers must be at least {deepest}, as trainable has layer {deepest - 1}; got {layers}")
    depths = dict.fromkeys(depths, layers)

  def depth_above(path: str) -> int:
    """Of the tower that lies in the same subtree, of the deepest where there is none."""
    beside = [n for stack, n in depths.items() if path.startswith(stack.rpartition("/")[0] + "/")]
    return max(beside or depths.values(), default=layers or 0)

  def scale(path: str, leaf: Any, below: bool) -> np.ndarray | np.floating | None:
    if leaf is None:
      return None
    layer = layer_of(path, leaf)
    outside = layer is None and not below
    depth = depth_above(path) if layer is None else depths[stack_of(path) or ""]
    layer = -1 if layer is None else layer
    scales = np.float32(rate) ** (0.0 if outside else depth - 1 + offset - np.asarray(layer, np.float32))
    return scales.reshape(scales.shape + (1,) * (leaf.ndim - scales.ndim)) if scales.ndim else scales

  return map_with_path(scale, trainable, mask(first, trainable, name="first", allow_empty=True))


@explain_errors
def lora_plus(trainable: Tree, *, ratio: float = 16.0, faster: Choice = "**/b") -> Tree:
  """LoRA+: scales that make the second factor of each low-rank update learn `ratio` times as fast as the first.

  Args:
    trainable: what trains, arrays or shapes.
    ratio: of the learning rates, at least 1.
    faster: a choice of what learns faster.

  Returns:
    The tree of scales, for `scale_updates`.

  Raises:
    ValueError: ratio below 1, or `faster` matches nothing.

  Example:
    >>> lora_plus({"kernel": {"a": jnp.ones((4, 2)), "b": jnp.ones((2, 4))}}, ratio=4.0)
    {'kernel': {'a': 1.0, 'b': 4.0}}

  Source: Hayou et al. 2024 (arXiv 2402.12354).
  """
  in_range("ratio", ratio, "[1, inf)")
  return choice_scales(faster, trainable, chosen=ratio, others=1.0, name="faster")
