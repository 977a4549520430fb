"""What a fine-tuning method costs, before it is run: parameters, bytes of state, operations."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from jaxft.analysis.flops import jaxpr_flops
from jaxft.checks import nearest
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice, mask
from jaxft.tree.depth import layer_of, num_layers
from jaxft.tree.partition import count
from jaxft.tree.paths import Tree, leaves_with_paths

METHODS = ("frozen", "full", "lora", "rows", "columns", "entries")


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


def training_cost(
    transform: ParamTransform, params: Tree, optimizer: Any, *, objective: Callable[[Tree], jax.Array] | None = None,
    tokens: int = 1,
) -> Cost:
  """The cost of a transform on a model, from shapes alone: nothing is computed.

  Args:
    transform: what trains.
    params: arrays or `jax.ShapeDtypeStruct`s; of arrays too the shapes alone are read.
    optimizer: an optax optimizer.
    objective: `params -> scalar` on one batch, from which the gradient's operations are counted; gradients and an
      optimizer step cost a few operations for each number that trains, which are not counted.
    tokens: of that batch.

  Raises:
    jax.errors.ConcretizationTypeError: a transform whose `split` reads values, such as `sparse_delta` of a function
      that calls `top_k_mask`. Make its choice before, on arrays, and pass that: `sparse_delta(top_k_mask(...))`.
  """
  frozen, trainable = jax.eval_shape(transform.split, jax.random.key(0), params)
  state = jax.eval_shape(optimizer.init, trainable)
  flops = None
  if objective is not None:
    gradient = lambda trainable, frozen: jax.value_and_grad(lambda t: objective(transform.join(frozen, t)))(trainable)
    flops = jaxpr_flops(gradient, trainable, frozen).matmul / (count(params) * tokens)
  return Cost(count(trainable), count(params), _bytes(frozen), _bytes(trainable), _bytes(state), flops)


def cost_table(costs: Mapping[str, Cost]) -> str:
  """Costs of several methods as a Markdown table."""
  head = "| method | trained | share | state (MiB) | FLOPs/(N token) |\n| --- | ---: | ---: | ---: | ---: |"
  row = lambda name, c: (
      f"| {name} | {c.trained:,} | {c.share:.3%} | {c.state_bytes / 2**20:,.1f} | "
      + ("" if c.flops is None else f"{c.flops:.2f}") + " |")
  return "\n".join([head, *(row(name, c) for name, c in costs.items())])


def linear_flops(
    method: Literal["frozen", "full", "lora", "rows", "columns", "entries"], n_in: int, n_out: int, *, size: int = 0
) -> int:
  """Operations for each token of one matrix `[n_in, n_out]` inside a model: forward, input gradient, weight gradient.

      frozen  4 n_in n_out                          rows     + 2 size n_out      (`submatrix`, S2FT)
      full    6 n_in n_out                          columns  + 2 size n_in
      lora    4 n_in n_out + 6 size (n_in + n_out)  entries  6 n_in n_out, whatever the size: the gradient is formed

  Args:
    method: see above.
    n_in, n_out: of the matrix.
    size: rank, rows, columns or entries.

  Raises:
    ValueError: an unknown method.

  Source: the table of Yang et al. 2024, S2FT (arXiv 2412.06289), checked against the compiler in this library's tests.
  """
  if method not in METHODS:
    raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}; {nearest(str(method), METHODS)}")
  extra = {"frozen": 0, "full": 2 * n_in * n_out, "entries": 2 * n_in * n_out, "lora": 6 * size * (n_in + n_out),
           "rows": 2 * size * n_out, "columns": 2 * size * n_in}
  return 4 * n_in * n_out + extra[method]


def selection_flops(params: Tree, select: Choice, *, backward_from_embeddings: bool = True) -> float:
  """FLOPs per parameter and token of training the leaves that `select` matches, of a model of matrices.

      2 N (forward) + 2 N_above (input gradients) + 2 N_trained (weight gradients),  over N

  N_above counts the matrices in the lowest layer that trains and in those above it. Embeddings are looked up and cost
  nothing, but where they train the gradient goes down to them. Attention's own products are left out.

  Args:
    params: arrays or shapes; paths with "embed" lie below the layers, others outside of the layers above them.
    select: a choice of whole leaves; one of layers is made on cut or unrolled layers.
    backward_from_embeddings: whether a trained embedding counts as the lowest layer; False for one that is only the
      output head.

  Raises:
    ValueError: a glob matches nothing.
  """
  depth = num_layers(params)
  sizes, trained, lowest = np.zeros(depth + 1), 0.0, depth
  for (path, leaf), chosen in zip(leaves_with_paths(params), jax.tree.leaves(mask(select, params)), strict=True):
    if leaf is None:
      continue
    layer = layer_of(path, leaf)
    if chosen:
      below = 0 if "embed" in path and backward_from_embeddings else depth
      lowest = min(lowest, below if layer is None else int(np.min(layer)))
    if leaf.ndim - np.ndim(layer) != 2 or "embed" in path:
      continue
    np.add.at(sizes, depth if layer is None else layer, leaf.size / max(1, np.size(layer)))
    trained += leaf.size * chosen
  return float(2 + 2 * (sizes[lowest:].sum() + trained) / sizes.sum())


def _bytes(tree: Tree) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
