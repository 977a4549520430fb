"""What one training step of the blocks costs, in FLOPs per parameter and token, by its jaxpr or by the compiler."""

from collections.abc import Callable
from typing import Any

import jax

from jaxft.analysis.flops import count_jaxpr
from jaxft.transforms import ParamTransform
from tests.contracts.transform_cases import KEY
from tests.contracts.transforms import make_step

BIG = {"layers": 8, "dim": 256, "hidden": 1024}
TOKENS = 512


def size(layers: int) -> int:
  return layers * 2 * BIG["dim"] * BIG["hidden"]


def step_on_shapes(transform: ParamTransform, params: Any, apply: Callable[..., Any]) -> tuple[Any, tuple[Any, ...]]:
  """A training step on the big blocks, and the shapes of its arguments."""
  frozen, trainable = jax.eval_shape(transform.split, KEY, params)
  optimizer, step = make_step(transform, apply)
  tokens = jax.ShapeDtypeStruct((TOKENS, BIG["dim"]), jax.tree.leaves(params)[0].dtype)
  return step, (trainable, jax.eval_shape(optimizer.init, trainable), frozen, tokens, tokens, KEY)


def step_cost(
    transform: ParamTransform, params: Any, apply: Callable[..., Any], count: Callable[..., float], layers: int = 8,
) -> float:
  """FLOPs of a training step per parameter and token."""
  step, args = step_on_shapes(transform, params, apply)
  return count(step, *args) / (size(layers) * TOKENS)


def compiled_flops(step: Callable[..., Any], *args: Any) -> float:
  """The compiler's own count. It sees the body of a scan once, so that models are unrolled for it."""
  return jax.jit(step).lower(*args).compile().cost_analysis()["flops"]


def matmul_flops(step: Callable[..., Any], *args: Any) -> float:
  """Of the jaxpr, which knows a scan's length."""
  return count_jaxpr(jax.make_jaxpr(step)(*args)).matmul
