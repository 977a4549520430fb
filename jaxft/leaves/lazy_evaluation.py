"""Evaluating jaxprs on structured leaves: the rules behind `lazy`, one for each primitive that has a cheap form."""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jax.extend.core import Literal

from jaxft.leaves.lazy_views import View


class MaterializedWarning(UserWarning):
  """An operation that has no cheap form read a structured leaf, so that its full array was formed."""


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Evaluates jaxprs on arrays and views; `warned` holds the (operation, path) pairs that were warned of."""

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
      rule = RULES.get(eqn.primitive.name)
      outs = rule(self, eqn, inputs) if rule else None
      if outs is not None:
        return outs
    return bind(eqn, self.materialize(eqn.primitive.name, inputs))

  def materialize(self, operation: str, values: Sequence[Any]) -> list[Any]:
    """The values with views formed, warning once for each operation and path."""
    for x in values:
      if isinstance(x, View) and (operation, x.path) not in self.warned:
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


# Rules: (evaluator, equation, inputs of which at least one is a view) -> outputs, or None where there is no cheap form.


def _dot_general(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any] | None:
  (contracting, batch), precision = eqn.params["dimension_numbers"], eqn.params["precision"]
  if any(batch) or all(isinstance(x, View) for x in inputs) or any(len(c) != 1 for c in contracting):
    return None
  side = 0 if isinstance(inputs[0], View) else 1
  view, x = inputs[side], inputs[1 - side]
  out = eqn.outvars[0].aval
  if not (view.is_matrix and jnp.issubdtype(x.dtype, jnp.floating)):
    return None
  if precision is not None and not (isinstance(precision, tuple) and precision[0] == precision[1]):
    return None
  # A product asked for in a wider dtype than its operands is computed in it, never rounded on the way.
  x = jnp.moveaxis(x, contracting[1 - side][0], -1).astype(jnp.promote_types(x.dtype, out.dtype))
  asked = contextlib.nullcontext() if precision is None else jax.default_matmul_precision(precision[0].name.lower())
  with asked:
    y = view.contract(x, contracting[side][0])
  if y is None:
    return None
  y = jnp.moveaxis(y, -1, 0) if side == 0 else y
  return [y.reshape(out.shape).astype(out.dtype)]


def _gather(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any] | None:
  table, starts = inputs
  numbers, mode = eqn.params["dimension_numbers"], eqn.params["mode"]
  if not isinstance(table, View) or not table.is_plain_matrix:
    return None
  rows, columns = table.shape
  out = eqn.outvars[0].aval
  whole_rows = (
      tuple(eqn.params["slice_sizes"]) == (1, columns) and tuple(numbers.offset_dims) == (len(out.shape) - 1,)
      and tuple(numbers.collapsed_slice_dims) == (0,) and tuple(numbers.start_index_map) == (0,)
      and not numbers.operand_batching_dims
  )
  if not whole_rows:
    return None
  ids = starts[..., 0]
  inside = jnp.clip(ids, 0, rows - 1)
  found = table.leaf.lookup(inside).astype(out.dtype)
  if mode == jax.lax.GatherScatterMode.FILL_OR_DROP:
    fill = eqn.params["fill_value"]
    found = jnp.where((ids == inside)[..., None], found, jnp.nan if fill is None else fill).astype(out.dtype)
  return [found]


def _view(change: Callable[[View, Any], View | None]) -> Callable[..., Sequence[Any] | None]:
  """The rule of an operation on one view that gives another view."""

  def rule(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any] | None:
    if not isinstance(inputs[0], View) or len(inputs) != 1:
      return None
    out = change(inputs[0], eqn)
    return None if out is None else [out]

  return rule


def _dynamic_slice(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any] | None:
  view, *starts = inputs
  sizes = eqn.params["slice_sizes"]
  if not isinstance(view, View) or tuple(sizes[1:]) != view.shape[1:]:
    return None
  out = view.map_stack(lambda part: jax.lax.dynamic_slice_in_dim(part, starts[0], sizes[0], axis=0))
  return None if out is None else [out]


def _slice(view: View, eqn: Any) -> View | None:
  start, limit, strides = (eqn.params[name] for name in ("start_indices", "limit_indices", "strides"))
  strides = strides or (1,) * len(start)
  if any(start[1:]) or tuple(limit[1:]) != view.shape[1:] or any(s != 1 for s in strides[1:]):
    return None
  return view.map_stack(lambda part: jax.lax.slice_in_dim(part, start[0], limit[0], strides[0], axis=0))


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
  # Which are carried and which are scanned is told by rank: the equation's parameters for it differ between versions.
  longer = lambda outer, inner: outer.aval.ndim == inner.aval.ndim + 1
  first_xs = len(inputs) - sum(map(longer, eqn.invars, closed.jaxpr.invars))
  num_carry = len(eqn.outvars) - sum(map(longer, eqn.outvars, closed.jaxpr.outvars))
  first_carry = first_xs - num_carry
  consts, carry, xs = inputs[:first_carry], inputs[first_carry:first_xs], inputs[first_xs:]
  xs = [x if not isinstance(x, View) or x.is_stack else run.materialize("scan", [x])[0] for x in xs]

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
  p = eqn.params
  # The parts of a leaf that is whole on every device are whole too, and a stack's parts are cut along their layers.
  # Of any other cut of a leaf only the array is known.
  follows = lambda view, spec: not any(spec[1:]) and (not any(spec) or view.is_stack)
  inputs = [
      run.materialize("shard_map", [x])[0] if isinstance(x, View) and not follows(x, spec) else x
      for x, spec in zip(inputs, p["in_specs"], strict=True)
  ]
  body = lambda *values: tuple(run.arrays("shard_map", p["jaxpr"], _consts(p["jaxpr"]), values))
  return jax.shard_map(
      body, mesh=p["mesh"], in_specs=tuple(p["in_specs"]), out_specs=tuple(p["out_specs"]), check_vma=p["check_vma"],
      axis_names=set(p["newly_manual_axes"]),
  )(*inputs)


_keep = _view(lambda view, eqn: view)

RULES: dict[str, Callable[..., Sequence[Any] | None]] = {
    "dot_general": _dot_general,
    "gather": _gather,
    "convert_element_type": _view(lambda view, eqn: view.cast(eqn.params["new_dtype"])),
    "transpose": _view(lambda view, eqn: view.pick(eqn.params["permutation"])),
    "squeeze": _view(lambda view, eqn: view.drop(eqn.params["dimensions"])),
    "reshape": _view(lambda view, eqn: None if eqn.params["dimensions"] else view.reshape(eqn.outvars[0].aval.shape)),
    "broadcast_in_dim": _view(
        lambda view, eqn: view.broadcast(eqn.params["shape"], eqn.params["broadcast_dimensions"])),
    "slice": _view(_slice),
    "dynamic_slice": _dynamic_slice,
    "stop_gradient": _view(lambda view, eqn: view.map(jax.lax.stop_gradient)),
    "optimization_barrier": lambda run, eqn, inputs: jax.lax.optimization_barrier(inputs),
    "copy": _keep,
    "name": _keep,
    "sharding_constraint": _keep,
    "pvary": _keep,  # contractions vary over the axes of the other operand by themselves
    "pcast": _keep,
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
