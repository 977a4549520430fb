"""Rules of operations on one view that give another: reshapes, slices of stacks, casts, and what leaves it as it is."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.leaves.evaluation.evaluator import Evaluator, Rule
from jaxft.leaves.evaluation.views import View


def view_rule(change: Callable[[View, Any], View | None]) -> Rule:
  """The rule of an operation on one view that gives another view."""

  def rule(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any] | None:
    if not isinstance(inputs[0], View) or len(inputs) != 1:
      return None
    out = change(inputs[0], eqn)
    return None if out is None else [out]

  return rule


def _slice(view: View, eqn: Any) -> View | None:
  starts, limits, strides = (eqn.params[name] for name in ("start_indices", "limit_indices", "strides"))
  for place, (start, limit, step) in enumerate(zip(starts, limits, strides or (1,) * len(starts), strict=True)):
    part = _sliced(view, place, int(start), int(limit), int(step))
    if part is None:
      return None
    view = part
  return view


def _sliced(view: View, place: int, start: int, limit: int, step: int = 1) -> View | None:
  if (start, limit, step) == (0, view.shape[place], 1):
    return view
  layers = view.along(place, lambda part: jax.lax.slice_in_dim(part, start, limit, step))
  return layers or view.cut(place, slice(start, limit, step))


def _split(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any] | None:
  ends = list(accumulate(map(int, eqn.params["sizes"])))
  parts = [_sliced(inputs[0], eqn.params["axis"], start, end) for start, end in zip([0, *ends], ends, strict=False)]
  return parts if all(part is not None for part in parts) else None


def _unstack(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any] | None:
  place = eqn.params["axis"]
  parts = [_sliced(inputs[0], place, i, i + 1) for i in range(inputs[0].shape[place])]
  return None if any(part is None for part in parts) else [part.drop([place]) for part in parts if part is not None]


def _reversed(view: View, eqn: Any) -> View | None:
  for place in eqn.params["dimensions"]:
    layers = view.along(place, lambda part: jnp.flip(part, 0))
    if layers is None:
      return None
    view = layers
  return view


_keep = view_rule(lambda view, eqn: view)

RULES: dict[str, Rule] = {
    "convert_element_type": view_rule(lambda view, eqn: view.cast(eqn.params["new_dtype"])),
    "transpose": view_rule(lambda view, eqn: view.pick(eqn.params["permutation"])),
    "squeeze": view_rule(lambda view, eqn: view.drop(eqn.params["dimensions"])),
    "reshape": view_rule(
        lambda view, eqn: None if eqn.params["dimensions"] else view.reshape(eqn.outvars[0].aval.shape)),
    "broadcast_in_dim": view_rule(
        lambda view, eqn: view.broadcast(eqn.params["shape"], eqn.params["broadcast_dimensions"])),
    "slice": view_rule(_slice),
    "split": _split,
    "unstack": _unstack,
    "rev": view_rule(_reversed),
    "stop_gradient": view_rule(lambda view, eqn: view.map(jax.lax.stop_gradient)),
    "optimization_barrier": lambda run, eqn, inputs: jax.lax.optimization_barrier(inputs),
    "copy": _keep,
    "name": _keep,
    "sharding_constraint": _keep,
    "pvary": _keep,  # contractions vary over the axes of the other operand by themselves
    "pcast": _keep,
}
