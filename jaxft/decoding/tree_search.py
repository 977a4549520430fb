"""Monte-Carlo tree search over fragments of text, on the host, by any functions that continue and judge a text.

For fixed sets of actions under `jax.jit`, as in games, there is the package `mctx`; fragments of text are no such set.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxft.checks import in_range
from jaxft.signatures import explain_errors


class Fragment(NamedTuple):
  """A piece of a continuation.

  Attributes:
    content: what it adds, text or a tuple of token ids: fragments are joined by `+`.
    log_prob: of its tokens together, by the model that wrote it.
    tokens: how many they are, >= 1.
    done: whether nothing follows.
  """

  content: Any
  log_prob: float
  tokens: int = 1
  done: bool = False


class SearchTree(NamedTuple):
  """What a search found; node 0 is the root, and each node comes after its parent.

  Attributes:
    parents: -1 of the root.
    fragments: what each node adds; None of the root.
    depths: 0 of the root.
    done: whether nothing follows.
    priors: geometric mean of the probabilities of a node's tokens.
    initial: value that a node was made with.
    totals: sum of the rewards of the simulations through a node.
    visits: their number.
  """

  parents: Int[np.ndarray, " nodes"]
  fragments: tuple[Any, ...]
  depths: Int[np.ndarray, " nodes"]
  done: Bool[np.ndarray, " nodes"]
  priors: Float[np.ndarray, " nodes"]
  initial: Float[np.ndarray, " nodes"]
  totals: Float[np.ndarray, " nodes"]
  visits: Int[np.ndarray, " nodes"]

  @property
  def means(self) -> Float[np.ndarray, " nodes"]:
    """The mean reward of the simulations through each node; its initial value where there was none."""
    return np.where(self.visits > 0, self.totals / np.maximum(self.visits, 1), self.initial)

  @property
  def sums(self) -> Float[np.ndarray, " nodes"]:
    """The initial value and all rewards, as iTool keeps them: these grow with the visits."""
    return self.initial + self.totals


class _Node:
  """A node while the search runs."""

  def __init__(self, parent: int, fragment: Fragment | None, depth: int, initial: float):
    self.parent, self.fragment, self.depth, self.initial = parent, fragment, depth, initial
    self.children: dict[Hashable, int] = {}
    self.expanded, self.total, self.visits = False, 0.0, 0

  @property
  def prior(self) -> float:
    return 1.0 if self.fragment is None else math.exp(self.fragment.log_prob / self.fragment.tokens)

  @property
  def done(self) -> bool:
    return self.fragment is not None and self.fragment.done


class _Search:
  """One root's tree."""

  def __init__(self, root: Any, depth: int, exploration: float, initial: Callable[[Any, Any], float] | None):
    self.nodes = [_Node(-1, None, 0, 0.0)]
    self._root, self._depth, self._exploration, self._initial = root, depth, exploration, initial

  def state(self, at: int) -> Any:
    fragment = self.nodes[at].fragment
    return self._root if fragment is None else self.state(self.nodes[at].parent) + fragment.content

  def select(self) -> int:
    """The node to grow: down through nodes that were expanded, to one that was not or that ends."""
    at = 0
    while self.nodes[at].expanded and self.nodes[at].children:
      at = max(self.nodes[at].children.values(), key=lambda child, parent=at: self._bound(parent, child))
    return at

  def _bound(self, parent: int, child: int) -> float:
    node = self.nodes[child]
    value = (node.initial + node.total) / (node.visits + 1)
    spread = math.sqrt(math.log(max(self.nodes[parent].visits, 1)) / (node.visits + 1))
    return value + self._exploration * node.prior * spread

  def grows(self, at: int) -> bool:
    node = self.nodes[at]
    return not node.expanded and not node.done and node.depth < self._depth

  def expand(self, at: int, completions: Sequence[Sequence[Fragment]]) -> None:
    """Each completion becomes a chain below the node; where one begins as another does they share its nodes."""
    self.nodes[at].expanded = True
    for completion in completions:
      parent, left = at, list(completion)
      while left and not self.nodes[parent].done:
        depth = self.nodes[parent].depth + 1
        taken, left = (left[:1], left[1:]) if depth < self._depth else (left, [])
        parent = self._child(parent, _joined(taken))

  def _child(self, parent: int, fragment: Fragment) -> int:
    found = self.nodes[parent].children.get(fragment.content)
    if found is None:
      initial = 0.0 if self._initial is None else float(self._initial(self.state(parent), fragment.content))
      found = len(self.nodes)
      self.nodes.append(_Node(parent, fragment, self.nodes[parent].depth + 1, initial))
      self.nodes[parent].children[fragment.content] = found
    return found

  def simulate(self, at: int, steps: int) -> int:
    """Down from a node, each time to the child of the highest value so far."""
    for _ in range(steps):
      children = self.nodes[at].children.values()
      if not children:
        break
      at = max(children, key=lambda child: self.nodes[child].initial + self.nodes[child].total)
    return at

  def back_up(self, at: int, reward: float) -> None:
    while at >= 0:
      self.nodes[at].visits += 1
      self.nodes[at].total += reward
      at = self.nodes[at].parent

  def tree(self) -> SearchTree:
    nodes = self.nodes
    each = lambda name, dtype: np.array([getattr(node, name) for node in nodes], dtype)
    return SearchTree(
        each("parent", np.int64), tuple(node.fragment and node.fragment.content for node in nodes),
        each("depth", np.int64), each("done", bool), each("prior", np.float64), each("initial", np.float64),
        each("total", np.float64), each("visits", np.int64))


def _joined(fragments: Sequence[Fragment]) -> Fragment:
  first, *rest = fragments
  for fragment in rest:
    first = Fragment(first.content + fragment.content, first.log_prob + fragment.log_prob,
                     first.tokens + fragment.tokens, fragment.done)
  return first


@explain_errors
def tree_search(
    roots: Sequence[Any],
    expand: Callable[[list[Any]], Sequence[Sequence[Sequence[Fragment]]]],
    evaluate: Callable[[list[Any]], Sequence[float]],
    *,
    iterations: int = 5,
    depth: int = 3,
    simulate: int = 2,
    exploration: float = 1.0,
    initial: Callable[[Any, Any], float] | None = None,
) -> list[SearchTree]:
  """Searches the continuations of several texts, one tree each, in step, so that a model continues them as one batch.

  Each iteration selects, from the root down through expanded nodes, the child of the highest

      value / (visits + 1) + exploration * prior * sqrt(ln(max(parent's visits, 1)) / (visits + 1))

  with the value `initial + sum of rewards`; expands the node where it ends, if it may; goes on from there by at most
  `simulate` children of the highest value; and adds the reward of what stands there to every node up to the root.

  >>> write = lambda texts: [[[Fragment("a", -0.7, done=True)], [Fragment("b", -0.7, done=True)]] for _ in texts]
  >>> (tree,) = tree_search(["> "], write, lambda texts: [float(text == "> b") for text in texts], iterations=9)
  >>> tree.fragments, tree.visits, tree.totals
  ((None, 'a', 'b'), array([9, 2, 7]), array([7., 0., 7.]))

  Args:
    roots: the texts, or tuples of token ids, to continue.
    expand: `texts -> completions of each`: as many as are sampled, each a sequence of fragments in order
      (`jaxft.data.split_fragments`). Called with the texts to expand in this iteration, some or all trees' one.
    evaluate: `texts -> rewards`, finite; a text may be unfinished.
    iterations: simulations of each tree, >= 1.
    depth: >= 1, of the deepest nodes; what of a completion goes further is joined to its last one.
    simulate: >= 0.
    exploration: >= 0; 0 is greedy.
    initial: `(text before, fragment) -> value` of a new node; None is 0.

  Returns:
    The trees, in the order of the roots; for the same functions the same ones.

  Raises:
    ValueError: a number out of range, a reward that is not finite, a completion count or a reward count other than of
      the texts, or a fragment without tokens.

  Source: Zeng et al. 2025, iTool (arXiv 2501.09766). Nodes are expanded once and then descended from (their code
  expands a node again until it has more children than asked for), the logarithm of a node without visits is 0, and
  fragments that are alike are one node.
  """
  for name, number, interval in (("iterations", iterations, "[1, inf)"), ("depth", depth, "[1, inf)"),
                                 ("simulate", simulate, "[0, inf)"), ("exploration", exploration, "[0, inf)")):
    in_range(name, number, interval)
  searches = [_Search(root, depth, exploration, initial) for root in roots]
  for _ in range(iterations):
    chosen = [search.select() for search in searches]
    growing = [i for i, (search, at) in enumerate(zip(searches, chosen, strict=True)) if search.grows(at)]
    if growing:
      written = expand([searches[i].state(chosen[i]) for i in growing])
      _check_count("expand", written, growing)
      for i, completions in zip(growing, written, strict=True):
        for fragment in (fragment for completion in completions for fragment in completion):
          if fragment.tokens < 1:
            raise ValueError(f"expand must give fragments of one token or more; got {fragment}")
        searches[i].expand(chosen[i], completions)
    ends = [search.simulate(at, simulate) for search, at in zip(searches, chosen, strict=True)]
    rewards = evaluate([search.state(at) for search, at in zip(searches, ends, strict=True)])
    _check_count("evaluate", rewards, searches)
    for search, at, reward in zip(searches, ends, rewards, strict=True):
      if not math.isfinite(reward):
        raise ValueError(f"evaluate must give finite rewards; got {reward} of {search.state(at)!r:.200}")
      search.back_up(at, float(reward))
  return [search.tree() for search in searches]


def _check_count(name: str, given: Sequence[Any], texts: Sequence[Any]) -> None:
  if len(given) != len(texts):
    raise ValueError(f"{name} must give one entry for each text; got {len(given)} for {len(texts)}")
