"""Starting the top layers of a pretrained model anew: what they learned last helps a new task least."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.signatures import explain_errors
from jaxft.tree.depth import layer_of, leaf_keys, num_layers, over_stack, stack_axes
from jaxft.tree.paths import Tree, is_array, is_float, is_structured, leaves_with_paths, map_with_path

# Leaves by the last part of their path; what is called otherwise has no known init.
INITS = ("kernel", "bias", "scale")


@explain_errors
def reinitialize_top(key: jax.Array, params: Tree, layers: int, *, stddev: float = 0.02) -> Tree:
  """The params with the last `layers` layers as before pretraining: kernels N(0, stddev^2), biases 0, scales 1.

  All else, embeddings and heads among it, stays. Stacked, cut and unrolled layers draw the same numbers.

  >>> params = {"layers": {"bias": jnp.full((3, 2), 7.0)}}
  >>> reinitialize_top(jax.random.key(0), params, 1)["layers"]["bias"]
  Array([[7., 7.],
         [7., 7.],
         [0., 0.]], dtype=float32)

  Args:
    key: a typed key.
    params: a tree with its layers in a stack; see `jaxft.tree.depth`.
    layers: how many; 0 changes nothing.
    stddev: of the kernels; BERT's 0.02.

  Raises:
    ValueError: layers out of [0, number of layers], a structured leaf, or a leaf named neither kernel, bias nor scale.

  Source: Zhang et al. 2020 (arXiv 2006.05987), which tries 1 to 6 of BERT's 24 layers, and re-initializes the pooler
  too: that is the caller's.
  """
  depth = num_layers(params)
  if not (isinstance(layers, int) and 0 <= layers <= depth):
    raise ValueError(f"layers must be an integer in [0, {depth}]; got {layers!r}")
  _check(params)

  def restart(path: str, leaf: Any) -> Any:
    if not is_float(leaf):
      return leaf
    layer = layer_of(path, leaf)
    if layer is None or np.max(layer) < depth - layers:
      return leaf
    keys, shape = leaf_keys(key, path, leaf), leaf.shape[stack_axes(path, leaf):]
    draw = lambda k: _fresh(k, path, shape, stddev).astype(leaf.dtype)
    fresh = over_stack(draw, keys)(keys)
    chosen = np.reshape(np.asarray(layer) >= depth - layers, (-1,) + (1,) * (leaf.ndim - 1)) if np.ndim(layer) else True
    return jnp.where(chosen, fresh, leaf)

  return map_with_path(restart, params)


def _fresh(key: jax.Array, path: str, shape: tuple[int, ...], stddev: float) -> jax.Array:
  name = path.split("/")[-1]
  if name == "kernel":
    return stddev * jax.random.normal(key, shape)
  return jnp.full(shape, 1.0 if name == "scale" else 0.0)


def _check(params: Tree) -> None:
  for path, leaf in leaves_with_paths(params):
    named = path.split("/")[-1] in INITS
    # Counters, random keys and functions have no init, and need none.
    if not (is_float(leaf) or named and is_array(leaf)) or layer_of(path, leaf) is None:
      continue
    if is_structured(leaf) or not is_float(leaf) or not named:
      kind = type(leaf).__name__ if is_structured(leaf) else "leaf" if is_float(leaf) else str(leaf.dtype)
      raise ValueError(
          f"params has in its layers the {kind} {path}; takes arrays of floating point named {', '.join(INITS)}")
