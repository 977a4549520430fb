"""The contract of a parameter transform: a `Case(...)` in one of the files `cases_*.py` beside this one joins it.

A case names a transform over the stack of blocks below. `test_transforms.py` then checks, the same for all, that

- what is joined after the split is the params that were split, or errs by no more than the case states;
- gradients have the structure of what trains; frozen leaves stay bit-identical over optimizer steps, and no dtype or
  shape changes; one compilation serves all steps;
- the plain path (`materialize`), the fast path (`dot`) and `lazy` agree, in values and gradients;
- stacked and unrolled layers agree, given the same key, dropout included;
- a linen dict, an `nnx.State` and an Equinox module work, through `lazy`, without a leaf being formed;
- what trains inherits the partition specs of what it adapts, and a sharded step agrees with an unsharded one;
- both sides survive saving and restoring;
- one training step costs no more than the declared FLOPs per parameter and token.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxft.transforms import ParamTransform, dot, seed_dropout

KERNELS = "**/{kernel,weight}"  # Equinox calls it weight
UP = "**/up/*"


@dataclasses.dataclass(frozen=True)
class Case:
  """A transform under contract.

  Attributes:
    name: shown by pytest.
    transform: acts on leaves `**/up/*` and `**/down/*`, named kernel or weight.
    flops: the most that one training step may cost, in FLOPs per parameter and token, in any supported XLA.
    starts_within: the root mean square error that the first `join` may have, relative to each leaf's own.
    layout: of the params that it takes, from stacked; a case with a layout of its own is not tried on others.
    variant: another setting of a case that holds the whole contract; of it only the start, the products and the FLOPs
      are checked, which is where it differs.
    counted_apart: how far the counts of XLA's versions lie apart: they expand random draws differently, and only the
      older ones merge what forward and backward pass both form.
    replicated: what trains has no axis of the leaf that it adapts, and so inherits no cut.
  """

  name: str
  transform: ParamTransform
  flops: float
  starts_within: float = 0.0
  layout: Callable[[Any], Any] | None = None
  variant: bool = False
  counted_apart: float = 0.0
  replicated: bool = False


def stack_params(key: jax.Array, *, layers: int, dim: int, hidden: int, dtype: Any = jnp.float32) -> Any:
  """Stacked residual blocks `x + relu(x @ up) @ down`, no bias."""
  up, down = jax.random.split(key)
  draw = lambda k, m, n: (jax.random.normal(k, (layers, m, n)) * (m**-0.5)).astype(dtype)
  return {"layers": {"up": {"kernel": draw(up, dim, hidden)}, "down": {"kernel": draw(down, hidden, dim)}}}


def block(h: jax.Array, layer: Any) -> jax.Array:
  return h + 0.3 * dot(jax.nn.relu(dot(h, layer["up"]["kernel"])), layer["down"]["kernel"])


def forward(params: Any, x: jax.Array) -> jax.Array:
  """The blocks of `stack_params`, stacked, cut or unrolled; multiplies through `dot`, as the library's models do."""
  layers = params["layers"]
  if "up" in layers:
    return jax.lax.scan(lambda h, layer: (block(h, layer), None), x, layers)[0]
  for name in sorted(layers, key=lambda n: int(n.split(":")[0])):
    if ":" in name:
      x = jax.lax.scan(lambda h, layer: (block(h, layer), None), x, layers[name])[0]
    else:
      x = block(x, layers[name])
  return x


def make_step(transform: ParamTransform, apply: Callable[..., jax.Array] = forward) -> tuple[Any, Callable[..., Any]]:
  """A training step as users write it: `value_and_grad`, the norm logged, clipping, Adam."""
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))

  def step(trainable: Any, state: Any, frozen: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> Any:
    def loss(trainable: Any) -> jax.Array:
      params = seed_dropout(transform.join(frozen, trainable), key)
      return jnp.mean(jnp.square(apply(params, x) - y).astype(jnp.float32))

    value, grads = jax.value_and_grad(loss)(trainable)
    updates, state = optimizer.update(grads, state, trainable)
    return optax.apply_updates(trainable, updates), state, {"loss": value, "grad_norm": optax.tree.norm(grads)}

  return optimizer, step
