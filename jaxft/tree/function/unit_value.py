"""What is known of a variable where units are followed: the leaves it shows, and those its entries come from."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxft.tree.function.held import Held
from jaxft.tree.function.unit_ties import Node


class Value(NamedTuple):
  """What is known of a variable.

  Attributes:
    held: leaves that it shows, before any input.
    flows: the leaves that entries along its axes come from.
    alike: axes along which all entries are alike, as a `Held` with factors there.
    varies: whether it depends on the inputs.
  """

  held: tuple[Held, ...] = ()
  flows: tuple[Held, ...] = ()
  alike: Held | None = None
  varies: bool = False

  def nodes(self, axis: int) -> list[list[Node]]:
    """Of each leaf the nodes along an axis, where it has some."""
    found = ([Node(h.path, f) for f in h.axes[axis]] for h in (*self.held, *self.flows) if axis < len(h.axes))
    return [nodes for nodes in found if any(not node.alike for node in nodes)]

  def changed(self, change: Callable[[Held], Held]) -> "Value":
    """With each of its leaves, and what is alike, changed."""
    return self._replace(held=tuple(map(change, self.held)), flows=tuple(map(change, self.flows)),
                         alike=None if self.alike is None else change(self.alike))


def covering(flows: Sequence[Held]) -> tuple[Held, ...]:
  """Of flows whose axes are tied, one for each axis: the others would only say the same again.

  Of an axis along which some entries are alike, as those of repeated keys are, another may say more.
  """
  kept: list[Held] = []
  seen: set[int] = set()
  for flow in flows:
    own = {i for i, factors in enumerate(flow.axes) if any(f.axis >= 0 for f in factors)}
    if own - seen:
      kept.append(flow)
      seen |= {i for i in own if all(f.axis >= 0 for f in flow.axes[i])}
  return tuple(kept)
