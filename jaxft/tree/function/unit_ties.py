"""Which entries of which leaves must move together: ties between the axes of leaves, down to common factors."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxft.tree.function.held import Factor


class Node(NamedTuple):
  """A factor of a leaf's axis: units that keep their order, or change it with all that they are tied to."""

  path: str
  factor: Factor

  @property
  def alike(self) -> bool:
    """Whether it is no leaf's, so that its order is not this leaf's affair."""
    return self.factor.axis < 0


@dataclasses.dataclass
class Ties:
  """Nodes that are tied, nodes that must keep their order, and how nodes were divided."""

  parents: dict[Node, Node] = dataclasses.field(default_factory=dict)
  fixed: set[Node] = dataclasses.field(default_factory=set)
  parts: dict[Node, tuple[Node, Node]] = dataclasses.field(default_factory=dict)

  def root(self, node: Node) -> Node:
    self.parents.setdefault(node, node)
    while self.parents[node] != node:
      self.parents[node] = node = self.parents[self.parents[node]]
    return node

  def tie(self, a: Sequence[Node], b: Sequence[Node]) -> list[Node]:
    """Two descriptions of an axis that go together entry by entry, as factors from the slowest to the fastest.

    Returns:
      Of each factor, divided as far as either is, the one that says more.
    """
    left, right, said = list(a), list(b), []
    while left and right:
      small = min(left[0].factor.size, right[0].factor.size)
      if max(left[0].factor.size, right[0].factor.size) % small:
        break
      for side in (left, right):
        if side[0].factor.size > small:
          side[0:1] = self.divide(side[0], small)
      x, y = left.pop(0), right.pop(0)
      if not (x.alike or y.alike):
        self.parents[self.root(x)] = self.root(y)
      said.append(max(x, y, key=lambda node: node.factor.axis))
    self.fix([*left, *right])
    return [*said, *left]

  def fix(self, nodes: Sequence[Node]) -> None:
    self.fixed.update(node for node in nodes if not node.alike)
    for node in nodes:
      self.root(node)

  def divide(self, node: Node, outer: int) -> tuple[Node, Node]:
    """A node as `outer` groups, and the entries of one."""
    axis, stride, size = node.factor
    inner = size // outer
    parts = Node(node.path, Factor(axis, stride * inner, outer)), Node(node.path, Factor(axis, stride, inner))
    if not node.alike:
      known = self.parts.setdefault(node, parts)
      if known != parts:  # divided in two ways: both parts of both are held by the finest
        finer, coarser = sorted((known, parts), key=lambda p: p[0].factor.size)
        rest = coarser[0].factor.size // finer[0].factor.size
        if coarser[0].factor.size % finer[0].factor.size:
          self.fix([*known, *parts])
        else:
          self.parts[node] = finer
          middle = self.divide(finer[1], rest)
          self.tie([finer[0], middle[0]], [coarser[0]])
          self.tie([middle[1]], [coarser[1]])
    return parts

  def classes(self) -> list[list[Node]]:
    """The nodes that are tied and may change their order, of the finest division."""
    while True:  # what is tied to a node that is divided is divided likewise
      groups = self._groups()
      before = len(self.parts)
      for members in groups:
        for node in [n for n in members if n in self.parts]:
          major, minor = self.parts[node]
          for other in members:
            if other not in self.parts:
              self.tie(self.divide(other, major.factor.size), (major, minor))
          if any(n in self.fixed for n in members):
            self.fix([major, minor])
      if len(self.parts) == before:
        break
    fixed = {self.root(node) for node in self.fixed}
    return [members for members in self._groups() if members[0].factor.size > 1 and self.root(members[0]) not in fixed
            and not any(node in self.parts for node in members)]

  def _groups(self) -> list[list[Node]]:
    groups: dict[Node, list[Node]] = {}
    for node in list(self.parents):
      if not node.alike:
        groups.setdefault(self.root(node), []).append(node)
    return list(groups.values())


def covers(nodes: Sequence[Node], size: int) -> bool:
  """Whether nodes make up a whole axis."""
  return math.prod(node.factor.size for node in nodes) == size
