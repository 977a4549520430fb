"""The contract of a parameter transform: a `Case(...)` in one of the files `cases_*.py` beside this one joins it.

A case names a transform over the stack of blocks below. Of every case is then checked, in `test_transforms.py`, that

- what is joined after the split is the params that were split, or errs by no more than the case states;
- gradients have the structure of what trains; all that trains moves from the start on, what does not train stays as it
  is to the bit, and no dtype or shape changes, so that one compilation serves all steps;
- the plain path (`materialize`) and the fast path (`dot`) agree, in values and gradients, and `lazy` forms no leaf;
- merged weights are rounded once;
- stacked and unrolled layers agree, given the same key, dropout included;
- what trains inherits the partition specs of what it adapts;
- one training step costs no more than the declared FLOPs per parameter and token, by its jaxpr;

and, in `test_factor_dtypes.py`, of every method that adapts matrices, that what trains has the dtype asked for, starts
where it does in float32 and is rounded no more for it;

and, always of one case for each kind of leaf (`transform_cases.py`), of the others in the exhaustive tier, that

- bfloat16 weights train, and `lazy` agrees with the plain path (`test_transform_steps.py`);
- a linen dict, an `nnx.State` and an Equinox module work, through `lazy`, without a leaf being formed
  (`test_foreign_models.py`);
- a sharded step agrees with an unsharded one, and both sides survive saving and restoring (`test_transform_states.py`);
- a step costs what is declared by the compiler's own count (`test_transform_costs.py`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxft.leaves import dot, seed_dropout
from jaxft.transforms import ParamTransform

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
    variant: another setting of a case that holds the whole contract; of it only what `test_transforms.py` checks, which
      is where it differs.
    counted_apart: how far the counts of XLA's versions lie apart: they expand random draws differently, and only the
      older ones merge what forward and backward pass both form.
    replicated: what trains has no axis of the leaf that it adapts, and so inherits no cut.
    by_layer: what trains differs between layers, which saves nothing in a stack: its cost is that of unrolled layers.
  """

  name: str
  transform: ParamTransform
  flops: float
  starts_within: float = 0.0
  layout: Callable[[Any], Any] | None = None
  variant: bool = False
  counted_apart: float = 0.0
  replicated: bool = False
  by_layer: bool = False


def stack_params(key: jax.Array, *, layers: int, dim: int, hidden: int, dtype: Any = jnp.float32) -> Any:
  """Stacked residual blocks `x + relu(x @ up) @ down`, no bias."""
  up, down = jax.random.split(key)
  draw = lambda k, m, n: (jax.random.normal(k, (layers, m, n)) * (m**-0.5)).astype(dtype)
  return {"layers": {"up": {"kernel": draw(up, dim, hidden)}, "down": {"kernel": draw(down, hidden, dim)}}}


def block(h: jax.Array, layer: Any) -> jax.Array:
  return h + 0.3 * dot(jax.nn.relu(dot(h, layer["up"]["kernel"])), layer["down"]["kernel"])


def forward(params: Any, x: jax.Array, block: Callable[..., jax.Array] = block) -> jax.Array:
  """The blocks of `stack_params`, stacked, cut or unrolled; multiplies through `dot`, as the library's models do."""
  for name, piece in _pieces(params["layers"]):
    stacked = not name.isdecimal()
    x = jax.lax.scan(lambda h, layer: (block(h, layer), None), x, piece)[0] if stacked else block(x, piece)
  return x


def foreign_forward(params: Any, x: jax.Array) -> jax.Array:
  """`forward` of stacked layers, by a user who knows nothing of structured leaves."""

  def body(h: jax.Array, layer: Any) -> tuple[jax.Array, None]:
    return h + 0.3 * jax.nn.relu(h @ layer["up"]["kernel"]) @ layer["down"]["kernel"], None

  for _, piece in _pieces(params["layers"]):
    x = jax.lax.scan(jax.checkpoint(body), x, piece)[0]
  return x


def _pieces(layers: Any) -> list[tuple[str, Any]]:
  """A stack, its pieces, or its layers, by their names and in their order."""
  return [("", layers)] if "up" in layers else sorted(layers.items(), key=lambda item: int(item[0].split(":")[0]))


class Blocks(NamedTuple):
  """What the contract is held on: `stack_params`, `forward` and `foreign_forward`."""

  stack_params: Callable[..., Any] = stack_params
  forward: Callable[..., jax.Array] = forward
  foreign_forward: Callable[..., jax.Array] = foreign_forward


PLAIN_BLOCKS = Blocks()


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
