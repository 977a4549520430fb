"""Rules of lookups: rows and columns of a table, layers of a stack."""

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxft.leaves.evaluation.evaluator import Evaluator, Rule
from jaxft.leaves.evaluation.factors import Axis, flat, in_order, own, rearranged, reshaped
from jaxft.leaves.evaluation.views import View
from jaxft.leaves.products import lookup


def _gather(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any] | None:
  view, starts = inputs
  numbers, sizes, out = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], eqn.outvars[0].aval
  if not isinstance(view, View):
    return None
  fills = eqn.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP
  batch_axes = dict(zip(numbers.start_indices_batching_dims, numbers.operand_batching_dims, strict=True))
  starts_axes = [view.axes[batch_axes[i]] if i in batch_axes else own(i, n) for i, n in enumerate(starts.shape[:-1])]

  at, inside = {}, jnp.ones(starts.shape[:-1], bool)
  for j, place in enumerate(numbers.start_index_map):
    last = view.shape[place] - sizes[place]
    at[place] = jnp.clip(starts[..., j], 0, last)
    inside &= at[place] == starts[..., j]
  at = {place: ids for place, ids in at.items() if sizes[place] != view.shape[place]}
  blocks = {place: own(starts.ndim + place, sizes[place]) for place in at if sizes[place] != 1}

  def laid_out(axes: Sequence[Axis], beside: Sequence[Axis]) -> tuple[Axis, ...]:
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = iter([blocks.get(i, ()) if i in at else axis for i, axis in enumerate(axes) if i not in gone])
    ids = iter(beside)
    return tuple(next(kept) if i in numbers.offset_dims else next(ids) for i in range(len(out.shape)))

  fill = jnp.nan if eqn.params["fill_value"] is None else eqn.params["fill_value"]
  alone = len(at) == 1 and not batch_axes and not blocks
  if alone and not (fills and fill == fill):  # what stands outside is NaN, which a leaf can hold
    ((place, ids),) = at.items()
    layers = view.along(place, lambda part: _take(part, ids.reshape(-1), inside.reshape(-1) if fills else None))
    if layers is not None:
      return [_indexed(layers, place, ids, laid_out)]

  rows = dict(at)
  for block in blocks:  # consecutive rows: an index for each
    rows = {
        place: ids[..., None] + (jnp.arange(sizes[place]) if place == block else jnp.zeros(sizes[block], ids.dtype))
        for place, ids in rows.items()
    }
  found = _read(view, rows, [*starts_axes, *blocks.values()], laid_out(view.axes, starts_axes))
  if found is None and alone:
    ((place, ids),) = at.items()
    columns = view.cut(place, ids.reshape(-1))
    found = columns and _indexed(columns, place, ids, laid_out).materialize()
  if found is None:
    return None
  if fills:
    found = jnp.where(jnp.expand_dims(inside, tuple(numbers.offset_dims)), found, fill)
  return [found.astype(out.dtype)]


def _indexed(view: View, place: int, ids: Array, laid_out: Callable[..., tuple[Axis, ...]]) -> View:
  """A view of which the axis at `place` was indexed by ids, of any shape, which were flattened for it."""
  beside = reshaped([view.axes[place]], ids.shape)
  assert beside is not None, "one axis takes any shape of its size"
  return dataclasses.replace(view, axes=laid_out(view.axes, beside))


def _take(part: Any, ids: Array, inside: Array | None) -> Array:
  """Layers of a part of a leaf; NaN where they lie outside, in what can hold it."""
  taken = jnp.take(part, ids, axis=0, mode="clip")
  if inside is None or not jnp.issubdtype(part.dtype, jnp.floating):
    return taken
  return jnp.where(inside.reshape(-1, *[1] * (taken.ndim - 1)), taken, jnp.nan)


def _dynamic_slice(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any] | None:
  view, *starts = inputs
  sizes = eqn.params["slice_sizes"]
  if not isinstance(view, View):
    return None
  cut = [place for place, size in enumerate(sizes) if size != view.shape[place]]
  rows = []
  for place in cut:
    start, size = starts[place], sizes[place]
    layers = view.along(place, lambda part, start=start, size=size: jax.lax.dynamic_slice_in_dim(part, start, size))
    if layers is None and all(f.axis == -1 for f in view.axes[place]):
      layers = view.cut(place, jnp.clip(start, 0, view.shape[place] - size) + jnp.arange(size))
    if layers is None:
      rows.append(place)
    else:
      view = layers
  if not rows:
    return [view]
  labels = [own(i, sizes[place]) for i, place in enumerate(rows)]
  shape = [sizes[place] for place in rows]
  indices = lambda i, place: jnp.clip(starts[place], 0, view.shape[place] - shape[i]) + jnp.arange(shape[i])
  at = {
      place: jnp.broadcast_to(jnp.expand_dims(indices(i, place), [j for j in range(len(rows)) if j != i]), shape)
      for i, place in enumerate(rows)
  }
  wanted = [labels[rows.index(i)] if i in rows else axis for i, axis in enumerate(view.axes)]
  found = _read(view, at, labels, wanted)
  return None if found is None else [found.astype(eqn.outvars[0].aval.dtype)]


def _read(
    view: View, at: Mapping[int, Array], axes: Sequence[Axis], wanted: Sequence[Axis]
) -> Array | None:
  """What stands at these indices of some axes of a view, and at all of the others; None unless they are of rows.

  Args:
    view: of a table `[rows, columns]`, or of a stack of them.
    at: for axes of the view that hold rows, indices, all of one shape.
    axes: the axes of the indices. One that is a stack's has its own indices for each table of that stack.
    wanted: the axes of the result: those of the indices, and of the view those that are not indexed.
  """
  indexed = [f for place in at for f in view.axes[place]]
  if not at or any(f.axis != -2 for f in indexed):
    return None
  ids = reduce(operator.add, [_rows(ids, view.axes[place]) for place, ids in at.items()])
  beside = [f for f in flat(view.axes) if f.axis == -2 and f not in indexed]
  for f in beside:
    ids = ids[..., None] + f.stride * jnp.arange(f.size)

  shared = [f for f in flat(axes) if f.is_stack]
  outer = [f for f in view.stack if f not in shared]
  leaf = view.restack([(f,) for f in (*shared, *outer)]).leaf
  table = lookup
  for _ in outer:
    table = jax.vmap(table, in_axes=(0, None))
  for _ in shared:
    table = jax.vmap(table)
  each, rest = [(f,) for f in shared], [axis for axis in axes if not any(f.is_stack for f in axis)]
  rest += [(f,) for f in beside]
  found = table(leaf, rearranged(ids, [*axes, *((f,) for f in beside)], [*each, *rest]))
  columns = in_order([f for f in flat(view.axes) if f.axis == -1])
  return rearranged(found, [*each, *((f,) for f in outer), *rest, columns], wanted)


def _rows(ids: Array, axis: Axis) -> Array:
  """The rows that the indices along an axis of row factors stand for."""
  major, *minor = axis
  rows = []
  for f in reversed(minor):
    rows, ids = [*rows, ids % f.size * f.stride], ids // f.size
  return reduce(operator.add, rows, ids * major.stride)


RULES: dict[str, Rule] = {"gather": _gather, "dynamic_slice": _dynamic_slice}
