"""The walk through a jaxpr that finds how each leaf is used, and what it says of a use; the rules are given to it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jax.extend.core import Literal as Constant

from jaxft.tree.function.held import GATHER, ROW, Held, leaf_axes
from jaxft.tree.function.traced import shape_of

Kind = Literal["product", "lookup", "convolution", "depthwise", "elementwise", "constant", "other"]


class Use(NamedTuple):
  """One way in which a function uses a leaf; axes are the leaf's own.

  Attributes:
    kind: "product" with activations, "lookup" of rows, "convolution", "depthwise" (a kernel for each channel),
      "elementwise", "constant" for what it does to another leaf before any input, such as a product of two, of which
      either may be the weight, or "other" for an operation that is not known.
    operation: the primitive.
    rows: axes that are contracted with activations, or looked up.
    columns: axes that come out.
    stack: axes of which one entry at a time is used, and over what: "scan 0", "index", "row", "gather", or "batch".
  """

  kind: Kind
  operation: str
  rows: tuple[int, ...]
  columns: tuple[int, ...]
  stack: tuple[tuple[int, str], ...] = ()


class Value(NamedTuple):
  """What is known of a variable: the leaves that it shows, and whether it depends on the inputs."""

  held: tuple[Held, ...] = ()
  varies: bool = False


@dataclasses.dataclass(frozen=True)
class Walk:
  """Follows leaves through a jaxpr and keeps their uses; a scan has one name however often it is met.

  Attributes:
    uses: what has been met, by path.
    scans: their names, by equation.
    rules: by primitive, `(walk, equation, what is known of its inputs) -> what is known of its outputs`.
  """

  uses: dict[str, dict[Use, None]]
  scans: dict[int, str]
  rules: "Mapping[str, Rule]"

  def __call__(self, closed: Any, args: Sequence[Value]) -> list[Value]:
    jaxpr = getattr(closed, "jaxpr", closed)
    known: dict[Any, Value] = dict(zip(jaxpr.invars, args, strict=True))
    read = lambda v: Value() if isinstance(v, Constant) else known.get(v, Value())
    for eqn in jaxpr.eqns:
      inputs = [read(v) for v in eqn.invars]
      if any(value.held or value.varies for value in inputs):
        known.update(zip(eqn.outvars, self.rules.get(eqn.primitive.name, other)(self, eqn, inputs), strict=True))
    return [read(v) for v in jaxpr.outvars]

  def note(self, held: Held, kind: Kind, operation: str, rows: Sequence[int], columns: Sequence[int]) -> None:
    stacked = dict(held.stack)
    clean = lambda axes: tuple(sorted({a for a in axes if a not in stacked}))
    stack = tuple(sorted(held.stack))
    self.uses[held.path][Use(kind, operation, clean(rows), clean(columns), stack)] = None

  def note_elementwise(self, held: Held, operation: str, kind: Kind = "elementwise") -> None:
    picked = tuple(a for a, over in held.stack if over in (ROW, GATHER))
    if picked and (kind == "elementwise" or held.is_gathered):  # an entry of a table, added or multiplied
      stack = tuple((a, over) for a, over in held.stack if a not in picked)
      self.note(dataclasses.replace(held, stack=stack), "lookup", operation, picked, leaf_axes(held.axes))
    else:
      self.note(held, kind, operation, (), leaf_axes(held.axes))

  def name_of(self, eqn: Any) -> str:
    return self.scans.setdefault(id(eqn), f"scan {len(self.scans)}")


Rule = Callable[[Walk, Any, Sequence[Value]], list[Value]]


def other(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
  """An operation without a rule: of constants, what has their shape shows them; of inputs, it is a use."""
  varies = any(value.varies for value in inputs)
  if not varies:
    shown = [(h, shape_of(v)) for v, value in zip(eqn.invars, inputs, strict=True) for h in value.held]
    for held, shape in shown:
      if all(shape != shape_of(out) for out in eqn.outvars):  # a statistic of a weight, or a scale of another
        walk.note(held, "constant", eqn.primitive.name, (), leaf_axes(held.axes))
    return [Value(tuple(h for h, shape in shown if shape == shape_of(out))) for out in eqn.outvars]
  for v, value in zip(eqn.invars, inputs, strict=True):
    spread = any(_spreads(shape_of(v), shape_of(out)) for out in eqn.outvars)
    for held in value.held:
      walk.note_elementwise(held, eqn.primitive.name, "elementwise" if spread else "other")
  return [Value(varies=True)] * len(eqn.outvars)


def _spreads(shape: tuple[int, ...], over: tuple[int, ...]) -> bool:
  """Whether an array of this shape meets one of another entry by entry, along axes of length 1 all entries."""
  return not shape or len(shape) == len(over) and all(n in (1, m) for n, m in zip(shape, over, strict=True))
