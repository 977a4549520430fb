"""How leaves pass through what holds a jaxpr of its own: calls, scans, loops and branches."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.extend.core import Literal as Constant

from jaxft.tree.function.held import Factor
from jaxft.tree.function.traced import scan_parts
from jaxft.tree.function.use_walk import Rule, Value, Walk, other

CALLS = (
    "jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2", "custom_jvp_call", "custom_vjp_call",
    "custom_vjp_call_jaxpr", "custom_lin", "shard_map", "run_state", "composite",
)


def _called(eqn: Any) -> Any:
  """The jaxpr that an equation calls once with its inputs; None where it is no such call."""
  names = ("jaxpr", "call_jaxpr", "fun_jaxpr") if eqn.primitive.name in CALLS else ()
  closed = next((eqn.params[name] for name in names if name in eqn.params), None)
  return None if closed is None or len(getattr(closed, "jaxpr", closed).invars) != len(eqn.invars) else closed


def _call(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
  closed = _called(eqn)
  return other(walk, eqn, inputs) if closed is None else walk(closed, inputs)


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


RULES: dict[str, Rule] = {"scan": _scan, "while": _while, "cond": _cond} | dict.fromkeys(CALLS, _call)
