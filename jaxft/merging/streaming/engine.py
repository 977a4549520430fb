"""Running a plan: tensors in, merged, out.

Inputs are mapped, and dropped while and after they are read, so that memory depends neither on the depth nor on the
number of models, but on their largest leaf.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxft.merging.kernels.leafwise import NotFinite, merge_leaf
from jaxft.merging.kernels.methods import METHODS, streams
from jaxft.merging.streaming.plan import Plan, TensorPlan
from jaxft.merging.streaming.shards import ShardWriter
from jaxft.merging.streaming.workers import for_each

# Output arrays up to this many bytes are kept for the next tensor: fresh memory is dear to touch.
_KEPT = 1 << 24


def run_plan(
    plan: Plan, writer: ShardWriter, *, processes: int | None = None, allow_non_finite: bool = False,
    progress: Callable[[int], Any] = lambda nbytes: None,
) -> list[str]:
  """Merges all tensors of a plan.

  Args:
    plan: the plan.
    writer: takes the tensors of the plan.
    processes: see `for_each`.
    allow_non_finite: merge NaN and infinity like other numbers.
    progress: called with the bytes that were read and written for a tensor.

  Returns:
    What the user should know.

  Raises:
    ValueError: a tensor of a model holds NaN or infinity, or the merge overflows its dtype; names both.
    OSError: the output cannot be written, or a process has died.
  """
  kept = np.empty(0, np.uint8)

  def run(tensor: TensorPlan) -> list[str]:
    nonlocal kept
    entry, remarks = tensor.entry, []
    if tensor.per_model is None:
      array = _copied(tensor, remarks.append)
    elif entry.nbytes > _KEPT:
      array = merge_tensor(plan, tensor, say=remarks.append, allow_non_finite=allow_non_finite)
    else:
      kept = kept if kept.nbytes >= entry.nbytes else np.empty(entry.nbytes, np.uint8)
      out = kept[:entry.nbytes].view(entry.dtype).reshape(entry.shape)
      array = merge_tensor(plan, tensor, out=out, say=remarks.append, allow_non_finite=allow_non_finite)
    writer.write(tensor.name, array)
    return remarks

  # In the order in which they lie in the first input, so that disks read on.
  order = sorted(plan.tensors, key=lambda tensor: tensor.operands[0].position)
  said: dict[str, list[str]] = {}
  for tensor, remarks in for_each(plan, order, run, processes=processes):
    progress(sum(x.stored for x in tensor.operands) + tensor.entry.nbytes)
    for remark in remarks:
      said.setdefault(remark, []).append(tensor.name)
  return [_note(remark, names) for remark, names in said.items()]


def _note(remark: str, names: Sequence[str]) -> str:
  """One line for all the tensors of which the same is to be said."""
  if len(names) == 1:
    return f"{names[0]} {remark}"
  return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: each {remark}"


def merge_tensor(
    plan: Plan, tensor: TensorPlan, *, out: np.ndarray | None = None,
    say: Callable[[str], Any] = lambda remark: None, allow_non_finite: bool = False,
) -> np.ndarray:
  """One tensor of a plan, in memory; `say` is called with what the user should know of it."""
  method = METHODS[plan.recipe.method]
  drawn = {"streams": streams(plan.seed, tensor.name, len(tensor.models))} if method.random else {}
  settings = method.settings(tensor.per_model, tensor.parameters, **drawn)
  base = None if tensor.base is None else tensor.base.array()
  models = [operand.array() for operand in tensor.models.values()]
  names = None if allow_non_finite else [*tensor.models, *([] if base is None else [_base_name(plan)])]
  try:
    return merge_leaf(method.leafwise, models, base, settings, dtype=tensor.entry.dtype, out=out, say=say, names=names)
  except NotFinite as e:
    raise ValueError(f"tensor {tensor.name}: {e}; allow_non_finite merges it all the same") from None


def _base_name(plan: Plan) -> str:
  bases = {piece.base for module in plan.recipe.modules for piece in module.slices if piece.base is not None}
  return plan.models[bases.pop()].name if len(bases) == 1 else "the base_model"


def _copied(tensor: TensorPlan, say: Callable[[str], Any]) -> np.ndarray:
  """An integer tensor: that of the base, or of the first model."""
  first, *others = (operand.array() for operand in tensor.operands)
  if not all(np.array_equal(first, other) for other in others):
    where = "the base" if tensor.base is not None else next(iter(tensor.models))
    say(f"holds integers that differ between the models; they are those of {where}")
  return first
