"""Doing something with every tensor of a plan, in a pool of processes, with a bound on what is held.

Processes and not threads: what NumPy computes of a block takes microseconds, and two threads spend them waiting for the
interpreter's lock. They share the mapped inputs and the open files of the output.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from jaxft.merging.streaming.plan import Plan, TensorPlan

# So often the pages of inputs are dropped that are still read: what is needed of them once more comes from the system's
# cache, and what is done with does not add up to a whole leaf of every model.
_RELEASE_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1  # of Linux's prctl

Job = Callable[[TensorPlan], Any]


def default_processes() -> int:
  """As many as there are processors to run on; one where a fork is unsafe: outside Linux, and beside JAX's threads."""
  return len(os.sched_getaffinity(0)) if sys.platform.startswith("linux") and "jax" not in sys.modules else 1


def for_each(
    plan: Plan, tensors: Sequence[TensorPlan], job: Job, *, processes: int | None = None
) -> Iterator[tuple[TensorPlan, Any]]:
  """Calls a function with tensors of a plan, in their order; yields each with its result as it is done.

  Args:
    plan: whose budget bounds what is held.
    tensors: of the plan.
    job: the function. Inputs of a tensor are prefetched before it and dropped after it.
    processes: at most so many at once, each in a process that is forked from this one, unless it is one; None takes
      `default_processes()`.

  Raises:
    OSError: a process has died.
  """
  processes = default_processes() if processes is None else processes
  if processes > 1 and len(tensors) > 1:
    yield from _together(plan, tensors, job, min(processes, len(tensors)))
    return
  with _releasing(job) as run:
    for tensor, following in zip(tensors, [*tensors[1:], None], strict=True):
      _prefetch(following)
      yield tensor, run(tensor)


def _together(
    plan: Plan, tensors: Sequence[TensorPlan], job: Job, processes: int
) -> Iterator[tuple[TensorPlan, Any]]:
  workers: dict[Connection, BaseProcess] = {}
  running: dict[Connection, TensorPlan] = {}

  def finish(until: Callable[[], bool]) -> Iterator[tuple[TensorPlan, Any]]:
    while running and not until():
      ready = wait(list(running))
      for connection in [c for c in running if c in ready]:
        try:
          result, error = connection.recv()
        except (EOFError, ConnectionError):
          raise OSError("a process of the merge has died; the system may be short of memory") from None
        if error is not None:
          raise error
        yield running.pop(connection), result

  try:
    for _ in range(processes):
      connection, process = _fork(tensors, job)
      workers[connection] = process
    for i, tensor in enumerate(tensors):
      fits = lambda held=tensor.held: len(running) < processes and _held(running) + held <= plan.budget
      yield from finish(fits)
      connection = next(c for c in workers if c not in running)
      connection.send(i)
      running[connection] = tensor
      _prefetch(tensors[i + 1] if i + 1 < len(tensors) else None)
    yield from finish(lambda: False)
  finally:
    for connection, process in workers.items():
      process.kill()
      process.join()
      connection.close()


def _held(running: dict[Connection, TensorPlan]) -> int:
  return sum(tensor.held for tensor in running.values())


def _fork(tensors: Sequence[TensorPlan], job: Job) -> tuple[Connection, BaseProcess]:
  context = multiprocessing.get_context("fork")
  ours, theirs = context.Pipe()
  process = context.Process(target=_serve, args=(theirs, tensors, job), daemon=True)
  process.start()
  theirs.close()
  return ours, process


def _serve(requests: Connection, tensors: Sequence[TensorPlan], job: Job) -> None:
  """The life of a forked process: indices of tensors in, `(result, error)` out."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent, which gets it too, ends this process
  if sys.platform.startswith("linux"):
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # nor does it outlive a parent that is killed
  with _releasing(job) as run:
    while True:
      index = requests.recv()
      try:
        answer = run(tensors[index]), None
      except Exception as e:
        answer = None, e
      requests.send(answer)


@contextmanager
def _releasing(job: Job) -> Iterator[Job]:
  """The job with the inputs of its tensor dropped, now and then and at the end."""
  current: list[TensorPlan] = []
  stopped = threading.Event()

  def drop_pages() -> None:
    while not stopped.wait(_RELEASE_SECONDS):
      for tensor in list(current):
        _release(tensor)

  def run(tensor: TensorPlan) -> Any:
    current.append(tensor)
    try:
      return job(tensor)
    finally:
      current.clear()
      _release(tensor)

  thread = threading.Thread(target=drop_pages, daemon=True)
  thread.start()
  try:
    yield run
  finally:
    stopped.set()
    thread.join()


def _prefetch(tensor: TensorPlan | None) -> None:
  for operand in () if tensor is None else tensor.operands:
    operand.prefetch()


def _release(tensor: TensorPlan) -> None:
  for operand in tensor.operands:
    operand.release()
