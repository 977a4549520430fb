"""Profiler traces of a run in progress: `kill -USR2 PID` has the next steps of that process traced."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from tqdm.auto import tqdm

STEPS = 5


class Traces:
  """Starts a trace at the end of the step in which the signal came, and ends it `STEPS` steps later.

  Args:
    folder: where each trace gets a folder of its own, `step_T`, below it one for each of several processes.
  """

  def __init__(self, folder: Path):
    self._folder, self._asked, self._until = folder, False, 0
    self._at = folder

  def ask(self) -> None:
    """Wants a trace; one that is under way is enough."""
    self._asked = True

  def after(self, step: int, made: Any) -> None:
    """To be called after each step, with arrays that it made: a trace ends when they are there."""
    if self._until and step >= self._until:
      jax.block_until_ready(made)
      self.end()
    elif self._asked and not self._until:
      self._at = self._folder / f"step_{step}"
      if jax.process_count() > 1:
        self._at = self._at / f"process_{jax.process_index()}"
      try:
        jax.profiler.start_trace(self._at)
      except (RuntimeError, OSError) as e:  # another trace is on, or the disk is full: no reason to end a run
        _say(f"no trace was started: {e}")
      else:
        self._until = step + STEPS
        _say(f"steps {step + 1} to {self._until} are traced, to {self._at}")
    else:
      return
    self._asked = False

  def end(self) -> None:
    """Writes the trace that is under way, if there is one."""
    if not self._until:
      return
    self._until = 0
    try:
      jax.profiler.stop_trace()
    except (RuntimeError, OSError) as e:
      _say(f"the trace could not be written to {self._at}: {e}")
    else:
      _say(f"the trace is written: tensorboard --logdir {self._at}")


def _say(words: str) -> None:
  tqdm.write(words, file=sys.stderr)


@contextlib.contextmanager
def traces(folder: Path | None) -> Iterator[Traces | None]:
  """Watches for SIGUSR2 inside the block; None without a folder, and where no handler can be installed.

  Args:
    folder: of all traces of a run.
  """
  here = threading.current_thread() is threading.main_thread()
  if folder is None or not here or not hasattr(signal, "SIGUSR2"):
    yield None
    return
  found = Traces(folder)
  before = signal.signal(signal.SIGUSR2, lambda signum, frame: found.ask())
  try:
    yield found
  finally:
    found.end()
    signal.signal(signal.SIGUSR2, before)
