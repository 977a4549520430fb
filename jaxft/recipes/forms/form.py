"""What a run must know of a form of examples, and what a form is told of a run."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxft.formats.families import family_of
from jaxft.formats.pretrained import Pretrained
from jaxft.recipes.account.counts import WHOLE
from jaxft.recipes.dtypes import DTYPES
from jaxft.recipes.examples import Collate, Records, Splits
from jaxft.recipes.forms.labels import Target
from jaxft.recipes.measure import Measure
from jaxft.recipes.model import Model
from jaxft.recipes.options import Finetune
from jaxft.training.mesh import rows_of_process
from jaxft.training.recipe import Objective


@dataclasses.dataclass(frozen=True)
class Asked:
  """A run as far as its options and the configs of its models tell.

  Attributes:
    run: the options.
    config: of the model.
    loss: the name of the loss.
    mesh: where it runs; None: on one device.
    teacher: the config of a teacher; None: there is none.
    guide: the config of a guide that is another model; None: there is none.
  """

  run: Finetune
  config: Any
  loss: str
  mesh: Mesh | None = None
  teacher: Any = None
  guide: Any = None

  @property
  def kind(self) -> str:
    """Of the model."""
    return family_of(self.config).kind

  @property
  def compute(self) -> dict[str, Any]:
    """In what precision it computes, and what it keeps."""
    return {"dtype": DTYPES[self.run.compute.dtype], "remat": self.run.compute.remat}

  @property
  def compared(self) -> dict[str, Any]:
    """Of an objective that compares all examples of a batch: how it cuts them itself, and where the parts lie."""
    return {"chunks": self.run.optimization.accumulate, "mesh": self.mesh, **self.compute}

  @property
  def rows(self) -> int:
    """Examples of a batch."""
    return self.run.optimization.batch_size

  def ids(self, *shape: int) -> Any:
    """Ids, or a mask, of so many numbers in shapes; with no shape of one text a row, as long as they may be."""
    length = self.run.examples.max_length
    longest = min(length, self.config.max_length) if self.kind == "encoder" else length
    return jax.ShapeDtypeStruct(shape or (self.rows, longest), jnp.int32)

  def inputs(self) -> dict[str, Any]:
    """What an encoder or a model of images reads, in shapes."""
    if self.kind != "vision":
      return {"ids": self.ids(), "mask": self.ids()}
    shape = (self.rows, self.config.image_size, self.config.image_size, self.config.channels)
    return {"images": jax.ShapeDtypeStruct(shape, jnp.uint8)}


@dataclasses.dataclass(frozen=True)
class Reading:
  """What there is when a run's data are made ready.

  Attributes:
    options: of the run.
    loss: the name of its loss.
    model: the pretrained one, without its weights.
    params: these, of which nothing that reads batches may keep hold.
    splits: of the data.
    target: what a classifier, a regressor or an embedder of labels learns; None: it learns no such thing.
    mesh: where it runs; None: on one device.
    initial: gives the params before the first step.
    weights: tells the model's weights from those of others, as `checksum` does.
    teacher: as of `teacher_of`; None: there is none.
  """

  options: Finetune
  loss: str
  model: Pretrained
  params: Any
  splits: Splits
  target: Target | None
  mesh: Mesh | None
  initial: Callable[[], Any]
  weights: str
  teacher: Model | None = None

  @property
  def several(self) -> bool:
    """Whether several processes pad parts of the same batch, which they must do alike."""
    return rows_of_process(self.mesh)[1] > 1

  @property
  def dtype(self) -> Any:
    """Of activations."""
    return DTYPES[self.options.compute.dtype]

  @property
  def size(self) -> int:
    """Examples of a batch."""
    return self.options.optimization.batch_size

  @property
  def max_length(self) -> int:
    """The most tokens of a text that are asked for."""
    return self.options.examples.max_length

  @property
  def length(self) -> int:
    """The most tokens of a text, of those asked for and the model's own."""
    return min(self.max_length, self.model.max_length)

  def padded(self) -> dict[str, Any]:
    """How texts become rows: at most so long, and whether all batches are padded alike."""
    return {"max_length": self.length, "one_length": self.several}

  def uncut(self) -> tuple[Pretrained, dict[str, Any]]:
    """A model, and how texts become rows, that cut no text, by which their tokens are counted."""
    return dataclasses.replace(self.model, max_length=WHOLE), {"max_length": WHOLE, "one_length": False}


class Prepared(NamedTuple):
  """What a run reads, made ready.

  Attributes:
    records: to train on.
    collate: records to batches.
    measure: records to what they measure, a function of the params.
    uncut: records to batches, of texts of any length; None of images.
    alone: as collate, with a row for each text; None where collate is so.
    said: what is to be told of the batches.
  """

  records: Records
  collate: Collate
  measure: Callable[[Records], Measure]
  uncut: Collate | None = None
  alone: Collate | None = None
  said: str | None = None


class Form(NamedTuple):
  """A form of examples.

  Attributes:
    objective: what is minimized.
    batch: a batch in shapes, every text as long as it may be.
    prepare: the records of a run made ready.
  """

  objective: Callable[[Asked], Objective]
  batch: Callable[[Asked], Any]
  prepare: Callable[[Reading], Prepared]
