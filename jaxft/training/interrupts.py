"""Stopping a run by SIGINT (Ctrl-C) or SIGTERM (a scheduler) at the end of a step, with everything saved."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxft.processes import RESTART


class Stopped(SystemExit):
  """A signal ended the run after a finished step; the process ends without a trace, of SIGTERM with RESTART.

  So a scheduler's launcher starts it again, and no launcher does so after Ctrl-C, whose status is 130.

  Attributes:
    step: steps taken.
    checkpoint: what was saved, in words.
  """

  def __init__(self, signum: int, step: int, checkpoint: str):
    super().__init__(RESTART if signum == signal.SIGTERM else 128 + signum)
    self.signum, self.step, self.checkpoint = signum, step, checkpoint

  def __str__(self) -> str:
    return f"stopped by {signal.Signals(self.signum).name} after step {self.step}; {self.checkpoint}"


class Interrupts:
  """Remembers the first signal; the second one of the same kind acts as if nobody had asked."""

  def __init__(self) -> None:
    self.signum: int | None = None

  def asked(self, step: int) -> int | None:
    """The signal to stop for, None to go on; with several processes they all agree on the same step."""
    if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
      return signal.SIGTERM
    return self.signum


@contextlib.contextmanager
def interrupts() -> Iterator[Interrupts]:
  """Watches for SIGINT and SIGTERM inside the block and puts the earlier handlers back at its end.

  Outside the main thread Python cannot install handlers, and with several processes JAX's own preemption service
  receives SIGTERM and has the processes agree: in both cases none are installed here.
  """
  caught = Interrupts()
  if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
    yield caught
    return
  before: dict[int, Any] = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

  def handle(signum: int, frame: object) -> None:
    del frame
    caught.signum = signum
    signal.signal(signum, before[signum])

  for s in before:
    signal.signal(s, handle)
  try:
    yield caught
  finally:
    for s, handler in before.items():
      signal.signal(s, handler)
