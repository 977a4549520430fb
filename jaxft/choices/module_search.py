"""Where to fine-tune: a search over layer ranges and modules, by trying them."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

import jax
import numpy as np

from jaxft.signatures import explain_errors
from jaxft.tree.choice import Choice, mask
from jaxft.tree.depth import layer_of
from jaxft.tree.paths import Tree, map_with_path

Node = TypeVar("Node", bound=Hashable)


@dataclass(frozen=True)
class Search(Generic[Node]):
  """What a search found.

  Attributes:
    best: the node of the highest score among all that were tried.
    score: its score.
    scores: of every node tried, in order.
    path: the node that was expanded at each level.
  """

  best: Node
  score: float
  scores: dict[Node, float]
  path: list[Node]


@explain_errors
def tree_search(
    roots: Sequence[Node], expand: Callable[[Node], Sequence[Node]], evaluate: Callable[[Node], float]
) -> Search[Node]:
  """Tries all nodes of a level, expands the best one, and goes on while it has children.

  >>> search = tree_search([(0, 2), (2, 4)], lambda node: [], lambda node: node[0])
  >>> search.best, search.scores
  ((2, 4), {(0, 2): 0.0, (2, 4): 2.0})

  Args:
    roots: the first level, such as `layer_ranges(n)`.
    expand: a node's children, such as the module types within its layers; none ends the search.
    evaluate: fine-tunes at a node and returns its score, higher is better; called once for each node. The source adds
      the scores of the speciality and of general abilities.

  Raises:
    ValueError: there are no roots.

  Source: the coarse step of Zhang et al. 2024, CoFiTune (arXiv 2404.10306).
  """
  if not roots:
    raise ValueError("roots must hold at least one node; got none")
  scores: dict[Node, float] = {}
  path: list[Node] = []
  level = list(roots)
  while level:
    for node in level:
      if node not in scores:
        scores[node] = float(evaluate(node))
    path.append(max(level, key=scores.__getitem__))
    level = list(expand(path[-1]))
  best = max(scores, key=scores.__getitem__)
  return Search(best, scores[best], scores, path)


@explain_errors
def layer_ranges(num_layers: int) -> list[tuple[int, int]]:
  """The seven ranges `(start, stop)` of the source: the four quarters, and the lower, middle and upper half.

  >>> layer_ranges(8)
  [(0, 2), (2, 4), (4, 6), (6, 8), (0, 4), (2, 6), (4, 8)]

  Raises:
    ValueError: there are fewer than four layers.
  """
  if num_layers < 4:
    raise ValueError(f"num_layers must be >= 4, for quarters; got {num_layers}")
  q = [round(i * num_layers / 4) for i in range(5)]
  return [*pairwise(q), *zip(q[:-2], q[2:], strict=True)]


@explain_errors
def within_layers(start: int, stop: int, select: Choice = True) -> Callable[[Tree], Tree]:
  """What is selected in layers `start` to `stop - 1`: a choice, as a function of the params.

      transform = train(within_layers(8, 16, "**/mlp/{up,down}/*"))

  It has a vector of booleans for a stacked leaf of which a part is in the range; see `jaxft.tree.choice`.

  >>> import jax.numpy as jnp
  >>> within_layers(1, 3)({"layers": {"w": jnp.ones((4, 2))}, "head": jnp.ones(2)})
  {'head': False, 'layers': {'w': array([False,  True,  True, False])}}

  Raises:
    ValueError: start is negative, or stop not above it; from the function: nothing there is selected.
  """
  if not 0 <= start < stop:
    raise ValueError(f"start must be at least 0 and below stop; got start {start}, stop {stop}")

  def choose(params: Tree) -> Tree:
    choice = map_with_path(
        lambda path, leaf, chosen: chosen and _inside(path, leaf, start, stop), params, mask(select, params))
    if not any(np.any(flags) for flags in jax.tree.leaves(choice)):
      raise ValueError(f"select must match a leaf in layers {start} to {stop - 1}; {select!r} matches none")
    return choice

  return choose


def _inside(path: str, leaf: Any, start: int, stop: int) -> Any:
  layer = layer_of(path, leaf)
  if layer is None:
    return False
  flags = (np.asarray(layer) >= start) & (np.asarray(layer) < stop)
  return bool(flags.all()) if flags.all() or not flags.any() else flags
