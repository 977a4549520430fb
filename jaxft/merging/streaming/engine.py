"""Running a plan: tensors in, merged, out.

Inputs are mapped, and dropped while and after they are read, so that memory depends neither on the depth nor on the
number of models, but on their largest leaf.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxft.merging.leafwise import merge_leaf
from jaxft.merging.methods import METHODS, streams
from jaxft.merging.streaming.plan import Plan, TensorPlan
from jaxft.merging.streaming.shards import ShardWriter
from jaxft.merging.streaming.workers import for_each

# Output arrays up to this many bytes are kept for the next tensor: fresh memory is dear to touch.
_KEPT = 1 << 24


def run_plan(
    plan: Plan, writer: ShardWriter, *, processes: int | None = None,
    progress: Callable[[int], Any] = lambda nbytes: None,
) -> list[str]:
  """Merges all tensors of a plan.

  Args:
    plan: the plan.
    writer: takes the tensors of the plan.
    processes: see `for_each`.
    progress: called with the bytes that were read and written for a tensor.

  Returns:
    What the user should know.

  Raises:
    OSError: the output cannot be written, or a process has died.
  """
  kept = np.empty(0, np.uint8)

  def run(tensor: TensorPlan) -> str | None:
    nonlocal kept
    entry, note = tensor.entry, None
    if tensor.per_model is None:
      array, note = _copied(tensor)
    elif entry.nbytes > _KEPT:
      array = merge_tensor(plan, tensor)
    else:
      kept = kept if kept.nbytes >= entry.nbytes else np.empty(entry.nbytes, np.uint8)
      out = kept[:entry.nbytes].view(entry.dtype).reshape(entry.shape)
      array = merge_tensor(plan, tensor, out=out)
    writer.write(tensor.name, array)
    return note

  # In the order in which they lie in the first input, so that disks read on.
  order = sorted(plan.tensors, key=lambda tensor: tensor.operands[0].position)
  notes = []
  for tensor, note in for_each(plan, order, run, processes=processes):
    progress(sum(x.stored for x in tensor.operands) + tensor.entry.nbytes)
    notes += [note] if note is not None else []
  return notes


def merge_tensor(plan: Plan, tensor: TensorPlan, *, out: np.ndarray | None = None) -> np.ndarray:
  """One tensor of a plan, in memory."""
  method = METHODS[plan.recipe.method]
  drawn = {"streams": streams(plan.seed, tensor.name, len(tensor.models))} if method.random else {}
  settings = method.settings(tensor.per_model, tensor.parameters, **drawn)
  base = None if tensor.base is None else tensor.base.array()
  models = [operand.array() for operand in tensor.models.values()]
  return merge_leaf(method.leafwise, models, base, settings, dtype=tensor.entry.dtype, out=out)


def _copied(tensor: TensorPlan) -> tuple[np.ndarray, str | None]:
  """An integer tensor: that of the base, or of the first model; and what to know where they differ."""
  first, *others = (operand.array() for operand in tensor.operands)
  if all(np.array_equal(first, other) for other in others):
    return first, None
  where = "the base" if tensor.base is not None else next(iter(tensor.models))
  return first, f"{tensor.name} holds integers that differ between the models; they are those of {where}"
