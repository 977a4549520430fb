"""Whether a base is the base of the models: how far they are from it, seen in a sample before anything is merged."""

import math

import numpy as np

from jaxft.merging.kernels.namespace import float32
from jaxft.merging.streaming.plan import Plan

# Fine-tuned models lie nearer to their base than a third of its length; models trained apart, further than its length.
_FAR = 0.7
_TENSORS, _ENTRIES = 8, 1 << 14


def far_from_base(plan: Plan) -> list[str]:
  """A note for each model whose distance to the base is like that between models that have nothing in common.

  Looks at the beginnings of some large matrices.
  """
  tensors = [t for t in plan.tensors if t.base is not None and t.per_model is not None and len(t.entry.shape) > 1]
  tensors = sorted(tensors, key=lambda t: (-t.entry.nbytes, t.name))[:: max(len(tensors) // _TENSORS, 1)][:_TENSORS]
  squares: dict[str, float] = {}
  total = 0.0
  for tensor in tensors:
    part = lambda x: float32(x.array().reshape(-1)[:_ENTRIES])
    base = part(tensor.base)
    total += float(np.dot(base, base))
    for name, operand in tensor.models.items():
      difference = part(operand) - base
      squares[name] = squares.get(name, 0.0) + float(np.dot(difference, difference))
    for operand in tensor.operands:
      operand.release()
  base_name = str(plan.recipe.base)
  return [
      f"{name} is {math.sqrt(square / total):.2f} times as far from {base_name} as that is long: is it its base?"
      for name, square in squares.items() if total and math.sqrt(square / total) > _FAR]
