"""Counting floating-point operations from the jaxpr, loops multiplied out.

XLA's own estimate (`compiled.cost_analysis()`) counts the body of a scan once, whatever its length: a model with its
layers under one scan looks `L` times cheaper than it is. The jaxpr knows the length.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jaxft.signatures import explain_errors

# One operation for each element of the result; others (moves, comparisons, random bits) count nothing.
ELEMENTWISE = frozenset(
    "abs add add_any atan2 cbrt clamp cos div erf erf_inv exp exp2 expm1 integer_pow log log1p logistic max min mul "
    "neg pow rem rsqrt sign sin sqrt square sub tan tanh".split())
REDUCTIONS = frozenset(
    "cumlogsumexp cummax cummin cumprod cumsum reduce_max reduce_min reduce_prod reduce_sum".split())
ONE_TO_ONE = frozenset(("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"))


@dataclasses.dataclass(frozen=True)
class Flops:
  """A count of floating-point operations, over all devices together.

  Attributes:
    matmul: multiplications and additions of matrix products and convolutions, the usual measure of a model's cost.
    other: element-wise operations and reductions, one for each element.
    uncounted: what the count is too low by: primitives with a loop of unknown length (counted as one turn) or with a
      body that cannot be seen.
  """

  matmul: float = 0.0
  other: float = 0.0
  uncounted: frozenset[str] = frozenset()

  @property
  def total(self) -> float:
    return self.matmul + self.other

  def __add__(self, more: "Flops") -> "Flops":
    return Flops(self.matmul + more.matmul, self.other + more.other, self.uncounted | more.uncounted)

  def times(self, n: float) -> "Flops":
    return Flops(self.matmul * n, self.other * n, self.uncounted)


@explain_errors
def jaxpr_flops(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Flops:
  """Counts the operations of `fn(*args, **kwargs)` without running it.

  What no result depends on is left out, as the compiler leaves it out. Of a `cond` the dearest branch counts; of a
  `while` one turn, and where it may take more it is named in `uncounted`; the body of a `shard_map` counts once for
  each device.

  >>> jaxpr_flops(lambda x, w: jax.nn.relu(x @ w), np.ones((4, 8), np.float32), np.ones((8, 16), np.float32))
  Flops(matmul=1024.0, other=64.0, uncounted=frozenset())

  Args:
    fn: any traceable function.
    args: arrays or `jax.ShapeDtypeStruct`s.
    kwargs: likewise.
  """
  return count_jaxpr(jax.make_jaxpr(fn)(*args, **kwargs))


@explain_errors
def count_jaxpr(jaxpr: ClosedJaxpr | Jaxpr) -> Flops:
  """Counts a jaxpr; see `jaxpr_flops`.

  >>> jaxpr = jax.make_jaxpr(lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, length=10)[0])(np.ones((2, 2)))
  >>> count_jaxpr(jaxpr).matmul  # 10 * 2 * 2 * 2 * 2
  160.0
  """
  open_jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
  return _count(open_jaxpr, [True] * len(open_jaxpr.outvars))


def _count(jaxpr: Jaxpr, used: list[bool]) -> Flops:
  live = {v for v, u in zip(jaxpr.outvars, used, strict=True) if u and not isinstance(v, Literal)}
  total = Flops()
  for eqn in reversed(jaxpr.eqns):
    outputs = [v in live for v in eqn.outvars]
    if not any(outputs) and not eqn.effects:
      continue
    live.update(v for v in eqn.invars if not isinstance(v, Literal))
    total += _equation(eqn, outputs)
  return total


def _equation(eqn: Any, used: list[bool]) -> Flops:
  name = eqn.primitive.name
  size = sum(math.prod(v.aval.shape) for v in eqn.outvars)
  if name in ("dot_general", "ragged_dot_general"):
    if name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
    else:
      (contracted, _), _ = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    return Flops(matmul=2.0 * size * math.prod(eqn.invars[0].aval.shape[i] for i in contracted))
  if name == "conv_general_dilated":
    kernel = eqn.invars[1].aval.shape
    features = eqn.params["dimension_numbers"].rhs_spec[0]
    per_output = math.prod(n for i, n in enumerate(kernel) if i != features)
    return Flops(matmul=2.0 * size * per_output / eqn.params["batch_group_count"])
  if name in ELEMENTWISE:
    return Flops(other=float(size))
  if name in REDUCTIONS:
    return Flops(other=float(sum(math.prod(v.aval.shape) for v in eqn.invars)))
  if name == "scan":
    return count_jaxpr(eqn.params["jaxpr"]).times(eqn.params["length"])
  if name == "while":
    turn = count_jaxpr(eqn.params["cond_jaxpr"]) + count_jaxpr(eqn.params["body_jaxpr"])
    return turn + Flops(uncounted=frozenset({"while"}) if turn.total and not _ends_after_one(eqn) else frozenset())
  if name == "cond":
    return max((count_jaxpr(b) for b in eqn.params["branches"]), key=lambda f: f.total)
  if name == "shard_map":
    return count_jaxpr(eqn.params["jaxpr"]).times(math.prod(eqn.params["mesh"].shape.values()))
  if name == "pallas_call":
    return Flops(uncounted=frozenset({name}))
  below = [x for x in _jaxprs(eqn.params)]
  if name in ONE_TO_ONE and len(below) == 1:
    inner = below[0].jaxpr if isinstance(below[0], ClosedJaxpr) else below[0]
    return _count(inner, used)
  return sum((count_jaxpr(x) for x in below), Flops())


def _ends_after_one(eqn: Any) -> bool:
  """Whether a `while` goes on as one of its values says, and its body leaves False there: a turn or none."""
  going_on = eqn.params["cond_jaxpr"].jaxpr
  said = going_on.outvars[0]
  if said not in going_on.invars:
    return False
  left = eqn.params["body_jaxpr"].jaxpr.outvars[going_on.invars.index(said) - eqn.params["cond_nconsts"]]
  return isinstance(left, Literal) and not left.val


def _jaxprs(params: dict[str, Any]) -> list[ClosedJaxpr | Jaxpr]:
  """The jaxprs among an equation's parameters, also inside tuples."""
  found = []
  for value in params.values():
    for x in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(x, (ClosedJaxpr, Jaxpr)):
        found.append(x)
  return found
