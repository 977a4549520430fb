"""Checksums: every bit counts, and the place of every element, whatever the dtype and the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from jaxft.training import checksum, make_mesh
from jaxft.training.checksums import checksums, json_checksum


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int32", "int4", "bool", "complex64"])
def test_every_element_and_its_place_count(dtype):
  x = np.array([[0, 1, 1], [0, 1, 1]], jnp.dtype(dtype))
  other, place = np.where(x == 1, np.zeros_like(x), np.ones_like(x)), np.arange(6).reshape(2, 3)
  changed = [np.where(place == i, other, x) for i in range(6)]
  moved = [x[:, ::-1], x.T.reshape(2, 3), x.reshape(3, 2)]
  assert len({checksum(v) for v in [x, *changed, *moved]}) == 10


def test_signs_that_change_in_pairs_and_values_that_swap_with_their_negatives_show():
  x = np.linspace(1, 2, 64, dtype=np.float32)
  flip = lambda *places: np.where(np.isin(np.arange(64), places), -x, x)
  swap = np.array([1.0, -1.0], np.float32)
  assert len({checksum(v) for v in (x, flip(3), flip(3, 4), flip(*range(64)), flip(0, 63))}) == 5
  assert checksum(swap) != checksum(swap[::-1])


def test_all_64_bits_count():
  with jax.enable_x64(True):
    for dtype in (np.float64, np.int64):
      words = np.arange(4).astype(dtype)
      high = words.copy()
      high.view(np.uint64)[2] ^= np.uint64(1) << np.uint64(40)
      assert checksum(jnp.asarray(words)) != checksum(jnp.asarray(high))


def test_a_mesh_changes_nothing_and_paths_are_named():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 16)), jnp.float32)
  cut = jax.device_put(x, NamedSharding(make_mesh(data=2, fsdp=2, tensor=2), P("fsdp", "tensor")))
  assert checksum(x) == checksum(cut)
  found = checksums({"a": x, "b": jax.random.key(0), "hole": None})
  assert list(found) == ["a", "b"] and found["a"].startswith("float32[8, 16]:")


def test_json_in_any_order():
  assert json_checksum({"a": 1, "b": [1, 2.5]}) == json_checksum({"b": [1, 2.5], "a": 1})
  assert json_checksum({"a": [1, 2]}) != json_checksum({"a": [2, 1]})
