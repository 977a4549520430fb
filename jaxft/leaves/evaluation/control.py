"""Rules of the primitives that hold jaxprs: each is rebuilt around an evaluated body."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.leaves.evaluation.evaluator import Evaluator, Rule, bind
from jaxft.leaves.evaluation.views import View
from jaxft.tree.function.traced import scan_parts


def _inline(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any]:
  closed = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
  return run(closed.jaxpr, closed.consts, inputs)


def _consts(jaxpr: Any) -> Sequence[Any]:
  return getattr(jaxpr, "consts", ())  # jax 0.12 has one class for open and closed jaxprs, 0.10 has two


def _remat(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any]:
  body = lambda *values: run(eqn.params["jaxpr"], _consts(eqn.params["jaxpr"]), values)
  if eqn.params["differentiated"]:  # inside an inner gradient: all that remains of remat is to recompute apart
    return body(*(jax.lax.optimization_barrier(inputs) if eqn.params["prevent_cse"] else inputs))
  return jax.checkpoint(body, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])(*inputs)


def _scan(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any]:
  p, closed = eqn.params, eqn.params["jaxpr"]
  first_carry, num_carry, _ = scan_parts(eqn)
  first_xs = first_carry + num_carry
  consts, carry, xs = inputs[:first_carry], inputs[first_carry:first_xs], inputs[first_xs:]
  xs = [(x.front() or run.materialize("scan", [x])[0]) if isinstance(x, View) else x for x in xs]

  def body(carry: Any, parts: Any) -> tuple[list[Any], list[Any]]:
    layers = [x.layer(part) if isinstance(x, View) else part for x, part in zip(xs, parts, strict=True)]
    outs = run(closed.jaxpr, closed.consts, [*consts, *carry, *layers])
    return run.materialize("scan", outs[:num_carry]), outs[num_carry:]

  parts = [x.leaf if isinstance(x, View) else x for x in xs]
  carry = run.materialize("scan", carry)
  carry, ys = jax.lax.scan(body, carry, parts, length=p["length"], reverse=p["reverse"], unroll=p["unroll"])
  return [*carry, *(y.stacked() if isinstance(y, View) else y for y in ys)]  # nnx.scan hands weights through as ys


def _while(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any]:
  p = eqn.params
  first_body, first_carry = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
  evaluate = lambda closed, consts, carry: run.arrays("while", closed.jaxpr, closed.consts, [*consts, *carry])
  return jax.lax.while_loop(
      lambda carry: evaluate(p["cond_jaxpr"], inputs[:first_body], carry)[0],
      lambda carry: evaluate(p["body_jaxpr"], inputs[first_body:first_carry], carry),
      run.materialize("while", inputs[first_carry:]),
  )


def _cond(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any]:
  branches = [
      lambda *values, closed=closed: run.arrays("cond", closed.jaxpr, closed.consts, values)
      for closed in eqn.params["branches"]
  ]
  index, *operands = inputs
  return jax.lax.switch(index.astype(jnp.int32), branches, *operands)


def _custom_jvp(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any]:
  closed = eqn.params["call_jaxpr"]
  itself = lambda *values: bind(eqn, run.materialize(eqn.primitive.name, values))
  call = jax.custom_jvp(lambda *values: run.arrays(eqn.primitive.name, closed.jaxpr, closed.consts, values))
  call.defjvp(lambda primals, tangents: jax.jvp(itself, primals, tangents))
  return call(*inputs)


def _custom_vjp(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any]:
  closed = eqn.params["call_jaxpr"]
  itself = lambda *values: bind(eqn, run.materialize(eqn.primitive.name, values))
  call = jax.custom_vjp(lambda *values: run.arrays(eqn.primitive.name, closed.jaxpr, closed.consts, values))
  call.defvjp(lambda *values: jax.vjp(itself, *values), lambda pullback, cotangents: pullback(cotangents))
  return call(*inputs)


def _shard_map(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any]:
  p, specs = eqn.params, eqn.params["in_specs"]

  # The parts of a leaf that is whole on every device are whole too, and a stack's parts are cut along their layers.
  # Of any other cut of a leaf only the array is known.
  def enter(x: Any, spec: Any) -> Any:
    if not isinstance(x, View) or not any(spec):
      return x
    return (None if any(spec[1:]) else x.front()) or run.materialize("shard_map", [x])[0]

  def body(*values: Any) -> tuple[Any, ...]:
    local = [x.layer(x.leaf).stacked() if isinstance(x, View) and any(spec) else x
             for x, spec in zip(values, specs, strict=True)]
    return tuple(run.arrays("shard_map", p["jaxpr"], _consts(p["jaxpr"]), local))

  return jax.shard_map(
      body, mesh=p["mesh"], in_specs=tuple(specs), out_specs=tuple(p["out_specs"]), check_vma=p["check_vma"],
      axis_names=set(p["newly_manual_axes"]),
  )(*[enter(x, spec) for x, spec in zip(inputs, specs, strict=True)])


RULES: dict[str, Rule] = {
    "jit": _inline,
    "pjit": _inline,
    "closed_call": _inline,
    "core_call": _inline,
    "checkpoint": _remat,
    "remat2": _remat,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "custom_jvp_call": _custom_jvp,
    "custom_vjp_call": _custom_vjp,
    "shard_map": _shard_map,
}
