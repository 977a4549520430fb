"""How a function uses each leaf of its params, read from its jaxpr: what is contracted, looked up, scanned over.

A leaf is followed from the params to its uses through whatever does not depend on the inputs: casts, transposes,
reshapes, slices, scales, and the bodies of jit, scan, remat, cond, while, custom derivatives and shard_map.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from jax.extend.core import Literal as Constant

from jaxft.tree.function.held import (
  BATCH,
  GATHER,
  INDEX,
  ROW,
  Factor,
  Held,
  broadcast,
  expanded,
  leaf_axes,
  reshaped,
  sliced,
  squeezed,
)
from jaxft.tree.function.traced import scan_parts, shape_of

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


def leaf_uses(jaxpr: Any, leaves: Sequence[tuple[str, tuple[int, ...]] | None]) -> dict[str, tuple[Use, ...]]:
  """The uses of each leaf.

  >>> import jax, jax.numpy as jnp
  >>> jaxpr = jax.make_jaxpr(lambda w, x: x @ w.T)(jnp.ones((3, 2)), jnp.ones((5, 2)))
  >>> leaf_uses(jaxpr, [("w", (3, 2)), None])["w"]
  (Use(kind='product', operation='dot_general', rows=(1,), columns=(0,), stack=()),)

  Args:
    jaxpr: a closed jaxpr.
    leaves: for each of its arguments the path and the shape of a leaf, or None for an input.

  Returns:
    From each path to its uses in order, without repetitions.
  """
  walk = Walk({leaf[0]: {} for leaf in leaves if leaf is not None}, {})
  whole = lambda path, shape: Held(path, tuple((Factor(i, 1, n),) for i, n in enumerate(shape)))
  for value in walk(jaxpr, [Value(varies=True) if leaf is None else Value((whole(*leaf),)) for leaf in leaves]):
    for held in value.held if value.varies else ():
      walk.note_elementwise(held, "output")
  return {path: tuple(uses) for path, uses in walk.uses.items()}


@dataclasses.dataclass(frozen=True)
class Walk:
  """Follows leaves through a jaxpr and keeps their uses; a scan has one name however often it is met."""

  uses: dict[str, dict[Use, None]]
  scans: dict[int, str]

  def __call__(self, closed: Any, args: Sequence[Value]) -> list[Value]:
    jaxpr = getattr(closed, "jaxpr", closed)
    known: dict[Any, Value] = dict(zip(jaxpr.invars, args, strict=True))
    read = lambda v: Value() if isinstance(v, Constant) else known.get(v, Value())
    for eqn in jaxpr.eqns:
      inputs = [read(v) for v in eqn.invars]
      if any(value.held or value.varies for value in inputs):
        known.update(zip(eqn.outvars, RULES.get(eqn.primitive.name, _other)(self, eqn, inputs), strict=True))
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


# Rules: (walk, equation, what is known of its inputs) -> what is known of its outputs.


def _other(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
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


def _shown(change: Callable[[Held, Any], Held]) -> Callable[..., list[Value]]:
  """The rule of an operation on one array that shows the same leaves in another shape."""

  def rule(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    held = tuple(change(h, eqn) for h in inputs[0].held)
    return [Value(held, any(value.varies for value in inputs))] * len(eqn.outvars)

  return rule


def _dynamic_slice(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
  over = ROW if any(value.varies for value in inputs[1:]) else INDEX
  return [Value(tuple(sliced(held, eqn, over) for held in inputs[0].held), any(value.varies for value in inputs))]


def _concatenate(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
  if any(value.varies for value in inputs):  # tokens of a model's own beside those of an input
    for value in inputs:
      for held in value.held:
        walk.note_elementwise(held, "concatenate")
    return [Value(varies=True)]
  return [Value(tuple(h for value in inputs for h in value.held))]


def _gather(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
  if not inputs[0].held:
    return _other(walk, eqn, inputs)
  numbers, shape, sizes = eqn.params["dimension_numbers"], shape_of(eqn.invars[0]), eqn.params["slice_sizes"]
  found = [a for a in numbers.start_index_map if sizes[a] == 1 < shape[a]]
  single = math.prod(shape_of(eqn.invars[1])[:-1]) == 1
  kept = [a for a in range(len(shape)) if a not in (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)]
  shown = []
  for held in inputs[0].held:
    for a in numbers.operand_batching_dims:
      held = held.within(a, BATCH)
    rows = leaf_axes([held.axes[a] for a in found])
    columns = leaf_axes([held.axes[a] for a in range(len(shape)) if a not in found])
    if single or len(columns) > 1:  # of several axes there may be a matrix for each example: its use says it
      for a in found:
        held = held.within(a, GATHER if not single else ROW if inputs[1].varies else INDEX)
      axes: list[tuple[Factor, ...]] = [()] * len(shape_of(eqn.outvars[0]))
      for place, a in zip(numbers.offset_dims, kept, strict=True):
        axes[place] = held.axes[a]
      shown.append(dataclasses.replace(held, axes=tuple(axes)))
    else:
      walk.note(held, "lookup", "gather", rows, columns)
  return [Value(tuple(shown), varies=not single or any(value.varies for value in inputs[1:]) and not shown)]


def _dot_general(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
  contracting, batch = eqn.params["dimension_numbers"]
  with_leaf = all(value.held and not value.varies for value in inputs)
  for side, value in enumerate(inputs):
    for held in value.held:
      contracted = leaf_axes([held.axes[i] for i in contracting[side]])
      free = [factors for i, factors in enumerate(held.axes) if i not in (*contracting[side], *batch[side])]
      in_use = contracted and leaf_axes(free)
      if held.is_gathered and not (batch[side] and in_use) or any(o == ROW for _, o in held.stack) and not in_use:
        walk.note_elementwise(held, "dot_general")
        continue
      if len(batch[side]) == len(held.axes):  # entry by entry, as `einsum("td,d->td")` is
        walk.note_elementwise(held, "dot_general", "constant" if with_leaf else "elementwise")
        continue
      for i in batch[side]:
        held = held.within(i, BATCH)
      _note_product(walk, held, "dot_general", contracted, leaf_axes(free), constant=with_leaf)
  return [Value(varies=True)]


def _note_product(
    walk: Walk, held: Held, operation: str, rows: Sequence[int], columns: Sequence[int], *, constant: bool = False
) -> None:
  parted = set(rows) & set(columns)  # an axis of which a part is contracted and a part comes out
  kind: Kind = "other" if parted else "constant" if constant else "product"
  walk.note(held, kind, operation, rows, [axis for axis in columns if axis not in parted])


def _ragged_dot(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
  numbers = eqn.params["ragged_dot_dimension_numbers"]
  (_, contracting), (_, batch) = numbers.dot_dimension_numbers
  if inputs[0].held or any(value.held for value in inputs[2:]):
    return _other(walk, eqn, inputs)
  for held in inputs[1].held:
    stacked = [*numbers.rhs_group_dimensions, *batch]
    contracted = leaf_axes([held.axes[i] for i in contracting])
    for i in stacked:
      held = held.within(i, BATCH)
    free = [f for i, f in enumerate(held.axes) if i not in (*contracting, *stacked)]
    _note_product(walk, held, "ragged_dot_general", contracted, leaf_axes(free))
  return [Value(varies=True)]


def _conv(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
  out, into, *window = eqn.params["dimension_numbers"].rhs_spec
  shape = shape_of(eqn.invars[1])
  if inputs[0].held or not any(value.varies for value in inputs):
    return _other(walk, eqn, inputs)
  for held in inputs[1].held:
    groups = eqn.params["feature_group_count"]
    kind: Kind = "depthwise" if groups > 1 and shape[into] == 1 else "convolution" if groups == 1 else "other"
    rows = leaf_axes([held.axes[i] for i in (*window, into)])
    walk.note(held, kind, "conv_general_dilated", rows, leaf_axes([held.axes[out]]))
  return [Value(varies=True)]


def _called(eqn: Any) -> Any:
  """The jaxpr that an equation calls once with its inputs; None where it is no such call."""
  names = ("jaxpr", "call_jaxpr", "fun_jaxpr") if RULES.get(eqn.primitive.name) is _call else ()
  closed = next((eqn.params[name] for name in names if name in eqn.params), None)
  return None if closed is None or len(getattr(closed, "jaxpr", closed).invars) != len(eqn.invars) else closed


def _call(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
  closed = _called(eqn)
  return _other(walk, eqn, inputs) if closed is None else walk(closed, inputs)


def _scan(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
  first_carry, carries, scanned = scan_parts(eqn)
  name, inside = walk.name_of(eqn), []
  for i, value in enumerate(inputs):
    if scanned[i]:
      value = value._replace(held=tuple(
          h.within(0, name).pick(range(1, len(h.axes))) for h in value.held))
    inside.append(value)
  last_carry = first_carry + carries
  inside[first_carry: last_carry] = _carried(
      eqn.params["jaxpr"], inside[:first_carry], inside[first_carry: last_carry], inside[last_carry:])
  outs = walk(eqn.params["jaxpr"], inside)
  back = lambda h: dataclasses.replace(  # nnx.scan hands weights through as what is stacked again
      h, axes=(tuple(Factor(a, 1, eqn.params["length"]) for a, over in h.stack if over == name), *h.axes),
      stack=tuple(s for s in h.stack if s[1] != name))
  return [v if i < carries else v._replace(held=tuple(map(back, v.held))) for i, v in enumerate(outs)]


def _while(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
  first_body = eqn.params["cond_nconsts"]
  first_carry = first_body + eqn.params["body_nconsts"]
  carry = _carried(eqn.params["body_jaxpr"], inputs[first_body:first_carry], inputs[first_carry:])
  walk(eqn.params["cond_jaxpr"], [*inputs[:first_body], *carry])
  return walk(eqn.params["body_jaxpr"], [*inputs[first_body:first_carry], *carry])


def _carried(
    closed: Any, consts: Sequence[Value], carry: Sequence[Value], scanned: Sequence[Value] = ()
) -> list[Value]:
  """What a loop carries, as its body finds it: a count of turns is all that does not vary."""
  moved = lambda values: [value.varies or bool(value.held) for value in values]
  flags, before = moved(carry), None
  while flags != before:
    before = flags
    after = _moved(closed, [*moved(consts), *flags, *moved(scanned)])
    flags = [a or b for a, b in zip(flags, after, strict=False)]
  return [v if v.held else Value(varies=flag) for v, flag in zip(carry, flags, strict=True)]


def _moved(closed: Any, given: Sequence[bool]) -> list[bool]:
  """Which outputs of a jaxpr depend on any of the given arguments."""
  jaxpr = getattr(closed, "jaxpr", closed)
  known = dict(zip(jaxpr.invars, given, strict=True))
  read = lambda v: not isinstance(v, Constant) and known.get(v, False)
  for eqn in jaxpr.eqns:
    inputs = [read(v) for v in eqn.invars]
    inner = _called(eqn)
    known.update(zip(eqn.outvars, _moved(inner, inputs) if inner else [any(inputs)] * len(eqn.outvars), strict=True))
  return [read(v) for v in jaxpr.outvars]


def _cond(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
  branches = [walk(closed, inputs[1:]) for closed in eqn.params["branches"]]
  merge = lambda values: Value(
      tuple(dict.fromkeys(h for v in values for h in v.held)), inputs[0].varies or any(v.varies for v in values))
  return [merge(values) for values in zip(*branches, strict=True)]


def _each(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
  return list(inputs)


RULES: dict[str, Callable[[Walk, Any, Sequence[Value]], list[Value]]] = {
    "dot_general": _dot_general,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _conv,
    "gather": _gather,
    "transpose": _shown(lambda held, eqn: held.pick(eqn.params["permutation"])),
    "reshape": _shown(reshaped),
    "squeeze": _shown(squeezed),
    "expand_dims": _shown(expanded),
    "broadcast_in_dim": _shown(broadcast),
    "slice": _shown(sliced),
    "dynamic_slice": _dynamic_slice,
    "split": _shown(lambda held, eqn: held),
    "pad": _shown(lambda held, eqn: held),
    "rev": _shown(lambda held, eqn: held),
    "concatenate": _concatenate,
    "optimization_barrier": _each,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
} | dict.fromkeys(
    ("convert_element_type", "copy", "copy_p", "stop_gradient", "sharding_constraint", "name", "reduce_precision",
     "bitcast_convert_type", "pvary", "mesh_cast", "reshard"),
    _shown(lambda held, eqn: held),
) | dict.fromkeys(
    ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2", "custom_jvp_call", "custom_vjp_call",
     "custom_vjp_call_jaxpr", "custom_lin", "shard_map", "run_state", "composite"), _call,
)
