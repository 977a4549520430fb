"""What a leaf adapts, known from its path and its shape: how factors find the weight whose cuts they inherit."""

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any, TypeVar

import jax

from jaxft.tree.paths import Tree, is_float

T = TypeVar("T")
Followed = tuple[int | None, ...]  # for each axis of an array the axis of its weight, counted from the end


def adapted(path: str, known: Mapping[str, T]) -> T | None:
  """The entry with the longest path that is contained in a leaf's own, or None.

  >>> adapted("0/layers/query/kernel/a", {"layers/query/kernel": "W", "kernel": "V"})
  'W'
  """
  parts = path.split("/")
  for length in range(len(parts), 0, -1):
    for start in range(len(parts) - length + 1):
      found = known.get("/".join(parts[start:start + length]))
      if found is not None:
        return found
  return None


def aligned(shape: tuple[int, ...], source: tuple[int, ...], names: tuple[Any, ...]) -> list[Any]:
  """What is said of each axis of a leaf, from what is said of the axes of the weight that it adapts.

  Axes of equal rank are aligned one to one and inherit where the sizes agree; a leaf of smaller rank is aligned as a
  subsequence of the sizes, and an axis that could be either of two with different names has none. Axes that a leaf has
  beyond its source (a bank of experts, say) are taken to lead.

  >>> aligned((4, 2), (4, 8), ("embed", "mlp")), aligned((8,), (4, 8), ("embed", "mlp"))
  (['embed', None], ['mlp'])
  """
  names = tuple(names) + (None,) * (len(source) - len(names))
  if len(shape) >= len(source):
    extra = len(shape) - len(source)
    return [None] * extra + [p if n == m else None for n, m, p in zip(shape[extra:], source, names, strict=True)]
  matches = [[names[j] if n == source[j] else None for n, j in zip(shape, places, strict=True)]
             for places in combinations(range(len(source)), len(shape))
             if all(n == source[j] or n == 1 for n, j in zip(shape, places, strict=True))]
  if not matches:
    return [None] * len(shape)
  return [options[0] if len(set(options)) == 1 else None for options in zip(*matches, strict=True)]


def followed_axes(split: Callable[[jax.Array, Tree], tuple[Tree, Tree]], key: jax.Array, params: Tree) -> Tree | None:
  """For each array that a transform makes, the axes of the weights that its own axes grow with.

  Found by splitting shapes in which one axis of all weights is twice as long, so that a rank is not taken for an axis
  of its size.

  >>> from jaxft.transforms import lora
  >>> followed_axes(lora("w", rank=4).split, jax.random.key(0), {"w": jnp.ones((4, 4))})[1]
  {'w': {'a': (-2, None), 'b': (None, -1)}}

  Args:
    split: of a transform.
    key: for it.
    params: arrays or shapes.

  Returns:
    The two sides of the split with a tuple in the place of each array; None where the transform takes no other sizes,
    as a choice of single entries does.
  """

  def made(grown: int | None) -> tuple[list[Any], Any]:
    def shape(x: Any) -> Any:
      if not is_float(x):
        return x
      longer = lambda i, n: 2 * n if i - len(x.shape) == grown else n
      return jax.ShapeDtypeStruct([longer(i, n) for i, n in enumerate(x.shape)], x.dtype)

    return jax.tree.flatten(jax.eval_shape(split, key, jax.tree.map(shape, params)))

  rank = max((x.ndim for x in jax.tree.leaves(params) if is_float(x)), default=0)
  leaves, structure = made(None)
  follows = [[None] * x.ndim for x in leaves]
  try:
    for axis in range(-rank, 0):
      for x, y, found in zip(leaves, made(axis)[0], follows, strict=True):
        for i, (n, m) in enumerate(zip(x.shape, y.shape, strict=True)):
          if m == 2 * n:
            found[i] = axis
  except (TypeError, ValueError):
    return None
  return structure.unflatten(map(tuple, follows))
