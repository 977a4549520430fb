"""State dicts of old PyTorch: what is read from a file made by hand, and what a file may not ask for."""

import io
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from jaxft.formats.efficientnet_files import efficientnet_tensors, from_torch_names
from jaxft.formats.torch_state import read_torch_state
from jaxft.models.efficientnet import Block, EfficientNetConfig

MAGIC, VERSION, SIZES = 0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}


class Named:
  """Pickled as a function by its name, so that no PyTorch is needed to write what it would write."""

  def __init__(self, name):
    self.__qualname__ = self.__name__ = name.rpartition(".")[2]
    self.__module__ = name.rpartition(".")[0]


class Call:
  def __init__(self, name, *arguments):
    self.name, self.arguments = name, arguments


class Writer(pickle._Pickler):
  """The pickler in Python, which can be told to write the name of what is not there."""

  def save(self, obj, save_persistent_id=True):
    if isinstance(obj, Named):
      return self.write(b"c" + f"{obj.__module__}\n{obj.__name__}\n".encode())
    if isinstance(obj, Call):
      self.save(Named(obj.name))
      self.save(obj.arguments)
      return self.write(b"R")
    return super().save(obj, save_persistent_id)

  def persistent_id(self, obj):
    return obj.pid if isinstance(obj, Storage) else None


class Storage:
  def __init__(self, key, kind, size):
    self.pid = ("storage", Named(f"torch.{kind}"), key, "cpu", size, None)


def tensor(storage, offset, shape, strides):
  return Call("torch._utils._rebuild_tensor_v2", storage, offset, shape, strides, False, OrderedDict())


def file_of(state, keys, *storages, magic=MAGIC, sizes=SIZES):
  out = io.BytesIO()
  for part in (magic, VERSION, sizes, state, keys):
    Writer(out, 2).dump(part)
  for storage in storages:
    out.write(storage.size.to_bytes(8, "little") + storage.tobytes())
  return io.BytesIO(out.getvalue())


NUMBERS = np.arange(6, dtype=np.float32)


def test_tensors_share_storages_and_have_strides():
  storage, whole = Storage("7", "FloatStorage", 6), Storage("8", "LongStorage", 1)
  state = OrderedDict(
      a=tensor(storage, 0, (2, 3), (3, 1)), b=tensor(storage, 1, (3, 2), (1, 3)), c=tensor(whole, 0, (), ()))
  state["b"] = tensor(storage, 0, (3, 2), (1, 3))
  read = read_torch_state(file_of(state, ["8", "7"], np.array([41]), NUMBERS))
  assert list(read) == ["a", "b", "c"] and read["c"] == 41 and read["c"].dtype == np.int64
  np.testing.assert_array_equal(read["a"], NUMBERS.reshape(2, 3))
  np.testing.assert_array_equal(read["b"], NUMBERS.reshape(2, 3).T)


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "collections.Counter"])
def test_nothing_but_tensors_is_called(name):
  with pytest.raises(ValueError, match=f"it asks for {name}; a state dict needs tensors alone"):
    read_torch_state(file_of({"a": Call(name, "echo")}, []))


@pytest.mark.parametrize(("tensors", "message"), [
  ((0, (2, 4), (4, 1)), "exceed their storage of 6"),
  ((5, (2,), (1,)), "exceed their storage of 6"),
  ((0, (2,), (-1,)), "sizes and strides >= 0"),
  ((0, (2,), (1, 1)), "as many strides as sizes"),
])
def test_tensors_that_reach_beyond_their_storage(tensors, message):
  with pytest.raises(ValueError, match=message):
    read_torch_state(file_of({"a": tensor(Storage("0", "FloatStorage", 6), *tensors)}, ["0"], NUMBERS))


def test_other_files_are_refused():
  whole = file_of({"a": tensor(Storage("0", "FloatStorage", 6), 0, (6,), (1,))}, ["0"], NUMBERS).getvalue()
  for data in (b"", b"PK\x03\x04", whole[:-3], whole[:40], pickle.dumps(3), pickle.dumps({"a": 1})):
    with pytest.raises(ValueError, match="not a state dict of torch.save before PyTorch 1.6"):
      read_torch_state(io.BytesIO(data))
  with pytest.raises(ValueError, match="a dict of tensors"):
    read_torch_state(file_of({"a": 3}, []))
  with pytest.raises(ValueError, match="little-endian"):
    read_torch_state(file_of({}, [], sizes={"little_endian": False}))


def test_batch_norms_are_folded():
  config = EfficientNetConfig((Block(2, 3, kernel=3, stride=1, expand=1),), stem=2, dim=4, num_classes=5)
  rng = np.random.default_rng(0)
  shapes = {"_conv_stem": (2, 3, 3, 3), "_blocks.0._depthwise_conv": (2, 1, 3, 3),
            "_blocks.0._project_conv": (3, 2, 1, 1), "_conv_head": (4, 3, 1, 1)}
  state = {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
  for name, size in (("_bn0", 2), ("_blocks.0._bn1", 2), ("_blocks.0._bn2", 3), ("_bn1", 4)):
    state |= {f"{name}.{part}": rng.uniform(0.5, 2, size).astype(np.float32)
              for part in ("weight", "bias", "running_mean", "running_var")}
    state[f"{name}.num_batches_tracked"] = np.array(7)
  state |= {"_fc.weight": rng.normal(size=(5, 4)), "_fc.bias": rng.normal(size=5)}
  named = from_torch_names(state, config)
  expected = efficientnet_tensors(config).expected(lambda rule: rule.name, available=len(named))
  assert {name: x.shape for name, x in named.items()} == expected
  x = rng.normal(size=(6, 4))
  norm = (x - state["_bn1.running_mean"]) / np.sqrt(state["_bn1.running_var"] + 1e-3)
  want = norm * state["_bn1.weight"] + state["_bn1.bias"]
  np.testing.assert_allclose(x * named["head_norm.scale"] + named["head_norm.bias"], want, atol=1e-5)
  np.testing.assert_array_equal(named["stem.kernel"][1, 2, 0], state["_conv_stem.weight"][:, 0, 1, 2])
  with pytest.raises(ValueError, match="left over: more"):
    from_torch_names({**state, "more": np.zeros(1)}, config)
  del state["_fc.bias"]
  with pytest.raises(ValueError, match="state must have '_fc.bias'"):
    from_torch_names(state, config)
