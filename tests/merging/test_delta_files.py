"""Deltas in files: what comes back is what was saved, to the last bit, or an error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.formats.peft_files.folder import WEIGHTS, read_folder, write_folder
from jaxft.formats.safetensors import check_content, open_checkpoint, save_file
from jaxft.leaves.row_delta import RowDelta
from jaxft.merging import Entries, apply_delta, load_delta, save_delta

DELTA = jax.device_put({
    "w": Entries(np.int32([0, 3]), np.float32([1.0, 2.0])), "v": Entries(np.int32([1]), np.ones(1, jnp.bfloat16)),
    "rows": RowDelta(np.int32([[1, 3]]), np.ones((1, 2, 4), np.float32), -2),
    "columns": RowDelta(np.int32([0, 2]), np.ones((4, 2), np.float32), -1)})


def test_every_flip_of_a_bit_is_an_error(tmp_path):
  path = tmp_path / "d"
  save_delta(path, DELTA)
  assert load_delta(path).keys() == DELTA.keys()
  data = path.read_bytes()
  for place in range(0, len(data)):
    path.write_bytes(data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1:])
    with pytest.raises(ValueError, match=str(path)):
      load_delta(path)


@pytest.mark.parametrize(("entries", "message"), [
    ((np.array([2**40]), np.float32([1])), r"indices in 0\.\.2\*\*31 - 1; w has 1099511627776\.\.1099511627776"),
    ((np.array([-3]), np.float32([1])), r"indices in 0\.\.2\*\*31 - 1; w has -3\.\.-3"),
    ((np.array([1, 2]), np.float32([1])), r"an index for each of its values; w has \(2,\) and \(1,\)"),
    ((np.array([1.0]), np.float32([1])), "integer indices; w has float64"),
    ((np.array([1]), np.array([1.0])), "values of at most 32 bits; w has float64"),
])
def test_what_would_not_come_back_is_not_saved(entries, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    save_delta(tmp_path / "d", {"w": Entries(*entries)})
  assert not (tmp_path / "d").exists()


def test_one_value_is_not_spread_over_several_indices():
  with pytest.raises(ValueError, match=r"one for each value; w has int32 \(2,\) and values \(1,\)"):
    apply_delta({"w": jnp.ones(4)}, {"w": Entries(jnp.array([1, 2]), jnp.ones(1))})


def test_an_adapter_that_was_written_here_is_checked(tmp_path):
  write_folder(tmp_path / "ours", {"r": 1}, {"a": np.ones(4, np.float32)})
  assert list(read_folder(tmp_path / "ours")[1]) == ["a"]
  path = tmp_path / "ours" / WEIGHTS
  data = path.read_bytes()
  path.write_bytes(data[:-2] + bytes([data[-2] ^ 0x40]) + data[-1:])
  with pytest.raises(ValueError, match="is corrupt: its checksum does not fit"):
    read_folder(tmp_path / "ours")
  save_file({"a": np.ones(4, np.float32)}, tmp_path / "theirs")
  check_content(open_checkpoint(tmp_path / "theirs"), "theirs", required=False)
  with pytest.raises(ValueError, match="theirs has no checksum"):
    check_content(open_checkpoint(tmp_path / "theirs"), "theirs")
