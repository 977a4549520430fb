"""Evaluating jaxprs on structured leaves: the loop, which asks the rule of each primitive, and what it does without."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.core import eval_jaxpr
from jax.extend.core import Literal

from jaxft.leaves.evaluation.views import View

# (evaluator, equation, inputs of which at least one is a view) -> outputs, or None where there is no cheap form.
Rule = Callable[["Evaluator", Any, list[Any]], Sequence[Any] | None]


class MaterializedWarning(UserWarning):
  """An operation that has no cheap form read a structured leaf, so that its full array was formed."""


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Evaluates jaxprs on arrays and views.

  Attributes:
    rules: of the primitives that have a cheap form, by name.
    warned: the (operation, path) pairs that were warned of.
  """

  rules: Mapping[str, Rule]
  warned: set[tuple[str, str]]

  def __call__(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """The outputs of a jaxpr, arrays or views."""
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    read = lambda v: v.val if isinstance(v, Literal) else values[v]
    last_use = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if not isinstance(v, Literal)}
    kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    for i, eqn in enumerate(jaxpr.eqns):
      with eqn.ctx.manager:
        outs = self.evaluate(eqn, [read(v) for v in eqn.invars])
      values.update(zip(eqn.outvars, outs, strict=True))
      for v in {v for v in eqn.invars if not isinstance(v, Literal)} - kept:
        if last_use[v] == i:
          del values[v]
    return [read(v) for v in jaxpr.outvars]

  def evaluate(self, eqn: Any, inputs: list[Any]) -> Sequence[Any]:
    """One equation: its rule where an input is a view and there is one, else the equation itself on arrays."""
    if any(isinstance(x, View) for x in inputs):
      rule = self.rules.get(eqn.primitive.name)
      outs = rule(self, eqn, inputs) if rule else None
      if outs is not None:
        return outs
    return bind(eqn, self.materialize(eqn.primitive.name, inputs))

  def materialize(self, operation: str, values: Sequence[Any]) -> list[Any]:
    """The values with views formed, warning once for each operation and path."""
    for x in values:
      if isinstance(x, View) and not x.is_read and (operation, x.path) not in self.warned:
        self.warned.add((operation, x.path))
        warnings.warn(
            f"lazy: operation {operation!r} has no cheap form for the {type(x.leaf).__name__} at {x.path!r}; "
            f"its full array {x.shape} is formed", MaterializedWarning, stacklevel=2,
        )
    return [x.materialize() if isinstance(x, View) else x for x in values]

  def arrays(self, operation: str, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """The outputs of a jaxpr, views formed."""
    return self.materialize(operation, self(jaxpr, consts, args))


def bind(eqn: Any, arrays: Sequence[Any]) -> list[Any]:
  """The equation itself, on arrays."""
  given = {v: x for v, x in zip(eqn.invars, arrays, strict=True) if not isinstance(v, Literal)}
  alone = _empty_jaxpr().replace(invars=list(given), outvars=eqn.outvars, eqns=[eqn])
  return list(eval_jaxpr(alone, (), *given.values()))


@functools.cache
def _empty_jaxpr() -> Any:
  return jax.make_jaxpr(lambda: ())().jaxpr
