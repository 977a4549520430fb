"""Checkpoints that are whole or not there, belong to their run, and fail with one clear error."""

import json
import logging
import resource
import shutil

import jax
import numpy as np
import pytest

from jaxft.training import Checkpoints, checksum, fingerprint_of, make_mesh
from jaxft.training.checksums import checksums
from tests.training import toy


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


def test_a_run_is_read_without_what_it_must_be_equal_to(tmp_path):
  fill(tmp_path, 2, configuration={"rank": 4}, fingerprint={"frozen": "0f"})
  arrays, configuration = Checkpoints(tmp_path).restore()
  state = trained(2)
  wanted = {jax.tree_util.keystr(keys, simple=True, separator="."): x
            for keys, x in jax.tree_util.tree_leaves_with_path(state.trainable)}
  assert configuration == {"rank": 4} and int(arrays["step"]) == 2
  for name, x in wanted.items():
    np.testing.assert_array_equal(arrays[f"trainable.{name}"], x)
  assert int(Checkpoints(tmp_path).read(1)[0]["step"]) == 1
  assert repr(Checkpoints(tmp_path)) == f"Checkpoints({str(tmp_path)!r}, steps: 1, 2)"
  with pytest.raises(ValueError, match=r"holds the checkpoints of the steps \[1, 2\]; got 3"):
    Checkpoints(tmp_path).read(3)
  with pytest.raises(ValueError, match=r"of the steps \[\]; got None"):
    Checkpoints(tmp_path / "none").restore()


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


@pytest.mark.parametrize("flips", [34, pytest.param(400, marks=pytest.mark.exhaustive)])
def test_one_bit_that_flipped_gives_the_same_values_or_the_checkpoint_before(tmp_path, caplog, flips):
  fill(tmp_path, 2, configuration={"rate": 0.1}, fingerprint={"model": "a"})
  expected, fresh = {1: toy.arrays(trained(1)), 2: toy.arrays(trained(2))}, toy.start()[0]
  files = [path for path in sorted((tmp_path / "2").rglob("*")) if path.is_file() and path.stat().st_size]
  fell_back = set()
  for i in range(flips):
    path = files[i % len(files)]
    good = path.read_bytes()
    content = np.frombuffer(good, np.uint8).copy()
    at = int(np.random.default_rng(i).integers(8 * content.size))
    content[at // 8] ^= 1 << at % 8
    path.write_bytes(content.tobytes())
    caplog.clear()
    with caplog.at_level(logging.WARNING, "jaxft"), Checkpoints(tmp_path, fingerprint={"model": "a"}) as checkpoints:
      state, position = checkpoints.restore(fresh)
    step, aside = int(state.step), tmp_path / "unreadable-2"
    assert position == {"at": step - 1}, path
    for x, y in zip(toy.arrays(state), expected[step], strict=True):
      np.testing.assert_array_equal(x, y, err_msg=f"bit {at} of {path}")
    assert aside.exists() == (step == 1) == (f"{tmp_path / '2'} cannot be read and is set aside" in caplog.text), path
    if step == 1:
      fell_back.add(path.relative_to(tmp_path / "2").parts[0])
      aside.rename(tmp_path / "2")
    path.write_bytes(good)
  assert fell_back == {"state", "run"}


def test_the_checksums_are_of_what_is_saved_and_one_that_is_missing_is_damage(tmp_path, caplog):
  fill(tmp_path, 2)
  run = tmp_path / "2" / "run" / "metadata"
  content = json.loads(run.read_text())
  same_values = checksums({"step": np.int32(2)})["step"]
  assert content["state"]["step"] == same_values
  for damaged, said in (({**content, "position": {"at": 0}}, "checksum of its run metadata"),
                        ({k: v for k, v in content.items() if k != "checksum"}, "holds no checksum")):
    run.write_text(json.dumps(damaged))
    with caplog.at_level(logging.WARNING, "jaxft"), Checkpoints(tmp_path) as checkpoints:
      state, position = checkpoints.restore(toy.start()[0])
    assert int(state.step) == 1 and position == {"at": 0} and said in caplog.text
    (tmp_path / "unreadable-2").rename(tmp_path / "2")


def test_other_arrays_than_the_state_s_are_refused_by_name(tmp_path):
  fill(tmp_path, 1)
  fresh = toy.start()[0]
  other = fresh._replace(trainable=(fresh.trainable[0], {"layers": {"down": {"kernel": jax.ShapeDtypeStruct(
      (2, 32, 8), np.float16)}}}))
  with pytest.raises(ValueError, match=r"step 1 in .* holds other arrays than state; 1 differ: trainable.1.layers.down."
                                       r"kernel: float32\[2, 32, 8\] there, float16\[2, 32, 8\] here"):
    Checkpoints(tmp_path).restore(other)


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


def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path):
  state, frozen, step = toy.start()
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  with Checkpoints(tmp_path / "run") as checkpoints:
    checkpoints.save(state)
    checkpoints.wait()
    state, _ = step(state, frozen, toy.dataset()[0])
    # No file may grow beyond 100 bytes from here on: every write fails half way, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
      with pytest.raises(OSError, match="a checkpoint could not be written to") as error:
        checkpoints.save(state)
        checkpoints.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{tmp_path / 'run' / '0'} is the last complete one" in str(error.value)
    checkpoints.save(state)
  assert Checkpoints(tmp_path / "run").steps == [0, 1]
