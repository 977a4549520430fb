"""What a recipe costs, before it is run: parameters, bytes of state, operations."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from jaxft.analysis.flops import jaxpr_flops
from jaxft.training.recipe import Recipe, check_recipe
from jaxft.tree.partition import count
from jaxft.tree.paths import Tree


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one transform keeps, and what one step of it computes.

  Attributes:
    trained: numbers that train.
    params: numbers of the model.
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
    return self.trained / self.params

  @property
  def state_bytes(self) -> int:
    """All that is held between steps."""
    return self.frozen_bytes + self.trained_bytes + self.optimizer_bytes


def training_cost(recipe: Recipe, params: Tree, batch: Any | None = None, *, tokens: int = 1) -> Cost:
  """The cost of a recipe on a model, from shapes alone: nothing is computed.

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
  frozen, trainable = jax.eval_shape(transform.split, key, params)
  state = jax.eval_shape(recipe.optimizer.init, trainable)
  flops = None
  if batch is not None:
    loss = lambda trainable, frozen, batch: recipe.objective(transform.join(frozen, trainable), batch, key)[0].value
    flops = jaxpr_flops(jax.value_and_grad(loss), trainable, frozen, batch).matmul / (count(params) * tokens)
  return Cost(count(trainable), count(params), _bytes(frozen), _bytes(trainable), _bytes(state), flops)


def cost_table(costs: Mapping[str, Cost]) -> str:
  """Costs of several methods as a Markdown table."""
  head = "| method | trained | share | state (MiB) | FLOPs/(N token) |\n| --- | ---: | ---: | ---: | ---: |"
  row = lambda name, c: (
      f"| {name} | {c.trained:,} | {c.share:.3%} | {c.state_bytes / 2**20:,.1f} | "
      + ("" if c.flops is None else f"{c.flops:.2f}") + " |")
  return "\n".join([head, *(row(name, c) for name, c in costs.items())])


def _bytes(tree: Tree) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
