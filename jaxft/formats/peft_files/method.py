"""One row of the table of methods: what its fields mean, and how most methods fill them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.formats.peft_files.layouts import Tensor
from jaxft.formats.peft_files.modules import Place
from jaxft.formats.peft_files.projections import Numbers, Shared
from jaxft.leaves.annotated import Annotated
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice

Settings = Mapping[str, Any]
Tensors = dict[str, np.ndarray]
Item = tuple[Place, Numbers]


def _parts(joined: Any, frozen: Any, trained: Any) -> dict[str, Any]:
  """The numbers of one adapted leaf, by name: what trains, and what its transform noted beside the weight."""
  note = frozen.note if isinstance(frozen, Annotated) and isinstance(frozen.note, dict) else {}
  return {**note, **trained}


def _fill(frozen: Any, trained: Any, numbers: dict[str, Any]) -> tuple[Any, Any]:
  if not isinstance(trained, dict):
    return frozen, next(iter(numbers.values()))
  if isinstance(frozen, Annotated) and isinstance(frozen.note, dict):
    frozen = Annotated(frozen.w, {name: numbers.get(name, x) for name, x in frozen.note.items()})
  return frozen, {name: numbers[name] for name in trained}


@dataclasses.dataclass(frozen=True)
class Method:
  """One row of the table.

  Attributes:
    build: `(select, settings) -> transform`; settings are PEFT's, those of one group of modules.
    tensors: the tensors of a module by our names.
    defaults: PEFT's value of each setting that `build` reads.
    measure: `(numbers, joined leaf, place, settings) -> settings` that can be read off an adapted matrix.
    overall: `(matrices and numbers, all modules of the model) -> settings` that no single matrix tells.
    asks: settings that the trained leaves do not tell, so that whoever saves must give them.
    patterns: settings that may differ between modules, and the pattern in the file that says so.
    local: `(settings, place) -> ` further settings of one module, for `build`.
    fixed: settings that are written as they are.
    refuses: settings that must be off, since with them PEFT computes what is not computed here.
    check: `settings -> ` why such an adapter cannot be read; "" where it can.
    parts: `(joined leaf, frozen leaf, what trains) -> numbers`, with a leading layer axis of a stack.
    fill: `(frozen leaf, what trains, numbers) -> ` the two with other numbers: the inverse of `parts`.
    embedding: the tensors of an embedding; None where PEFT's type takes matrices only.
    candidates: the places that may be adapted.
    shared: what is kept once for all modules.
    prepare: `(settings, tensors) -> tensors`, from other spellings of the file.
    adapts_tied: whether an embedding that is the head too is adapted as both, and stored with both.
    ties: whether `ensure_weight_tying` makes PEFT adapt an embedding and its head as one.
    takes_tokens: whether a file may also hold rows of the embedding, under `trainable_token_indices`.
    sizes: settings that are sizes of what is made, none larger than the longest axis in the file.
    reads: further keys of the settings that are read, or that PEFT itself does not read.
    scale: `joined leaf -> s` where the update is `s * a @ b`, so that factors of twice the rank may hold another.
    changes_bias: whether PEFT changes a module's bias as well, which transforms of kernels leave as it is.
  """

  build: Callable[[Choice, Settings], ParamTransform]
  tensors: Mapping[str, Tensor]
  defaults: Settings = dataclasses.field(default_factory=dict)
  measure: Callable[[Numbers, Any, Place, Settings], dict[str, Any]] = lambda x, leaf, place, s: {}
  overall: Callable[[Sequence[Item], Sequence[str]], dict[str, Any]] = lambda items, modules: {}
  asks: tuple[str, ...] = ()
  patterns: Mapping[str, str] = dataclasses.field(default_factory=dict)
  local: Callable[[Settings, Place], dict[str, Any]] = lambda s, place: {}
  fixed: Settings = dataclasses.field(default_factory=dict)
  refuses: tuple[str, ...] = ()
  check: Callable[[Settings], str] = lambda s: ""
  parts: Callable[[Any, Any, Any], dict[str, Any]] = _parts
  fill: Callable[[Any, Any, dict[str, Any]], tuple[Any, Any]] = _fill
  embedding: Mapping[str, Tensor] | None = None
  candidates: Callable[[Place], bool] = lambda place: place.matrix
  shared: Shared | None = None
  prepare: Callable[[Settings, Tensors], Tensors] = lambda s, tensors: tensors
  adapts_tied: bool = False
  ties: bool = False
  takes_tokens: bool = False
  sizes: tuple[str, ...] = ("r",)
  reads: tuple[str, ...] = ()
  scale: Callable[[Any], float] | None = None
  changes_bias: Callable[[Settings], bool] = lambda s: False

  def tensors_of(self, place: Place) -> Mapping[str, Tensor]:
    return self.embedding if place.embedding and self.embedding is not None else self.tensors
