"""What the axes of a leaf are: which are contracted, which come out, which index layers or experts."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from jaxft.tree.function.held import BATCH, GATHER, INDEX, ROW
from jaxft.tree.function.use_walk import Use

Kind = Literal["matrix", "table", "depthwise", "vector", "unused"]


class LeafAxes(NamedTuple):
  """The axes of one leaf, as numbers of its own axes.

  >>> query = LeafAxes("matrix", (64, 4, 16), rows=(0,), columns=(1, 2))
  >>> query.pattern, query.arranged_shape
  ('in out0 out1 -> in (out0 out1)', (64, 64))

  Attributes:
    kind: "matrix" (a convolution too, over its window and what comes in), "table" (rows are looked up), "depthwise" (a
      window for each channel), "vector", or "unused" for a leaf that the function never reads.
    shape: of the leaf.
    rows: what is contracted with activations, or looked up.
    columns: what comes out; of a vector all that is left.
    layers: index the layers of a stack, of which one is used at a time.
    experts: index matrices that are used side by side.
    stack: what the layers belong to: the leaves of one scan have one name.
  """

  kind: Kind
  shape: tuple[int, ...]
  rows: tuple[int, ...] = ()
  columns: tuple[int, ...] = ()
  layers: tuple[int, ...] = ()
  experts: tuple[int, ...] = ()
  stack: str = ""

  @property
  def order(self) -> tuple[int, ...]:
    """The leaf's axes in the order of the arranged leaf."""
    return (*self.layers, *self.experts, *self.rows, *self.columns)

  @property
  def arranged_shape(self) -> tuple[int, ...]:
    """`[layers, experts, in, out]`, those that there are."""
    return tuple(math.prod(self.shape[axis] for axis in group) for group in self.groups)

  @property
  def pattern(self) -> str:
    """The arrangement in einops notation."""
    names = {}
    for name, axes in (("layers", self.layers), ("experts", self.experts), ("in", self.rows), ("out", self.columns)):
      names |= {axis: name if len(axes) == 1 else f"{name}{i}" for i, axis in enumerate(axes)}
    groups = [names[g[0]] if len(g) == 1 else f"({' '.join(names[axis] for axis in g)})" for g in self.groups]
    return f"{' '.join(names[axis] for axis in range(len(self.shape)))} -> {' '.join(groups)}"

  @property
  def groups(self) -> list[tuple[int, ...]]:
    """For each axis of the arranged leaf the leaf's axes that it is made of."""
    return [group for group in (self.layers, self.experts, self.rows, self.columns) if group]


def axes_from_uses(path: str, shape: Sequence[int], uses: Sequence[Use]) -> LeafAxes:
  """The axes that a leaf's uses agree on.

  A table that is also multiplied by, as the head of a model with tied embeddings, is a table.

  Raises:
    ValueError: they disagree.
  """
  shape = tuple(shape)
  if not uses:
    return LeafAxes("unused", shape, columns=tuple(range(len(shape))))
  matrices = [use for use in uses if use.kind not in ("elementwise", "constant", "other") and use.rows and use.columns]
  lookups = [use for use in matrices if use.kind == "lookup"]
  settled = lookups or matrices or list(uses)
  if not matrices and any(use.kind in ("constant", "other") for use in uses) and sum(n > 1 for n in shape) > 1:
    raise ValueError(f"the uses of {path} {shape} do not tell rows from columns:{described(uses)}")
  stacks = lambda uses: {tuple(axis for axis, _ in use.stack) for use in uses}
  if not matrices and len(stacks(settled)) > 1:  # one entry here, and all there, or another's
    settled = [use._replace(stack=tuple(s for s in use.stack if s[1] != INDEX)) for use in settled]
  if len({(use.rows, use.columns, tuple(axis for axis, _ in use.stack)) for use in settled}) > 1 and (
      matrices or len(stacks(settled)) > 1):
    raise ValueError(f"the uses of {path} {shape} disagree:{described(uses)}")
  use = settled[0]
  beside = {BATCH, ROW, GATHER}
  if any(over not in (*beside, INDEX) for _, over in use.stack):
    beside.add(INDEX)
  scanned = tuple(axis for axis, over in use.stack if over not in beside)
  experts = tuple(axis for axis, over in use.stack if over in beside)  # one picked within a scan is an expert too
  stack = next((over for _, over in use.stack if over not in beside), "")
  rest = tuple(axis for axis in range(len(shape)) if axis not in (*scanned, *experts))
  if not matrices:
    return LeafAxes("vector", shape, columns=rest, layers=scanned, experts=experts, stack=stack)
  # An axis of length 1 may be lost on the way; it goes with what is contracted, as the window of a convolution does.
  rows = tuple(axis for axis in rest if axis not in use.columns)
  kind: Kind = "table" if use.kind == "lookup" else "depthwise" if use.kind == "depthwise" else "matrix"
  return LeafAxes(kind, shape, rows, use.columns, scanned, experts, stack)


def described(uses: Sequence[Use]) -> str:
  """The uses of a leaf, one a line, for messages."""
  lines = []
  for use in uses:
    stack = f", one of {', '.join(f'axis {axis} ({over})' for axis, over in use.stack)}" if use.stack else ""
    lines.append(f"\n  {use.kind} by {use.operation}: rows {use.rows}, columns {use.columns}{stack}")
  return "".join(lines)


def axes_by_hand(path: str, shape: Sequence[int], pattern: str) -> LeafAxes:
  """The axes that an einops pattern gives a leaf.

  >>> axes_by_hand("attention/out/kernel", (4, 16, 64), "heads dim embed -> (heads dim) embed").rows
  (0, 1)

  Args:
    path: of the leaf, for messages.
    shape: of the leaf.
    pattern: the leaf's axes, an arrow, and the arranged leaf's: `in out` with axes in groups, or one group for a
      vector, after `layers` and `experts` where the leaf has such axes. Names are free but for these two.

  Raises:
    ValueError: no such pattern, or of another number of axes than the leaf has.
  """
  takes = "must be such as 'layers embed heads dim -> layers embed (heads dim)'"
  wrong = lambda why: ValueError(f"by_hand for {path} {tuple(shape)} {takes}, {why}; got {pattern!r}")
  before, arrow, after = pattern.partition("->")
  own, groups, depth = before.split(), [], 0
  for token in after.replace("(", " ( ").replace(")", " ) ").split():
    if token in "()":
      depth += 1 if token == "(" else -1
      if token == "(":
        groups.append([])
    elif depth:
      groups[-1].append(token)
    else:
      groups.append([token])
    if depth not in (0, 1):
      raise wrong("with groups that do not nest")
  named = [name for group in groups for name in group]
  if not arrow or depth or sorted(own) != sorted(named) or len(set(own)) != len(own):
    raise wrong("with each axis once on either side")
  if len(own) != len(shape):
    raise wrong(f"with {len(shape)} axes before the arrow")
  place = {name: i for i, name in enumerate(own)}
  axes: dict[str, tuple[int, ...]] = {}
  for name in ("layers", "experts"):
    if groups and any(part.startswith(name) for part in groups[0]):
      axes[name] = tuple(place[part] for part in groups.pop(0))
  if len(groups) not in (1, 2) and (groups or not axes):
    raise wrong("with one group for a vector and two for a matrix")
  for name, group in zip(("rows", "columns") if len(groups) == 2 else ("columns",), groups, strict=False):
    axes[name] = tuple(place[part] for part in group)
  return LeafAxes("matrix" if len(groups) == 2 else "vector", tuple(shape), **axes,
                  stack="by hand" if "layers" in axes else "")
