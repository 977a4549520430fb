"""What a merge reads: tensors where they lie in a checkpoint, with an adapter added, or their rows in another order.

An operand knows its shape, dtype and the bytes it will hold before anything is read.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxft.formats.safetensors import Checkpoint
from jaxft.merging.kernels.blocks import blocks
from jaxft.merging.kernels.namespace import float32


@runtime_checkable
class Operand(Protocol):
  """A tensor of an input.

  Attributes:
    shape: of the array.
    dtype: that the tensor has in its model; the array may be wider.
    stored: bytes that are read.
    held: bytes of memory that the array and the making of it take.
    position: file and offset, by which reading is put in order.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  stored: int
  held: int
  position: tuple[str, int]

  def array(self) -> np.ndarray:
    """The contiguous array."""
    ...

  def prefetch(self) -> None:
    """Has it read ahead of its use."""

  def release(self) -> None:
    """Forgets that it was read."""


class Stored:
  """A tensor of a checkpoint, mapped."""

  def __init__(self, checkpoint: Checkpoint, name: str):
    info = checkpoint.tensors[name]
    self._checkpoint, self._name = checkpoint, name
    self.shape, self.dtype, self.stored, self.held = info.shape, info.dtype, info.nbytes, info.nbytes
    self.position = str(info.file), info.offset

  def array(self) -> np.ndarray:
    view = self._checkpoint.view(self._name)
    return view if view.flags.aligned else view.copy()

  def prefetch(self) -> None:
    self._checkpoint.prefetch(self._name)

  def release(self) -> None:
    self._checkpoint.release(self._name)


class Promised:
  """A tensor that an earlier merge will write; it can be planned with and not read."""

  def __init__(self, name: str, shape: tuple[int, ...], dtype: np.dtype):
    self.shape, self.dtype = shape, dtype
    self.stored = self.held = int(np.prod(shape, dtype=object)) * dtype.itemsize
    self.position: tuple[str, int] = "", 0
    self._name = name

  def array(self) -> np.ndarray:
    raise ValueError(f"{self._name} is not written yet")

  def prefetch(self) -> None:
    pass

  def release(self) -> None:
    pass


class LowRankUpdate(NamedTuple):
  """`scale * b @ a`, transposed for matrices that are stored input first."""

  a: Operand
  b: Operand
  scale: float
  transposed: bool = False

  @property
  def shape(self) -> tuple[int, int]:
    rows, columns = self.b.shape[0], self.a.shape[1]
    return (columns, rows) if self.transposed else (rows, columns)


class Replaced:
  """A tensor that an adapter has saved, in place of a model's: in float32, and of the dtype of that model."""

  def __init__(self, saved: Operand, dtype: np.dtype):
    self._saved = saved
    self.shape, self.dtype, self.stored, self.position = saved.shape, dtype, saved.stored, saved.position
    self.held = saved.held + int(np.prod(self.shape)) * 4

  def array(self) -> np.ndarray:
    return float32(self._saved.array())

  def prefetch(self) -> None:
    self._saved.prefetch()

  def release(self) -> None:
    self._saved.release()


class Adapted:
  """A matrix with the update of an adapter: read in float32, and of the dtype that the matrix has in the model."""

  def __init__(self, weight: Operand, update: LowRankUpdate):
    self._weight, self._update = weight, update
    self.shape, self.dtype = weight.shape, weight.dtype
    self.stored = weight.stored + update.a.stored + update.b.stored
    self.held = self.stored + int(np.prod(self.shape)) * 4
    self.position = weight.position

  def array(self) -> np.ndarray:
    a, b = float32(self._update.a.array()), float32(self._update.b.array()) * np.float32(self._update.scale)
    out = a.T @ b.T if self._update.transposed else b @ a
    flat = out.reshape(-1)
    for start, (piece,) in blocks([self._weight.array()]):
      flat[start:start + piece.size] += float32(piece)
    return out

  def prefetch(self) -> None:
    for part in self._parts():
      part.prefetch()

  def release(self) -> None:
    for part in self._parts():
      part.release()

  def _parts(self) -> Sequence[Operand]:
    return self._weight, self._update.a, self._update.b
