"""What a recipe costs, before it is run: parameters, bytes of state, operations."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from jaxft.analysis.flops import jaxpr_flops
from jaxft.signatures import explain_errors
from jaxft.training.frozen import narrowed
from jaxft.training.recipe import Recipe, check_recipe
from jaxft.tree.boxes import set_aside
from jaxft.tree.partition import count
from jaxft.tree.paths import Tree


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one transform keeps, and what one step of it computes.

  Attributes:
    trained: numbers that train, those that a method adds among them.
    params: the model's own count of numbers.
    frozen_bytes, trained_bytes, optimizer_bytes: of the frozen side (indices and seeds included), of what trains, and
      of the optimizer's state.
    flops: matrix products of one training step per parameter and token, counted from the jaxpr; None where no step was
      given.
  """

  trained: int
  params: int
  frozen_bytes: int
  trained_bytes: int
  optimizer_bytes: int
  flops: float | None = None

  @property
  def share(self) -> float:
    """What trains, over the model's own count."""
    return self.trained / self.params

  @property
  def state_bytes(self) -> int:
    """All that is held between steps."""
    return self.frozen_bytes + self.trained_bytes + self.optimizer_bytes


@explain_errors
def training_cost(recipe: Recipe, params: Tree, batch: Any | None = None, *, tokens: int = 1) -> Cost:
  """The cost of a recipe on a model, from shapes alone: nothing is computed.

  >>> from jaxft.losses import Mean
  >>> from jaxft.transforms import train
  >>> objective = lambda params, batch, key: (Mean.of(jnp.square(batch @ params["up"] @ params["down"])), {})
  >>> batch, params = jnp.ones((8, 100)), {"up": jnp.ones((100, 100)), "down": jnp.ones((100, 100))}
  >>> for name in ("up", "down"):  # what is below the lowest that trains has a forward pass alone
  ...   cost = training_cost(Recipe(objective, train(name), optax.adam(0.1)), params, batch, tokens=8)
  ...   print(name, cost.trained, cost.share, cost.flops)
  up 10000 0.5 4.0
  down 10000 0.5 3.0

  Args:
    recipe: what trains and by which optimizer; its mesh and accumulation are not read.
    params: arrays or `jax.ShapeDtypeStruct`s; only their shapes and dtypes are read.
    batch: of the objective, arrays or shapes, on which the gradient's operations are counted. The few operations for
      each number that trains by which the optimizer makes a step are not counted. None counts no operations at all.
    tokens: of that batch.

  Raises:
    TypeError: `recipe` is no `Recipe`.
    jax.errors.ConcretizationTypeError: a transform whose `split` reads values, such as `sparse_delta` of a function
      that calls `top_k_mask`. Make its choice before, on arrays, and pass that: `sparse_delta(top_k_mask(...))`.
  """
  check_recipe(recipe)
  transform, key = recipe.transform, jax.random.key(0)
  params = set_aside(params)
  frozen, trainable = jax.eval_shape(transform.split, key, params)
  frozen = narrowed(frozen, transform.split, params, recipe.frozen_dtype)
  state = jax.eval_shape(recipe.optimizer.init, trainable)
  flops = None
  if batch is not None:
    loss = lambda trainable, frozen, batch: recipe.objective(transform.join(frozen, trainable), batch, key)[0].value
    flops = jaxpr_flops(jax.value_and_grad(loss), trainable, frozen, batch).matmul / (count(params) * tokens)
  return Cost(count(trainable), count(params), _bytes(frozen), _bytes(trainable), _bytes(state), flops)


@explain_errors
def cost_table(costs: Mapping[str, Cost]) -> str:
  """Costs of several methods as a Markdown table.

  >>> print(cost_table({"lora": Cost(4_000, 1_000_000, 4 << 20, 16_000, 32_000, 4.03)}))
  | method | trained | share | state (MiB) | FLOPs/(N token) |
  | --- | ---: | ---: | ---: | ---: |
  | lora | 4,000 | 0.400% | 4.0 | 4.03 |
  """
  head = "| method | trained | share | state (MiB) | FLOPs/(N token) |\n| --- | ---: | ---: | ---: | ---: |"
  row = lambda name, c: (
      f"| {name} | {c.trained:,} | {c.share:.3%} | {c.state_bytes / 2**20:,.1f} | "
      + ("" if c.flops is None else f"{c.flops:.2f}") + " |")
  return "\n".join([head, *(row(name, c) for name, c in costs.items())])


def _bytes(tree: Tree) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
