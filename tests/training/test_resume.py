"""A run that was killed and resumed is the run that was not: bit for bit, in parameters, data order and metrics."""

import os
import signal
import socket
import time

import numpy as np
import pytest

from jaxft.processes import RESTART
from jaxft.training import Checkpoints, JsonLines, Stopped, fit, make_mesh, read_json_lines
from tests.processes import start_python
from tests.training import toy

STEPS, SAVE_EVERY = 20, 4


def start_toy(folder, *arguments, **options):
  return start_python("-m", "tests.training.run_toy", folder, *arguments, **options)


def run_toy(folder, *arguments, code=0):
  process = start_toy(folder, *arguments)
  output, _ = process.communicate(timeout=300)
  assert process.returncode == code, output[-3000:]


def lines(path):
  return [{k: v for k, v in line.items() if k != "examples_per_second"} for line in read_json_lines(path)]


def finals(folder):
  with np.load(folder / "final.npz") as file:
    return [file[name] for name in file.files]


def kill_at_a_step(folder):
  # Step 7 lies in the second of the epochs of 4.5 batches, between two saves.
  run_toy(folder, "--kill-at", 7, code=-signal.SIGKILL)
  assert Checkpoints(folder / "checkpoints").steps == [4]
  assert [line["step"] for line in lines(folder / "metrics.jsonl")][-1] in (6, 7)


def kill_in_a_save(folder):
  run_toy(folder, "--kill-in-save", 12, code=-signal.SIGKILL)
  assert any("tmp" in p.name for p in (folder / "checkpoints").iterdir()), "the kill came after the save"
  assert [p.name for p in sorted((folder / "checkpoints").iterdir()) if p.name.isdigit()] == ["4", "8"]


@pytest.mark.parametrize("kills", [
    pytest.param((kill_at_a_step, kill_in_a_save), marks=pytest.mark.exhaustive), (kill_in_a_save,)])
def test_killed_in_mid_epoch_and_in_mid_save_equals_unbroken_bit_for_bit(tmp_path, kills):
  for kill in kills:
    kill(tmp_path / "broken")
  folders = tmp_path / "unbroken", tmp_path / "broken"
  for folder in folders:
    state = fit_toy(folder, STEPS, writers=[JsonLines(folder / "metrics.jsonl")], log_every=1)
    np.savez(folder / "final.npz", *toy.arrays(state))
  for x, y in zip(*map(finals, folders), strict=True):
    np.testing.assert_array_equal(x, y)
  expected, resumed = (lines(folder / "metrics.jsonl") for folder in folders)
  assert resumed == expected
  assert [line["step"] for line in expected] == list(range(1, STEPS + 1))


def fit_toy(folder, steps, mesh=None, batches=None, **options):
  state, frozen, step = toy.start(mesh)
  with Checkpoints(folder / "checkpoints") as checkpoints:
    return fit(step, state, frozen, toy.dataset() if batches is None else batches, steps=steps,
               checkpoints=checkpoints, progress=False, **{"save_every": SAVE_EVERY, **options})


@pytest.mark.parametrize("before, after", [
    pytest.param({"data": 1}, {"data": 4}, marks=pytest.mark.exhaustive),
    ({"data": 1, "fsdp": 8}, {"data": 1, "fsdp": 2}),
])
def test_resumed_on_another_number_of_devices_equals_unbroken_to_rounding(tmp_path, before, after):
  fit_toy(tmp_path, 7, make_mesh(**before), save_every=None)
  resumed = fit_toy(tmp_path, 14, make_mesh(**after), save_every=None)
  state, frozen, step = toy.start()
  for t in range(14):
    state, _ = step(state, frozen, toy.dataset()[t])
  for x, y in zip(toy.arrays(state), toy.arrays(resumed), strict=True):
    np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5)


def test_an_iterator_goes_on_where_it_was(tmp_path):
  orders = []

  class Noted:
    """A real Grain iterator whose rows are written down."""

    def __init__(self):
      self._inner = iter(toy.dataset().to_iter_dataset())

    def __next__(self):
      batch = next(self._inner)
      orders.append(batch["id"].tolist())
      return batch

    def get_state(self):
      return self._inner.get_state()

    def set_state(self, state):
      self._inner.set_state(state)

  whole = fit_toy(tmp_path / "whole", 10, batches=Noted(), save_every=None)
  expected, orders = orders, []
  fit_toy(tmp_path / "cut", 6, batches=Noted(), save_every=None)
  resumed = fit_toy(tmp_path / "cut", 10, batches=Noted(), save_every=None)
  assert orders == expected and len(expected) == 10
  for x, y in zip(toy.arrays(whole), toy.arrays(resumed), strict=True):
    np.testing.assert_array_equal(x, y)
  with pytest.raises(ValueError, match="was saved from an iterator"):
    fit_toy(tmp_path / "cut", 12)


@pytest.mark.parametrize("signum, status", [(signal.SIGINT, 130), (signal.SIGTERM, RESTART)])
def test_a_signal_ends_the_run_after_the_step_with_everything_saved(tmp_path, capsys, signum, status):
  data = toy.dataset()

  class Interrupted:
    def __getitem__(self, t):
      if t == 5:
        os.kill(os.getpid(), signum)
      return data[t]

  before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
  writer = JsonLines(tmp_path / "metrics.jsonl")
  with pytest.raises(Stopped) as stopped:
    fit_toy(tmp_path, 20, batches=Interrupted(), save_every=None, writers=[writer], log_every=1)
  assert stopped.value.code == status and stopped.value.step == 6
  assert f"stopped by {signal.Signals(signum).name} after step 6; the last checkpoint is" in capsys.readouterr().err
  assert {s: signal.getsignal(s) for s in before} == before
  assert Checkpoints(tmp_path / "checkpoints").steps == [6]
  assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_two_processes_train_as_one_and_stop_together(tmp_path):
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  shared = tmp_path / "shared"
  processes = [
      start_toy(shared, "--steps", 10**6, "--final-at", 6, "--process", i, "--port", port, devices=2) for i in range(2)]
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline and all(p.poll() is None for p in processes):
    if (shared / "metrics.jsonl").exists() and len(lines(shared / "metrics.jsonl")) >= 10:
      break
    time.sleep(0.1)
  # A SIGTERM to one of them, as a pod is preempted: both stop after the same step, and save it together.
  processes[1].send_signal(signal.SIGTERM)
  outputs = [p.communicate(timeout=120)[0] for p in processes]
  assert [p.returncode for p in processes] == [RESTART] * 2, "\n".join(o[-2000:] for o in outputs)
  step = Checkpoints(shared / "checkpoints").latest
  assert f"stopped by SIGTERM after step {step}" in outputs[0]
  alone = fit_toy(tmp_path / "alone", 6, make_mesh(data=4))
  for x, y in zip(finals(shared), toy.arrays(alone), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
