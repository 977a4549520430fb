"""What a leaf adapts, known from its path and its shape: how factors find the weight whose cuts they inherit."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any, TypeVar

T = TypeVar("T")


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
