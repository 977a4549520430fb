"""How models lie to each other and to what was made of them: lengths of task vectors, signs in common, by layer."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxft.formats.safetensors import Checkpoint, open_checkpoint
from jaxft.merging.kernels.blocks import blocks
from jaxft.merging.kernels.namespace import float32
from jaxft.merging.streaming.plan import Plan, TensorPlan
from jaxft.merging.streaming.workers import for_each

MERGED = "merged"


@dataclasses.dataclass
class Distances:
  """Sums over the entries of some tensors. A task vector is the difference to the base, or without one to the merge.

  Attributes:
    reference: sum of squares of the base, or of the merge.
    squares: model -> that of its task vector; the merge is one of the models where there is a base.
    products: pair of models -> sum of products of their task vectors.
    agreeing, comparable: pair of models -> entries in which both moved, in one direction, and in any.
  """

  reference: float = 0.0
  squares: dict[str, float] = dataclasses.field(default_factory=dict)
  products: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)
  agreeing: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)
  comparable: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)

  def __add__(self, other: "Distances") -> "Distances":
    both = lambda a, b: {key: a.get(key, 0) + b.get(key, 0) for key in a | b}
    return Distances(
        self.reference + other.reference, both(self.squares, other.squares), both(self.products, other.products),
        both(self.agreeing, other.agreeing), both(self.comparable, other.comparable))

  def relative(self, model: str) -> float:
    """The length of a task vector, in lengths of the reference."""
    return math.sqrt(self.squares.get(model, 0.0) / self.reference) if self.reference else 0.0

  def cosine(self, one: str, other: str) -> float:
    """Between two task vectors; 0 where one is nothing."""
    norm = math.sqrt(self.squares[one] * self.squares[other])
    return self.products[_pair(one, other)] / norm if norm else 0.0

  def agreement(self, one: str, other: str) -> float:
    """Share of the entries in which both models moved that moved in one direction."""
    total = self.comparable[_pair(one, other)]
    return self.agreeing[_pair(one, other)] / total if total else 0.0


def measure(plan: Plan, folder: Path) -> Mapping[str, Distances]:
  """The distances of each tensor of a finished merge that is not copied, by name; reads everything once more."""
  merged = open_checkpoint(folder)
  tensors = [t for t in plan.tensors if t.per_model is not None and math.prod(t.entry.shape)]
  return {t.name: found for t, found in for_each(plan, tensors, lambda t: _of_tensor(t, merged))}


def _of_tensor(tensor: TensorPlan, merged: Checkpoint) -> Distances:
  out = Distances()
  outcome = merged.view(tensor.name)
  arrays = {name: operand.array() for name, operand in tensor.models.items()}
  if tensor.base is not None:
    reference, arrays = tensor.base.array(), arrays | {MERGED: outcome}
  else:
    reference = outcome
  for _, (origin, *parts) in blocks([reference.reshape(-1), *(x.reshape(-1) for x in arrays.values())]):
    origin = float32(origin)
    deltas = {name: float32(part) - origin for name, part in zip(arrays, parts, strict=True)}
    signs = {name: (delta > 0, delta < 0) for name, delta in deltas.items()}
    block = Distances(float(np.dot(origin, origin)))
    for i, (one, delta) in enumerate(deltas.items()):
      block.squares[one] = float(np.dot(delta, delta))
      for other in list(deltas)[:i]:
        up, down = (np.count_nonzero(a & b) for a, b in zip(signs[one], signs[other], strict=True))
        moved = [a | b for a, b in (signs[one], signs[other])]
        block.products[_pair(one, other)] = float(np.dot(delta, deltas[other]))
        block.agreeing[_pair(one, other)] = int(up + down)
        block.comparable[_pair(one, other)] = int(np.count_nonzero(moved[0] & moved[1]))
    out += block
  merged.release(tensor.name)
  return out


def _pair(one: str, other: str) -> tuple[str, str]:
  return (one, other) if one < other else (other, one)
