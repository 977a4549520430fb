"""A trace on demand: it is there, the run goes on as without it, and the signal is given back."""

import os
import signal

import jax
import numpy as np
import pytest

from jaxft.training import fit
from jaxft.training.traces import STEPS, Traces
from tests.training import toy


class Signalling:
  """Batches, at some of which this process gets the signal."""

  def __init__(self, at=()):
    self.batches, self.at = toy.dataset(), at

  def __getitem__(self, step):
    if step in self.at:
      os.kill(os.getpid(), signal.SIGUSR2)
    return self.batches[step]


def test_a_run_is_traced_where_it_is_asked_to_and_computes_the_same(tmp_path, capfd):
  def run(at, steps, **options):
    state, frozen, step = toy.start(None)
    return fit(step, state, frozen, Signalling(at), steps=steps, progress=False, **options).trainable

  before = signal.getsignal(signal.SIGUSR2)
  # The second request comes while the first is served; the third is cut off by the end of the run.
  traced = run((1, 3, 9), 11, traces=tmp_path)
  assert signal.getsignal(signal.SIGUSR2) is before
  plain = run((), 11)
  jax.tree.map(np.testing.assert_array_equal, traced, plain)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["step_10", "step_2"]
  assert all(list(p.rglob("*.xplane.pb")) for p in tmp_path.iterdir())
  said = capfd.readouterr().err
  assert f"steps 3 to {2 + STEPS} are traced" in said and said.count("the trace is written") == 2


def test_a_trace_that_cannot_be_made_does_not_end_the_run(tmp_path, capfd, monkeypatch):
  def refuse(folder):
    raise RuntimeError("Profile has already been started")

  monkeypatch.setattr(jax.profiler, "start_trace", refuse)
  tracer = Traces(tmp_path)
  tracer.ask()
  tracer.after(1, None)
  tracer.end()
  assert "no trace was started: Profile has already" in capfd.readouterr().err


@pytest.mark.parametrize("folder", [None, "traces"])
def test_without_a_folder_the_signal_is_left_alone(folder, tmp_path):
  seen = []
  before = signal.signal(signal.SIGUSR2, lambda *_: seen.append(1))
  try:
    state, frozen, step = toy.start(None)
    fit(step, state, frozen, Signalling((0,)), steps=1, progress=False, traces=folder and tmp_path / folder)
  finally:
    signal.signal(signal.SIGUSR2, before)
  assert len(seen) == (folder is None)
