"""Rules of operations on one view that give another: reshapes, slices of stacks, casts, and what leaves it as it is."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

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
  out: View | None = view
  for place, (start, limit, stride) in enumerate(zip(starts, limits, strides or (1,) * len(starts), strict=True)):
    if out is not None and (start, limit, stride) != (0, view.shape[place], 1):
      take = lambda part, start=start, limit=limit, stride=stride: jax.lax.slice_in_dim(part, start, limit, stride)
      out = out.along(place, take)
  return out


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
    "stop_gradient": view_rule(lambda view, eqn: view.map(jax.lax.stop_gradient)),
    "optimization_barrier": lambda run, eqn, inputs: jax.lax.optimization_barrier(inputs),
    "copy": _keep,
    "name": _keep,
    "sharding_constraint": _keep,
    "pvary": _keep,  # contractions vary over the axes of the other operand by themselves
    "pcast": _keep,
}
