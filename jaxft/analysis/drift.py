"""How far fine-tuning moved the weights, where, and how much of what two runs moved is the same."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxft.checks import in_range
from jaxft.signatures import explain_errors
from jaxft.tree.depth import layer_of, num_layers
from jaxft.tree.finite_leaves import check_finite
from jaxft.tree.paths import Tree, is_float, leaves_with_paths
from jaxft.tree.task_vectors import check_same_leaves


@explain_errors
def layer_drift(base: Tree, tuned: Tree) -> Float[np.ndarray, " layers_and_rest"]:
  """`|tuned - base| / |base|` of each layer's weights together, and last of all that lies outside the layers.

  >>> base = {"layers": {"w": jnp.ones((2, 4))}, "head": jnp.ones(4)}
  >>> tuned = {"layers": {"w": base["layers"]["w"].at[1].set(1.5)}, "head": jnp.full(4, 2.0)}
  >>> layer_drift(base, tuned)  # of layers 0 and 1, and of the rest
  array([0. , 0.5, 1. ])

  Args:
    base, tuned: checkpoints, stacked, cut or unrolled; leaves that are not floating point are passed over.

  Returns:
    L + 1 numbers; NaN for a part without weights.

  Raises:
    ValueError: the checkpoints differ in paths or shapes, or hold NaN or infinity.
  """
  check_same_leaves("base", base, "tuned", tuned)
  check_finite({"base": base, "tuned": tuned})
  layers = num_layers(base)
  moved, size = np.zeros(layers + 1), np.zeros(layers + 1)
  others = dict(leaves_with_paths(tuned))
  for path, w in leaves_with_paths(base):
    if not is_float(w):
      continue
    layer = layer_of(path, w)
    place = layers if layer is None else layer
    np.add.at(moved, place, _squares(others[path].astype(jnp.float32) - w.astype(jnp.float32), np.ndim(place)))
    np.add.at(size, place, _squares(w.astype(jnp.float32), np.ndim(place)))
  with np.errstate(invalid="ignore", divide="ignore"):
    return np.sqrt(moved) / np.sqrt(size)


@explain_errors
def update_sparsity(base: Tree, tuned: Tree, *, eps: float = 0.0) -> float:
  """The fraction of floating-point weights that moved by no more than `eps`.

  >>> base, tuned = {"w": jnp.zeros(4)}, {"w": jnp.array([0.0, 0.0, 0.1, 1.0])}
  >>> update_sparsity(base, tuned), update_sparsity(base, tuned, eps=0.2)
  (0.5, 0.75)

  Args:
    base, tuned: checkpoints; leaves that are not floating point are passed over.
    eps: of absolute size; 0 counts what did not move at all.

  Raises:
    ValueError: the checkpoints differ in paths or shapes, have no such weights, or hold NaN or infinity.
  """
  check_same_leaves("base", base, "tuned", tuned)
  check_finite({"base": base, "tuned": tuned})
  in_range("eps", eps, "[0, inf)")
  others = dict(leaves_with_paths(tuned))
  still = total = 0
  for path, w in leaves_with_paths(base):
    if is_float(w):
      difference = jnp.abs(others[path].astype(jnp.float32) - w.astype(jnp.float32))
      still += int(jnp.sum(difference <= eps))
      total += w.size
  if not total:
    raise ValueError("base must have floating-point weights; got none")
  return still / total


@explain_errors
def mask_overlap(first: Tree, second: Tree) -> dict[str, float]:
  """How much two selections have in common, as `jaccard = |A and B| / |A or B|`, 1 where both are empty.

  >>> overlap = mask_overlap({"w": np.array([1, 1, 1, 0], bool)}, {"w": np.array([0, 1, 1, 1], bool)})
  >>> overlap["jaccard"], overlap["first"], overlap["chance"]  # 2 / 4, 3 / 4, 9 / 15
  (0.5, 0.75, 0.6)

  Args:
    first, second: trees of booleans or boolean arrays of the same structure and shapes.

  Returns:
    "jaccard"; "first" and "second", the selected fractions; and "chance", the jaccard expected of independent
    selections of these fractions.

  Raises:
    ValueError: the selections differ in paths or shapes, hold nothing, or hold what is not a boolean.
  """
  mine, others = (dict(leaves_with_paths(tree)) for tree in (first, second))
  differ = sorted(path for path in mine.keys() | others.keys()
                  if path not in mine or path not in others or np.shape(mine[path]) != np.shape(others[path]))
  if differ:
    shown = ", ".join(differ[:10])
    raise ValueError(f"first and second must have the same leaves; {len(differ)} differ: {shown}")
  for name, tree in (("first", mine), ("second", others)):
    for path, x in tree.items():
      if np.result_type(getattr(x, "dtype", type(x))) != np.bool_:
        raise ValueError(f"{name} must hold booleans; got {getattr(x, 'dtype', repr(x))} at {path}")
  if not sum(map(np.size, mine.values())):
    raise ValueError("first must hold at least one entry; got none")
  pairs = [(x, others[path]) for path, x in mine.items()]
  count = lambda f: sum(int(jnp.sum(f(jnp.asarray(a), jnp.asarray(b)))) for a, b in pairs)
  size = sum(np.size(a) for a, _ in pairs)
  both, either = count(jnp.logical_and), count(jnp.logical_or)
  p, q = count(lambda a, b: a) / size, count(lambda a, b: b) / size
  return {
      "jaccard": both / either if either else 1.0, "first": p, "second": q,
      "chance": p * q / (p + q - p * q) if p + q else 1.0,
  }


def _squares(x: Array, lead: int) -> Any:
  """The sum of squares, of each layer by itself; of a size that float32 holds, whatever that of the entries."""
  axes = tuple(range(lead, x.ndim))
  largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0.0)
  shares = jnp.sum(jnp.square(x / jnp.where(largest > 0, largest, 1.0)), axis=axes)
  return np.asarray(shares, np.float64) * np.square(np.asarray(largest, np.float64)).reshape(shares.shape)
