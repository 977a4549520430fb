"""Follows the leaves of a model and what flows from them through its jaxpr, and ties the units that meet.

Along an axis of activations, entries keep to the columns of the leaf that made them until a leaf contracts them, or an
operation tells them apart: a rotary position, a slice, an input.
"""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from jax.extend.core import Literal

from jaxft.tree.function.held import Factor, Held, regrouped
from jaxft.tree.function.traced import scan_parts, shape_of
from jaxft.tree.function.unit_primitives import ALONG, CALLS, ELEMENTWISE, REDUCTIONS, SHAPES
from jaxft.tree.function.unit_ties import Node, Ties, covers
from jaxft.tree.function.unit_value import Value, covering


@dataclasses.dataclass
class Walk:
  """Follows leaves and what flows from them through a jaxpr, and ties what meets.

  Attributes:
    ties: of all leaves.
    parted: what counts the parts, of one size, that something is cut in.
    uneven: what is cut in parts of unequal size.
  """

  ties: Ties
  parted: set[Node] = dataclasses.field(default_factory=set)
  uneven: dict[Node, None] = dataclasses.field(default_factory=dict)

  def __call__(self, closed: Any, args: Sequence[Value]) -> list[Value]:
    jaxpr = getattr(closed, "jaxpr", closed)
    known: dict[Any, Value] = dict(zip(jaxpr.invars, args, strict=True))
    read = lambda v: Value() if isinstance(v, Literal) else known.get(v, Value())
    for eqn in jaxpr.eqns:
      known.update(zip(eqn.outvars, self.equation(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]

  def equation(self, eqn: Any, inputs: list[Value]) -> list[Value]:
    name = eqn.primitive.name
    if name in CALLS:
      closed = next(eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params)
      return self(closed, inputs)
    if name in SHAPES:
      return [self.reshaped(SHAPES[name], eqn, inputs[0])]
    if name == "optimization_barrier":
      return inputs
    if name in ELEMENTWISE:
      operands = [(shape_of(v), value) for v, value in zip(eqn.invars, inputs, strict=True)]
      return [self.elementwise(shape_of(eqn.outvars[0]), operands)]
    rule = {"dot_general": self.product, "scan": self.scan, "while": self.loop, "cond": self.branches,
            "gather": self.gather, "slice": self.cut, "dynamic_slice": self.cut, "split": self.split,
            "unstack": self.unstack, "concatenate": self.joined,
            "conv_general_dilated": self.convolution}.get(name)
    if name in REDUCTIONS:
      gone = eqn.params["axes"]
      return [self.reshaped(lambda h, _: h.pick([i for i in range(len(h.axes)) if i not in gone]), eqn, inputs[0])]
    if name in ALONG:
      return self.along(eqn, inputs, ALONG[name](eqn))
    return (rule or self.unknown)(eqn, inputs)

  def fix_all(self, value: Value) -> None:
    for held in (*value.held, *value.flows):
      self.ties.fix([Node(held.path, f) for factors in held.axes for f in factors])

  def unknown(self, eqn: Any, inputs: list[Value]) -> list[Value]:
    for value in inputs:
      self.fix_all(value)
    return [Value(varies=any(value.varies for value in inputs))] * len(eqn.outvars)

  def reshaped(self, change: Callable[[Held, Any], Held], eqn: Any, value: Value) -> Value:
    shape, before = shape_of(eqn.outvars[0]), shape_of(eqn.invars[0])
    alike = value.alike or Held("", ((),) * len(before))
    given = (*value.held, *value.flows)
    changed = [change(h, eqn) for h in given]
    for old, held in zip(given, changed, strict=True):
      self.divided(old, held)
      for n, factors in zip(shape, held.axes, strict=True):
        nodes = [Node(held.path, f) for f in factors]
        if nodes and not covers(nodes, n):  # what makes up no whole axis cannot be told from its neighbours
          self.ties.fix(nodes)
    count = len(value.held)
    return Value(tuple(changed[:count]), tuple(changed[count:]), change(alike, eqn), value.varies)

  def divided(self, old: Held, new: Held) -> None:
    """Notes the factors that a reshape has divided."""
    after = {f for factors in new.axes for f in factors}
    for f in (f for factors in old.axes for f in factors if f.axis >= 0 and f not in after):
      inside = [g for g in after if g.axis == f.axis and f.stride <= g.stride < f.stride * f.size]
      node = Node(old.path, f)
      for g in sorted(inside, key=lambda g: -g.stride)[:-1]:
        if g.size < node.factor.size and not node.factor.size % g.size:
          _, node = self.ties.divide(node, g.size)

  def elementwise(self, shape: tuple[int, ...], operands: Sequence[tuple[tuple[int, ...], Value]]) -> Value:
    """Operands that meet entry by entry: along each axis they are tied, or told apart by one that is no leaf's."""
    varies = any(value.varies for _, value in operands)
    for axis, n in enumerate(shape):
      met = [value for given, value in operands if given and given[axis] == n]
      self.meet(n, [(value.nodes(axis), self.is_alike(value, axis, n)) for value in met])
    flows = [h for _, value in operands for h in (*value.held, *value.flows) if len(h.axes) == len(shape)]
    spread = [value for given, value in operands if given]
    alike = tuple((Factor(-1, 0, n),) if n > 1 and all(self.is_alike(v, i, n) for v in spread) else ()
                  for i, n in enumerate(shape))
    kept = covering(flows)
    return Value(() if varies else kept, kept if varies else (), Held("", alike), varies)

  def is_alike(self, value: Value, axis: int, n: int) -> bool:
    if value.alike is None or axis >= len(value.alike.axes):
      return False
    factors = value.alike.axes[axis]
    return all(f.axis == -1 for f in factors) and covers([Node("", f) for f in factors], n)

  def meet(self, n: int, met: Sequence[tuple[list[list[Node]], bool]]) -> None:
    """What meets along an axis: for each operand the descriptions of its leaves, and whether its entries are alike."""
    sides: list[list[Node]] = []
    for found, alike in met:
      for nodes in found:
        if not covers(nodes, n):
          self.ties.fix(nodes)
      side = [Node("", Factor(-1 if alike else -2, 0, n))]
      for nodes in found:
        if covers(nodes, n):
          side = self.ties.tie(side, nodes)
      sides.append(side)
    for i, side in enumerate(sides):
      for other in sides[:i]:
        self.ties.tie(side, other)
    for node in self.told_apart(sides) if n > 1 else ():
      self.ties.fix([node])

  def told_apart(self, sides: Sequence[list[Node]]) -> list[Node]:
    """The nodes that meet what is no leaf's."""
    finest = sides[0]
    for side in sides[1:]:
      finest = self.ties.tie(finest, side)
    out = []
    for side in sides:
      left = list(side)
      for node in finest:  # each side is divided as the finest is
        if not left:
          break
        if left[0].factor.size > node.factor.size:
          left[0:1] = self.ties.divide(left[0], node.factor.size)
        mine = left.pop(0)
        if mine.factor.axis == -2 and not node.alike:
          out.append(node)
    return out

  def product(self, eqn: Any, inputs: list[Value]) -> list[Value]:
    contracting, batch = eqn.params["dimension_numbers"]
    shapes = [shape_of(v) for v in eqn.invars]
    if not any(value.varies for value in inputs):
      return self.unknown(eqn, inputs)
    for pairs in (contracting, batch):
      for i, j in zip(*pairs, strict=True):
        n = shapes[0][i]
        self.meet(n, [(value.nodes(a), self.is_alike(value, a, n)) for value, a in zip(inputs, (i, j), strict=True)])
    free = [[i for i in range(len(shape)) if i not in (*contracting[side], *batch[side])]
            for side, shape in enumerate(shapes)]
    out: list[Held] = []
    for side, value in enumerate(inputs):
      blank = [()] * len(free[1 - side])
      for held in (*value.held, *value.flows):
        own = [held.axes[i] for i in free[side]]
        axes = [held.axes[i] for i in batch[side]] + (own + blank if side == 0 else blank + own)
        out.append(dataclasses.replace(held, axes=tuple(axes)))
    return [Value(flows=covering(out), varies=True)]

  def convolution(self, eqn: Any, inputs: list[Value]) -> list[Value]:
    numbers = eqn.params["dimension_numbers"]
    out, into, *_ = numbers.rhs_spec
    shape, groups = shape_of(eqn.invars[1]), eqn.params["feature_group_count"]
    depthwise = 1 < groups == shape[out] and shape[into] == 1  # each channel has a kernel of its own
    if not (depthwise or groups == 1) or not inputs[0].varies or not inputs[1].held:
      return self.unknown(eqn, inputs)
    channel, met = numbers.lhs_spec[1], out if depthwise else into
    n = shape[met]
    self.meet(n, [(inputs[0].nodes(channel), self.is_alike(inputs[0], channel, n)), (inputs[1].nodes(met), False)])
    batch = numbers.lhs_spec[0]
    for value, kept in ((inputs[0], (batch, channel)), (inputs[1], (out, into))):
      for held in (*value.held, *value.flows):  # places in space, or in a window
        self.ties.fix([Node(held.path, f) for axis, factors in enumerate(held.axes) if axis not in kept
                       for f in factors])
    flows = []
    for held in inputs[1].held:
      axes: list[tuple[Factor, ...]] = [()] * len(shape_of(eqn.outvars[0]))
      axes[numbers.out_spec[1]] = held.axes[out]
      flows.append(dataclasses.replace(held, axes=tuple(axes)))
    return [Value(flows=tuple(flows), varies=True)]

  def gather(self, eqn: Any, inputs: list[Value]) -> list[Value]:
    numbers, shape = eqn.params["dimension_numbers"], shape_of(eqn.invars[0])
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [a for a in range(len(shape)) if a not in gone]
    whole = [a for a in kept if eqn.params["slice_sizes"][a] == shape[a]]
    flows = []
    for held in (*inputs[0].held, *inputs[0].flows):
      axes: list[tuple[Factor, ...]] = [()] * len(shape_of(eqn.outvars[0]))
      for a, factors in enumerate(held.axes):
        if a in whole:
          axes[numbers.offset_dims[kept.index(a)]] = factors
        else:
          self.ties.fix(nodes := [Node(held.path, f) for f in factors])
          self.parted.update(nodes)
      flows.append(dataclasses.replace(held, axes=tuple(axes)))
    return [Value(flows=tuple(flows), varies=True)]

  def cut(self, eqn: Any, inputs: list[Value]) -> list[Value]:
    before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    starts, strides = eqn.params.get("start_indices"), eqn.params.get("strides")
    value = inputs[0]
    for axis, (n, m) in enumerate(zip(before, after, strict=True)):
      start = None if starts is None or strides is not None and strides[axis] != 1 else starts[axis]
      value = self.part(value, axis, n, m, start)
    return [value]

  def split(self, eqn: Any, inputs: list[Value]) -> list[Value]:
    axis, sizes = eqn.params["axis"], [int(n) for n in eqn.params["sizes"]]
    starts = [0, *accumulate(sizes)]
    n = starts[-1]
    return [self.part(inputs[0], axis, n, m, start) for m, start in zip(sizes, starts, strict=False)]

  def unstack(self, eqn: Any, inputs: list[Value]) -> list[Value]:
    axis, n = eqn.params["axis"], len(eqn.outvars)
    squeeze = lambda held: held.pick([i for i in range(len(held.axes)) if i != axis])
    return [self.part(inputs[0], axis, n, 1, start).changed(squeeze) for start in range(n)]

  def part(self, value: Value, axis: int, n: int, m: int, start: int | None) -> Value:
    """`m` of the `n` entries along an axis: one of several parts of that size, which have their units in one order.

    Otherwise, or where it is not known at which entry it starts, all of them are told apart.
    """
    if m == n:
      return value
    even = start is not None and n % m == 0 and start % m == 0

    def inner(held: Held) -> Held:
      factors = held.axes[axis]
      nodes = [Node(held.path, f) for f in factors]
      axes = lambda *here: dataclasses.replace(held, axes=(*held.axes[:axis], *here, *held.axes[axis + 1:]))
      if not covers(nodes, n):
        self.ties.fix(nodes)
        return axes(())
      outer, inside = regrouped(factors, (n // m, m)) if even else (factors, ())
      if covers([Node("", f) for f in inside], m):
        self.divided(held, axes(outer, inside))
      else:
        outer, inside = factors, ()
        self.uneven.update((node, None) for node in nodes if not node.alike)
      self.ties.fix(counts := [Node(held.path, f) for f in outer])
      self.parted.update(counts)
      return axes(inside)

    return value.changed(inner)

  def along(self, eqn: Any, inputs: list[Value], places: Sequence[int]) -> list[Value]:
    """An operation that tells apart what lies along some axes, and leaves the others."""
    for held in (*inputs[0].held, *inputs[0].flows):
      self.ties.fix([Node(held.path, f) for i in places for f in held.axes[i]])
    clear = lambda held: dataclasses.replace(
        held, axes=tuple(() if i in places else factors for i, factors in enumerate(held.axes)))
    return [inputs[0].changed(clear)] * len(eqn.outvars)

  def joined(self, eqn: Any, inputs: list[Value]) -> list[Value]:
    place = eqn.params["dimension"]
    one = lambda v: tuple(1 if i == place else n for i, n in enumerate(shape_of(v)))
    return [self.elementwise(one(eqn.outvars[0]), [
        (one(v), self.along(eqn, [value], (place,))[0]) for v, value in zip(eqn.invars, inputs, strict=True)])]

  def scan(self, eqn: Any, inputs: list[Value]) -> list[Value]:
    first, carries, scanned = scan_parts(eqn)
    closed = eqn.params["jaxpr"]
    variables = getattr(closed, "jaxpr", closed).invars[first: first + carries]
    inside = []
    for value, is_scanned in zip(inputs, scanned, strict=True):
      if is_scanned:
        for flow in value.flows:
          self.ties.fix([Node(flow.path, f) for f in flow.axes[0]])
        part = lambda h: h.within(0, "scan").pick(range(1, len(h.axes)))
        value = value.changed(part)
      inside.append(value)
    outs = self.repeated(lambda carry: self(closed, [*inside[:first], *carry, *inside[first + carries:]]),
                         inside[first: first + carries], variables)
    back = lambda h: dataclasses.replace(h, axes=((), *h.axes))
    stacked = lambda v: Value(flows=tuple(back(h) for h in (*v.held, *v.flows)), varies=True)
    return [v if i < carries else stacked(v) for i, v in enumerate(outs)]

  def loop(self, eqn: Any, inputs: list[Value]) -> list[Value]:
    conds = eqn.params["cond_nconsts"]
    first = conds + eqn.params["body_nconsts"]
    body = eqn.params["body_jaxpr"]
    variables = getattr(body, "jaxpr", body).invars[first - conds:]
    self(eqn.params["cond_jaxpr"], [*inputs[:conds], *inputs[first:]])
    return self.repeated(lambda carry: self(body, [*inputs[conds:first], *carry]), inputs[first:], variables)

  def repeated(self, turn: Callable[[list[Value]], list[Value]], carry: list[Value], variables: Any) -> list[Value]:
    """The values after a loop: what goes in at a turn is what came out at the last one."""
    outs = turn([value if value.held else value._replace(varies=True) for value in carry])
    merged = [self.elementwise(shape_of(v), [(shape_of(v), before), (shape_of(v), after)])._replace(alike=None)
              if not before.held else before
              for v, before, after in zip(variables, carry, outs, strict=False)]
    return turn([m if m.held else m._replace(varies=True) for m in merged])

  def branches(self, eqn: Any, inputs: list[Value]) -> list[Value]:
    outs = [self(closed, inputs[1:]) for closed in eqn.params["branches"]]
    return [self.elementwise(shape_of(v), [(shape_of(v), value) for value in values])
            for v, *values in zip(eqn.outvars, *outs, strict=True)]
