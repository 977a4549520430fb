"""How a function uses each leaf of its params, read from its jaxpr: what is contracted, looked up, scanned over.

A leaf is followed from the params to its uses through whatever does not depend on the inputs: casts, transposes,
reshapes, slices, scales, and the bodies of jit, scan, remat, cond, while, custom derivatives and shard_map.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from jaxft.tree.function import control_flow
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
from jaxft.tree.function.traced import shape_of
from jaxft.tree.function.use_walk import Kind, Rule, Use, Value, Walk, other


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
  walk = Walk({leaf[0]: {} for leaf in leaves if leaf is not None}, {}, RULES)
  whole = lambda path, shape: Held(path, tuple((Factor(i, 1, n),) for i, n in enumerate(shape)))
  for value in walk(jaxpr, [Value(varies=True) if leaf is None else Value((whole(*leaf),)) for leaf in leaves]):
    for held in value.held if value.varies else ():
      walk.note_elementwise(held, "output")
  return {path: tuple(uses) for path, uses in walk.uses.items()}


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
    return other(walk, eqn, inputs)
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
    return other(walk, eqn, inputs)
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
    return other(walk, eqn, inputs)
  for held in inputs[1].held:
    groups = eqn.params["feature_group_count"]
    kind: Kind = "depthwise" if groups > 1 and shape[into] == 1 else "convolution" if groups == 1 else "other"
    rows = leaf_axes([held.axes[i] for i in (*window, into)])
    walk.note(held, kind, "conv_general_dilated", rows, leaf_axes([held.axes[out]]))
  return [Value(varies=True)]


def _each(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
  return list(inputs)


RULES: dict[str, Rule] = control_flow.RULES | {
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
} | dict.fromkeys(
    ("convert_element_type", "copy", "copy_p", "stop_gradient", "sharding_constraint", "name", "reduce_precision",
     "bitcast_convert_type", "pvary", "mesh_cast", "reshard"),
    _shown(lambda held, eqn: held),
)
