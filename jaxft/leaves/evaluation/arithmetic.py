"""Rules of what makes another leaf of a view: scaling it, and setting several side by side."""

import dataclasses
from collections.abc import Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.leaves.concatenated import Concatenated
from jaxft.leaves.evaluation.evaluator import Evaluator, Rule
from jaxft.leaves.evaluation.factors import Axis, Factor, length, rearranged, whole, whole_axes
from jaxft.leaves.evaluation.views import View


def _mul(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any] | None:
  a, b = inputs
  if isinstance(a, View) and isinstance(b, View):
    return None
  view, s = (a, b) if isinstance(a, View) else (b, a)
  return _scaled(view, jnp.asarray(s))


def _div(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any] | None:
  view, s = inputs
  if not isinstance(view, View) or isinstance(s, View):
    return None
  return _scaled(view, 1 / jnp.asarray(s, jnp.promote_types(view.dtype, jnp.float32)))


def _neg(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any] | None:
  return _scaled(inputs[0], jnp.asarray(-1, inputs[0].dtype))


def _scaled(view: View, s: Any) -> list[Any] | None:
  out = view.scale(s)
  return None if out is None else [out]


def _concatenate(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any] | None:
  place = eqn.params["dimension"]
  out = _stacks_joined(inputs, place) or _columns_joined(inputs, place)
  return None if out is None else [out]


def _stack(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any] | None:
  place = eqn.params["axis"]
  unit = lambda axes: (*axes[:place], (), *axes[place:])
  layers = [dataclasses.replace(x, axes=unit(x.axes)) if isinstance(x, View) else x for x in inputs]
  out = _stacks_joined(layers, place)
  return None if out is None else [out]


def _stacks_joined(inputs: Sequence[Any], place: int) -> View | None:
  """Stacks after one another, part by part; None unless all are leaves of one kind and shape, or single such layers."""
  fronts = [x.front(place) if isinstance(x, View) else None for x in inputs]
  views = [x for x in fronts if x is not None]
  if len(views) < len(inputs):
    return None
  form = lambda x: (jax.tree.structure(x.leaf), [(part.shape[1:], part.dtype) for part in jax.tree.leaves(x.leaf)])
  beside = lambda x: [axis for i, axis in enumerate(x.axes) if i != place]
  if any(form(x) != form(views[0]) or beside(x) != beside(views[0]) for x in views):
    return None
  leaf = jax.tree.map(lambda *parts: jnp.concatenate(parts), *(x.leaf for x in views))
  axes = list(views[0].axes)
  axes[place] = whole(-len(leaf.shape), leaf.shape[0])
  return View(leaf, " + ".join(x.path for x in views), tuple(axes), views[0].dtype, all(x.is_read for x in views))


def _columns_joined(inputs: Sequence[Any], place: int) -> View | None:
  """Columns or rows beside one another, arrays among them; None unless all are laid out alike."""
  views = [x for x in inputs if isinstance(x, View)]
  first = views[0]
  heads = [x.axes[place][0] for x in views if x.axes[place]]
  if len(heads) < len(views) or heads[0].is_stack:
    return None
  kind, inner = heads[0].axis, length(first.axes[place][1:])
  outermost = all(f.axis == kind and f.size * f.stride == x.leaf.shape[kind] for f, x in zip(heads, views, strict=True))
  layout = lambda x: ([a if i != place else a[1:] for i, a in enumerate(x.axes)], x.leaf.shape[:-2])
  if not outermost or any(layout(x) != layout(first) for x in views) or any(f.stride != heads[0].stride for f in heads):
    return None

  def at(size: int) -> tuple[Axis, ...]:
    axis = () if size == inner else (Factor(kind, size // inner, heads[0].stride),)
    return tuple(a if i != place else (*axis, *a[1:]) for i, a in enumerate(first.axes))

  def leaf_of(x: Any) -> Any:
    if isinstance(x, View):
      return x.in_own_dtype()
    shape = list(first.leaf.shape)
    shape[kind] = x.shape[place] // inner * heads[0].stride
    return rearranged(x, at(x.shape[place]), whole_axes(shape))

  if any(x.shape[place] % inner for x in inputs):
    return None
  leaf = reduce(lambda a, b: Concatenated(a, b, axis=kind), [leaf_of(x) for x in inputs])
  axes = at(sum(x.shape[place] for x in inputs))
  return View(leaf, " + ".join(x.path for x in views), axes, first.dtype, all(x.is_read for x in views))


RULES: dict[str, Rule] = {"mul": _mul, "div": _div, "neg": _neg, "concatenate": _concatenate, "stack": _stack}
