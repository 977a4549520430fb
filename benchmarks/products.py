"""The matrix products of a step and nothing else, through XLA and through torch: the floor under either side.

A step of full tuning forms each layer's output, and from the gradient of that the gradients of its input and of its
weight; one of LoRA leaves the last out. Each library forms the same products of the same sizes, one after the other.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple

from benchmarks import workload

Kind = Literal["full", "lora", "gist, padded", "gist, packed"]
KINDS: tuple[Kind, ...] = ("lora", "full", "gist, padded", "gist, packed")


class Product(NamedTuple):
  """Products of one size: `[rows, inputs] @ [inputs, outputs]`, of so many layers."""

  rows: int
  inputs: int
  outputs: int
  layers: int


def sizes(kind: Kind) -> list[Product]:
  """The products of a step's forward pass, attention apart."""
  from jaxft.formats import load
  from jaxft.tree import leaves_with_paths

  gist = kind.startswith("gist")
  model = load("minilm-l6" if gist else "smollm2-135m")
  kernels = [leaf.shape for path, leaf in leaves_with_paths(model.params) if path.endswith("kernel")]
  out: Counter[tuple[int, int]] = Counter()
  for *stack, inputs, outputs in kernels:  # layers may lie in one leaf
    out[inputs, outputs] += stack[0] if stack else 1
  if not gist:  # the head, tied to the embedding
    vocabulary, width = model.params["embed"]["tokens"]["embedding"].shape
    out[width, vocabulary] += 1
  return [Product(rows, *shape, layers) for rows in _rows(kind, model) for shape, layers in sorted(out.items())]


def _rows(kind: Kind, model) -> list[int]:
  if not kind.startswith("gist"):
    return [workload.BATCH * workload.TIME]
  sides = [[len(e.ids) for e in model.tokenizer.encode_batch(list(side))]
           for side in zip(*workload.text_pairs(), strict=True)]
  return [sum(map(sum, sides))] if kind == "gist, packed" else [len(side) * max(side) for side in sides]


def flops(kind: Kind) -> float:
  """Of the products of one step: each has two operations for each of its multiplications."""
  return float(sum(2 * p.rows * p.inputs * p.outputs * p.layers for p in sizes(kind)) * (2 if kind == "lora" else 3))


def ours(kind: Kind) -> Callable[[], float]:
  """All products of a step, one size after the other, as compiled programs that loop over the layers."""
  import jax
  import jax.numpy as jnp

  def products(x, dy, weights):
    def layer(x, weight):
      y, dx = x @ weight, dy @ weight.T
      made = (y, dx) if kind == "lora" else (y, dx, x.T @ dy)
      made = jax.lax.optimization_barrier(made)
      # The next layer waits for all of these, so that none is formed once for all layers.
      return x.at[0, 0].add(sum(part[0, 0] for part in made) * 1e-9), made[2:]

    return jax.lax.scan(layer, x, weights)

  inputs = [tuple(jnp.full(shape, 0.01) for shape in (
      (p.rows, p.inputs), (p.rows, p.outputs), (p.layers, p.inputs, p.outputs))) for p in sizes(kind)]
  programs = [jax.jit(products).lower(*of).compile() for of in inputs]

  def step() -> float:
    for program, of in zip(programs, inputs, strict=True):
      jax.block_until_ready(program(*of))
    return 0.0

  return step


def theirs(kind: Kind) -> Callable[[], float]:
  """The same by torch."""
  import torch

  inputs = [tuple(torch.full(shape, 0.01) for shape in (
      (p.rows, p.inputs), (p.rows, p.outputs), (p.layers, p.inputs, p.outputs))) for p in sizes(kind)]

  def step() -> float:
    with torch.no_grad():
      for x, dy, weights in inputs:
        for weight in weights:
          made = [x @ weight, dy @ weight.T]
          if kind != "lora":
            made.append(x.T @ dy)
    return 0.0

  return step


def sides(of: Callable[[Kind], Callable[[], float]], prefix: str) -> Iterator[tuple[str, Callable[[], Callable]]]:
  """Names of the sides that a worker steps."""
  return ((f"{prefix}-products, {kind}", partial(of, kind)) for kind in KINDS)
