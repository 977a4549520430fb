"""Checkpoints that are whole or not there, belong to their run, and fail with one clear error."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxft.training import Checkpoints, checksum, fingerprint_of, make_mesh
from tests.training import toy

ROOT = Path(__file__).parents[2]


def trained(steps, **options):
  state, frozen, step = toy.start(**options)
  for t in range(steps):
    state, _ = step(state, frozen, toy.dataset()[t])
  return state


def same(a, b):
  for x, y in zip(toy.arrays(a), toy.arrays(b), strict=True):
    np.testing.assert_array_equal(x, y)


def fill(folder, steps, **options):
  """Checkpoints of the toy after 1, 2, ... steps, saved while the training that donates the state goes on."""
  state, frozen, step = toy.start()
  with Checkpoints(folder, **options) as checkpoints:
    for t in range(steps):
      state, _ = step(state, frozen, toy.dataset()[t])
      checkpoints.save(state, {"at": t})


def test_what_is_restored_is_what_was_saved_although_the_state_was_donated(tmp_path):
  fill(tmp_path, 3, max_to_keep=2)
  fresh = toy.start()[0]
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.steps == [2, 3] and checkpoints.latest == 3
    state, position = checkpoints.restore(fresh)
  assert position == {"at": 2}
  same(state, trained(3))
  assert state.key.dtype == fresh.key.dtype
  shutil.rmtree(tmp_path / "3")
  same(Checkpoints(tmp_path).restore(fresh)[0], trained(2))


def test_a_fresh_folder_restores_nothing(tmp_path):
  assert Checkpoints(tmp_path / "new" / "folder").restore(toy.start()[0]) is None


def test_another_fingerprint_is_refused_with_the_keys_that_differ(tmp_path):
  state = trained(1)
  with Checkpoints(tmp_path, fingerprint={"rate": 0.1, "model": "a", "old": 1}) as checkpoints:
    checkpoints.save(state)
  other = Checkpoints(tmp_path, fingerprint={"rate": 0.2, "model": "a", "new": [1, 2]})
  with pytest.raises(ValueError, match="step 1 in .* belongs to another run; 3 keys differ") as error:
    other.restore(state)
  for part in ("rate: 0.1 there, 0.2 here", "old: 1 there, absent here", "new: absent there, [1, 2] here"):
    assert part in str(error.value)
  assert "model" not in str(error.value)
  assert other.steps == [1]


def test_the_fingerprint_tells_apart_shapes_and_what_is_frozen():
  state, frozen, _ = toy.start()
  one = fingerprint_of(state, frozen)
  assert one == fingerprint_of(*toy.start(seed=2)[:2])
  assert one == fingerprint_of(*toy.start(make_mesh(data=2, fsdp=2, tensor=2))[:2])
  up = frozen["layers"]["up"]["kernel"]
  nudged = {"layers": {**frozen["layers"], "up": {"kernel": up.at[1, 2, 3].add(1e-6)}}}
  differ = fingerprint_of(state, nudged)
  assert {k for k in one if one[k] != differ[k]} == {"frozen"}
  assert checksum({"a": np.zeros(4, np.int8)}) != checksum({"a": np.zeros(4, np.int32)})


def damage(folder):
  for path in sorted(folder.rglob("*")):
    if path.is_file() and "ocdbt.process" in str(path):
      path.write_bytes(path.read_bytes()[:7])


@pytest.mark.parametrize("harm", [damage, lambda folder: shutil.rmtree(folder / "state"),
                                  lambda folder: (folder / "run" / "metadata").write_text('{"posit')])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(tmp_path, caplog, harm):
  fill(tmp_path, 2)
  harm(tmp_path / "2")
  fresh = toy.start()[0]
  with Checkpoints(tmp_path) as checkpoints, caplog.at_level(logging.WARNING, "jaxft"):
    state, _ = checkpoints.restore(fresh)
    assert "unreadable-2" in caplog.text
    same(state, trained(1))
    checkpoints.save(state._replace(step=state.step + 1))
  assert Checkpoints(tmp_path).steps == [1, 2] and (tmp_path / "unreadable-2").exists()


def test_where_all_are_damaged_it_says_so(tmp_path):
  fill(tmp_path, 1)
  damage(tmp_path / "1")
  with pytest.raises(ValueError, match="none of the checkpoints in .* can be read: step 1: "):
    Checkpoints(tmp_path).restore(toy.start()[0])
  assert (tmp_path / "1").exists()


def test_what_a_kill_left_behind_is_not_a_checkpoint(tmp_path):
  fill(tmp_path, 1)
  shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
  (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.steps == [1]
    same(checkpoints.restore(toy.start()[0])[0], trained(1))


def test_a_folder_that_cannot_be_is_one_clear_error(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match="checkpoints cannot be written to .*file/run"):
    Checkpoints(tmp_path / "file" / "run")


FULL_DISK = """
import resource, sys
from jaxft.training import Checkpoints
from tests.training import toy
state, frozen, step = toy.start()
with Checkpoints(sys.argv[1]) as checkpoints:
  checkpoints.save(state)
  checkpoints.wait()
  state, _ = step(state, frozen, toy.dataset()[0])
  # No file may grow beyond 100 bytes from here on: every write fails half way, as on a full disk.
  resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
  try:
    checkpoints.save(state)
    checkpoints.wait()
  except OSError as e:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print("caught:", e)
    checkpoints.save(state)
print("steps", Checkpoints(sys.argv[1]).steps)
"""


def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path):
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path / "run")], cwd=ROOT, env=environment,
                        capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr[-3000:]
  assert "caught: a checkpoint could not be written to" in done.stdout
  assert f"{tmp_path / 'run' / '0'} is the last complete one" in done.stdout
  assert "steps [0, 1]" in done.stdout
