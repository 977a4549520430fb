"""Preference pairs of one tree of text: two continuations of the same prefix that turned out unlike."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxft.checks import in_range
from jaxft.signatures import AnyArray, explain_errors


class SiblingPair(NamedTuple):
  """Two fragments that follow the same prefix.

  Attributes:
    prefix: the fragments from below the root to their parent, in order.
    chosen, rejected: the better and the worse fragment.
    gap: how much better, by value.
  """

  prefix: tuple[Any, ...]
  chosen: Any
  rejected: Any
  gap: float


@explain_errors
def word_overlap(a: str, b: str) -> float:
  """The words that two texts have in common, over those of the one with fewer; 0 where one has none.

  >>> word_overlap("city='Oslo', days", "city='Bergen'")
  0.5

  Args:
    a, b: texts; a word is a run of letters, digits and underscores.

  Source: Zeng et al. 2025, iTool (arXiv 2501.09766).
  """
  left, right = (set(re.findall(r"\w+", text)) for text in (a, b))
  return len(left & right) / min(len(left), len(right)) if left and right else 0.0


@explain_errors
def sibling_pairs(
    parents: Int[AnyArray, " nodes"], fragments: Sequence[Any], values: Float[AnyArray, " nodes"], *,
    min_gap: float = 0.1, min_value: float = -0.3, max_overlap: float = 0.95,
    overlap: Callable[[Any, Any], float] = word_overlap,
) -> list[SiblingPair]:
  """The best and the worst child of each node, where they differ enough and the best is good enough.

  A pair is kept where `V_best - V_worst >= min_gap`, `V_best >= min_value` and `overlap(best, worst) <= max_overlap`.

  >>> values = np.array([0.0, 0.9, 0.2, 0.5])
  >>> sibling_pairs(np.array([-1, 0, 0, 0]), ["", "city='Oslo'", "city='Bergen'", "days=2"], values)
  [SiblingPair(prefix=(), chosen="city='Oslo'", rejected="city='Bergen'", gap=0.7)]

  Args:
    parents: of each node, as of `jaxft.decoding.SearchTree`; -1 of the root, and each parent before its children.
    fragments: of each node, the text that it adds; that of the root is not read.
    values: of each node; a tree's `means` do not grow with the visits, its `sums` are the source's. NaN is a node
      without a value, which is in no pair.
    min_gap: >= 0.
    min_value: of the best, since the best of bad ones is none to imitate; -inf takes any.
    max_overlap: in [0, 1]; 1 takes any.
    overlap: of two fragments; ids of tokens need one of their own.

  Returns:
    The pairs, by their parents' order. Of children of one value the first is the best, and the last the worst.

  Raises:
    ValueError: lengths that differ, a parent that does not come before its child, or a number out of range.

  Source: Zeng et al. 2025, iTool (arXiv 2501.09766).
  """
  in_range("min_gap", min_gap, "[0, inf)")
  in_range("max_overlap", max_overlap, "[0, 1]")
  parents, values = np.asarray(parents), np.asarray(values, np.float64)
  if not len(parents) == len(fragments) == len(values):
    raise ValueError("parents, fragments and values must have one length; got "
                     f"{len(parents)}, {len(fragments)} and {len(values)}")
  if np.isnan(min_value):
    raise ValueError("min_value must be a number; got nan")
  children: dict[int, list[int]] = {}
  prefixes: list[tuple[Any, ...]] = []
  for node, parent in enumerate(parents.tolist()):
    if not -1 <= parent < node or (parent < 0) != (node == 0):
      raise ValueError(f"parents must be -1 for node 0 and an earlier node for each other; got {parent} of node {node}")
    prefixes.append(() if node == 0 else (*prefixes[parent], fragments[node]))
    if node and not np.isnan(values[node]):
      children.setdefault(parent, []).append(node)
  pairs = []
  for parent in sorted(children):
    ranked = sorted(children[parent], key=lambda node: -values[node])  # stable: of equal ones the first comes first
    best, worst = ranked[0], ranked[-1]
    gap = float(values[best] - values[worst])
    if best == worst or gap < min_gap or values[best] < min_value:
      continue
    if overlap(fragments[best], fragments[worst]) <= max_overlap:
      pairs.append(SiblingPair(prefixes[parent], fragments[best], fragments[worst], gap))
  return pairs
