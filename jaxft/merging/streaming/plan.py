"""What a merge will do, tensor by tensor, known in full before anything is read or written."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.merging.streaming.inputs import InputModel
from jaxft.merging.streaming.operands import Operand
from jaxft.merging.streaming.recipe_files.configuration import Recipe
from jaxft.merging.streaming.recipe_files.references import Reference
from jaxft.merging.streaming.shards import Entry
from jaxft.merging.streaming.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class TensorPlan:
  """A tensor of the output.

  Attributes:
    name, entry: in the output.
    models: what it is made of, by the model's name, without the base.
    base: that of the base, or None.
    per_model, parameters: as `check_parameters` takes them; None where the tensor is copied (integers).
    layer: in the output, or None.
  """

  name: str
  entry: Entry
  models: Mapping[str, Operand]
  base: Operand | None
  per_model: Mapping[str, Sequence[Any]] | None
  parameters: Mapping[str, Any]
  layer: int | None

  @property
  def operands(self) -> list[Operand]:
    return [*([] if self.base is None else [self.base]), *self.models.values()]

  @property
  def held(self) -> int:
    """Bytes of memory while it is made, without the blocks in which it is."""
    return sum(x.held for x in self.operands) + self.entry.nbytes


@dataclasses.dataclass(frozen=True)
class Plan:
  """A merge.

  Attributes:
    recipe: what was asked for.
    models: all inputs; the first is the one whose config and tokenizer the output takes.
    tensors: of the output, in the order in which they are to lie.
    depths: stack whose layers were chosen -> how many the first model has, and which layers the output's are.
    vocabulary: where embeddings are aligned, else None.
    untied: whether the output has a head of its own though the first model's config ties it.
    dtype: of the output, where it is one for all.
    seed: of random drops.
    notes: what the user should know.
  """

  recipe: Recipe
  models: Mapping[Reference, InputModel]
  tensors: tuple[TensorPlan, ...]
  depths: Mapping[str, tuple[int, Sequence[int]]]
  vocabulary: Vocabulary | None
  untied: bool
  dtype: str | None
  seed: int
  notes: tuple[str, ...]

  @property
  def first(self) -> InputModel:
    return next(iter(self.models.values()))

  @property
  def bytes_read(self) -> int:
    return sum(x.stored for tensor in self.tensors for x in tensor.operands)

  @property
  def bytes_written(self) -> int:
    return sum(tensor.entry.nbytes for tensor in self.tensors)

  @property
  def budget(self) -> int:
    """Bytes of tensors held at once: K + 2 of the largest leaves in float32, or what the dearest tensor takes."""
    leaf = max((int(np.prod(t.entry.shape, dtype=object)) * 4 for t in self.tensors), default=0)
    inputs = max((len(t.operands) for t in self.tensors), default=0)
    return max([(inputs + 1) * leaf, *(t.held for t in self.tensors)])
