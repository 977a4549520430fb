"""State dicts that `torch.save` wrote before PyTorch 1.6, read without PyTorch and without running what they ask for.

Such a file is four pickles (a magic number, a version, the writer's sizes, the dict) and then the numbers. A pickle may
name any function of Python to be called; here it may name ordered dicts and tensors, and everything else is refused.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {
  "HalfStorage": "<f2", "FloatStorage": "<f4", "DoubleStorage": "<f8", "CharStorage": "<i1", "ByteStorage": "<u1",
  "ShortStorage": "<i2", "IntStorage": "<i4", "LongStorage": "<i8", "BoolStorage": "?",
}


class _Storage(NamedTuple):
  key: str
  dtype: np.dtype
  size: int


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]  # in numbers, not bytes


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any) -> _Tensor:
  """What the pickle calls for a tensor; its numbers come later in the file."""
  del requires_grad, hooks
  if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in (offset, *shape, *strides)):
    raise pickle.UnpicklingError("a tensor must have a storage, and an offset, sizes and strides >= 0")
  if len(shape) != len(strides):
    raise pickle.UnpicklingError(f"a tensor must have as many strides as sizes; got {strides} and {shape}")
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _TensorsAlone(pickle.Unpickler):
  """An unpickler to which the only names are those of dicts, tensors and types of storage."""

  def find_class(self, module_name: str, global_name: str) -> Any:
    if (module_name, global_name) == ("collections", "OrderedDict"):
      return OrderedDict
    if (module_name, global_name) == ("torch._utils", "_rebuild_tensor_v2"):
      return _tensor
    if module_name == "torch" and global_name in _DTYPES:
      return np.dtype(_DTYPES[global_name])
    raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}; a state dict needs tensors alone")

  def persistent_load(self, pid: Any) -> _Storage:
    if not (isinstance(pid, tuple) and len(pid) == 6 and pid[0] == "storage" and isinstance(pid[1], np.dtype)
            and isinstance(pid[2], str) and type(pid[4]) is int and pid[5] is None):
      raise pickle.UnpicklingError(f"a storage must have a type, a key and a size; got {pid!r:.80}")
    return _Storage(pid[2], pid[1], pid[4])


def read_torch_state(file: io.BufferedIOBase) -> dict[str, np.ndarray]:
  """The arrays of a state dict by name, in the order of the file.

  Args:
    file: open for reading, at the start of what `torch.save(model.state_dict(), ...)` wrote before PyTorch 1.6.

  Raises:
    ValueError: it is another kind of file, is cut short, or asks for anything but tensors.
  """
  read = lambda: _TensorsAlone(file).load()
  try:
    if (read(), read()) != (_MAGIC, _VERSION):
      raise ValueError("no magic number of torch.save in front")
    sizes, state, keys = read(), read(), read()
    if not isinstance(sizes, dict) or sizes.get("little_endian") is not True:
      raise ValueError("the numbers must be little-endian")
    if not isinstance(state, Mapping) or not all(isinstance(x, _Tensor) for x in state.values()):
      raise ValueError("it must hold a dict of tensors")
    wanted = {tensor.storage.key: tensor.storage for tensor in state.values()}
    storages = {key: _numbers(file, wanted[key]) for key in keys}
    return {str(name): _view(storages[tensor.storage.key], tensor) for name, tensor in state.items()}
  except (pickle.UnpicklingError, ValueError, KeyError, EOFError, TypeError, AttributeError, IndexError,
          OverflowError, UnicodeDecodeError) as e:
    raise ValueError(f"not a state dict of torch.save before PyTorch 1.6: {e or type(e).__name__}") from None


def _numbers(file: io.BufferedIOBase, storage: _Storage) -> np.ndarray:
  size = int.from_bytes(file.read(8), "little")
  data = file.read(size * storage.dtype.itemsize) if size == storage.size else b""
  if size != storage.size or len(data) != size * storage.dtype.itemsize:
    raise ValueError(f"storage {storage.key} must have {storage.size} numbers; the file has not")
  return np.frombuffer(data, storage.dtype)


def _view(storage: np.ndarray, tensor: _Tensor) -> np.ndarray:
  last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
  if 0 in tensor.shape:
    return np.zeros(tensor.shape, storage.dtype)
  if last >= storage.size:  # NumPy would read on beyond the end
    raise ValueError(f"{tensor.shape} numbers in steps of {tensor.strides} from {tensor.offset} on exceed their "
                     f"storage of {storage.size}")
  strides = [storage.itemsize * stride for stride in tensor.strides]
  return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides, writeable=False)
