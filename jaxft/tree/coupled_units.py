"""Units of a model and the leaves that they have in common, found from its function: heads, channels, the stream.

What `function/unit_walk.py` never finds told apart may change its order, in all leaves that meet along the way at once.
"""

import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

from jaxft.signatures import explain_errors
from jaxft.tree.coupled import Coupled, Member
from jaxft.tree.depth import stack_axes
from jaxft.tree.function.held import Factor, Held
from jaxft.tree.function.traced import trace
from jaxft.tree.function.unit_ties import Node, Ties
from jaxft.tree.function.unit_value import Value
from jaxft.tree.function.unit_walk import Walk
from jaxft.tree.paths import Tree


@explain_errors
def coupled_units(apply: Callable[..., Any], params: Tree, *inputs: Any) -> list[Coupled]:
  """The units whose order is nobody's, each with all leaves that have them.

  >>> def apply(p, x):
  ...   return jnp.tanh(x @ p["up"] + p["bias"]) @ p["down"]
  >>> params = {"up": jnp.ones((3, 8)), "bias": jnp.ones(8), "down": jnp.ones((8, 2))}
  >>> coupled_units(apply, params, jnp.ones((5, 3)))
  [Coupled(members=(Member(glob='up', axis=-1, unit=1, copies=1), Member(glob='bias', axis=-1, unit=1, copies=1), \
Member(glob='down', axis=-2, unit=1, copies=1)), group=8)]

  Args:
    apply: `(params, *inputs) -> anything`, without dropout.
    params: arranged, arrays or shapes: matrices `[in, out]`, stacks in front (`axes_of(...).arrange`, with
      `axes.arranged(apply)`).
    *inputs: arrays or shapes.

  Returns:
    What `permute_coupled` takes: for any order of the units, within their groups, the function stays the same. Units
    of the residual stream have one order for all layers; others may have one for each. Of a kernel that queries, keys
    and values share, or gate and up, the parts have one order, if they are of one size; where they are not, their
    units are left out, with a warning.

  Source: the search for coupled structures of Fang et al. 2023 (arXiv 2301.12900), here in the jaxpr.
  """
  traced = trace(apply, params, inputs)
  ties = Ties()
  walk = Walk(ties)
  whole = lambda path, shape: Held(path, tuple((Factor(i, 1, n),) for i, n in enumerate(shape)))
  given = [Value(held=(whole(path, leaf.shape),)) for path, leaf in traced.arrays]
  for value in walk(traced.jaxpr, [*given, *[Value(varies=True)] * traced.inputs]):
    walk.fix_all(value)
  leaves = dict(traced.arrays)
  if uneven := [path for path, (axis, _, size) in walk.uneven if len(shape := leaves[path].shape) - 1 == axis > 0
                and shape[axis] == size]:
    cut = f"{', '.join(uneven[:4])}{', ...' if len(uneven) > 4 else ''} {'is' if len(uneven) == 1 else 'are'} cut"
    warnings.warn(f"coupled_units: {cut} in parts of unequal size, such as queries of more heads than keys have; the "
                  "units of what is cut are left out", stacklevel=2)
  found = [_as_coupled(members, leaves, walk.parted) for members in ties.classes()]
  return [coupled for coupled in found if coupled is not None]


def _as_coupled(
    members: Sequence[Node], leaves: dict[str, Any], parted: Collection[Node]
) -> Coupled | None:
  """None for layers and experts, and for what is of one leaf alone."""
  found = []
  for path, (axis, stride, size) in members:
    leaf = leaves[path]
    if axis < stack_axes(path, leaf):
      return None
    found.append(Member(path, axis - leaf.ndim, stride, copies=leaf.shape[axis] // (size * stride)))
  if len(found) < 2:
    return None
  # Groups that all leaves have as well may change their order each for itself; parts of one leaf may not.
  cut = any(p.path == n.path and p.factor.axis == n.factor.axis and p.factor.stride > n.factor.stride
            for p in parted for n in members)
  if len({member.copies for member in found}) == 1 and not cut:
    found = [member._replace(copies=1) for member in found]
  return Coupled(tuple(dict.fromkeys(found)), group=members[0].factor.size)
