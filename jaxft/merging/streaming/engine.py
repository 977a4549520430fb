"""Running a plan: tensors in, merged, out, in a pool of threads, with a bound on what is held.

NumPy releases the interpreter's lock inside its loops, so threads merge different tensors at the same time. Inputs are
mapped and dropped after use, so that memory depends neither on the depth nor on the size of the models, but on their
largest leaf.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from jaxft.merging.leafwise import merge_leaf
from jaxft.merging.methods import METHODS, streams
from jaxft.merging.streaming.plan import Plan, TensorPlan
from jaxft.merging.streaming.shards import ShardWriter

# Output arrays up to this many bytes are kept for the next tensor of the thread: fresh memory is dear to touch.
_KEPT = 1 << 24
# So often the pages of inputs are dropped that a merge goes on reading: what it needs of them once more comes from the
# system's cache, and what it has done with does not add up to its whole leaf in every model.
_RELEASE_SECONDS = 0.05


def default_threads() -> int:
  """As many as there are processors to run on."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_plan(
    plan: Plan, writer: ShardWriter, *, threads: int | None = None,
    progress: Callable[[int], Any] = lambda nbytes: None,
) -> list[str]:
  """Merges all tensors of a plan.

  Args:
    plan: the plan.
    writer: takes the tensors of the plan.
    threads: at most so many tensors at once; None takes the number of processors.
    progress: called with the bytes that were read and written for a tensor.

  Returns:
    What the user should know.
  """
  # In the order in which they lie in the first input, so that disks read on.
  order = sorted(plan.tensors, key=lambda tensor: tensor.operands[0].position)
  notes: list[str] = []
  kept = threading.local()
  stopped = threading.Event()

  def run(tensor: TensorPlan) -> int:
    if stopped.is_set():
      return 0
    try:
      if tensor.per_model is None:
        array = _copied(tensor, notes)
      else:
        array = merge_tensor(plan, tensor, out=_output(tensor, kept))
      writer.write(tensor.name, array)
    finally:
      _release(tensor)
    return sum(x.stored for x in tensor.operands) + tensor.entry.nbytes

  pool = ThreadPoolExecutor(threads or default_threads(), "merge")
  try:
    for done in _bounded(pool, run, order, plan.budget, threads or default_threads()):
      progress(done)
  finally:
    stopped.set()
    pool.shutdown(cancel_futures=True)
  return notes


def merge_tensor(plan: Plan, tensor: TensorPlan, *, out: np.ndarray | None = None) -> np.ndarray:
  """One tensor of a plan, in memory."""
  method = METHODS[plan.recipe.method]
  drawn = {"streams": streams(plan.seed, tensor.name, len(tensor.models))} if method.random else {}
  settings = method.settings(tensor.per_model, tensor.parameters, **drawn)
  base = None if tensor.base is None else tensor.base.array()
  models = [operand.array() for operand in tensor.models.values()]
  return merge_leaf(method.leafwise, models, base, settings, dtype=tensor.entry.dtype, out=out)


def _bounded(
    pool: ThreadPoolExecutor, run: Callable[[TensorPlan], int], order: list[TensorPlan], budget: int, threads: int
) -> Iterator[int]:
  """Runs tensors in order, as many at once as there are threads and as the budget allows; yields what each returns."""
  running: dict[Future[int], TensorPlan] = {}

  def finish(until: Callable[[], bool]) -> Iterator[int]:
    while running and not until():
      done = wait(running, timeout=_RELEASE_SECONDS, return_when=FIRST_COMPLETED).done
      for future in done:
        del running[future]
        yield future.result()
      if not done:
        for tensor in running.values():
          _release(tensor)

  for i, tensor in enumerate(order):
    yield from finish(lambda: len(running) < threads and sum(t.held for t in running.values()) + tensor.held <= budget)
    running[pool.submit(run, tensor)] = tensor
    if i + 1 < len(order):
      for operand in order[i + 1].operands:
        operand.prefetch()
  yield from finish(lambda: False)


def _release(tensor: TensorPlan) -> None:
  for operand in tensor.operands:
    operand.release()


def _output(tensor: TensorPlan, kept: threading.local) -> np.ndarray:
  entry = tensor.entry
  if entry.nbytes > _KEPT:
    return np.empty(entry.shape, entry.dtype)
  if not hasattr(kept, "buffer") or kept.buffer.nbytes < entry.nbytes:
    kept.buffer = np.empty(entry.nbytes, np.uint8)
  return kept.buffer[:entry.nbytes].view(entry.dtype).reshape(entry.shape)


def _copied(tensor: TensorPlan, notes: list[str]) -> np.ndarray:
  """An integer tensor: that of the base, or of the first model."""
  first, *others = (operand.array() for operand in tensor.operands)
  if not all(np.array_equal(first, other) for other in others):
    where = "the base" if tensor.base is not None else next(iter(tensor.models))
    notes.append(f"{tensor.name} holds integers that differ between the models; they are those of {where}")
  return first
