"""What a layer keeps for its backward pass, and what it computes again."""

from collections.abc import Callable
from typing import Any

import jax

from jaxft.checks import nearest

Policy = str | Callable[..., Any]

# "none" keeps every intermediate that the backward pass reads; "dots" keeps the outputs of the weight matrices, and
# recomputes norms, activations and attention scores, which are cheap in FLOPs and large; "full" keeps the layer's
# input alone and runs its forward pass twice.
POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def rematerialize(layer: Callable[..., Any], policy: Policy, *, in_scan: bool) -> Callable[..., Any]:
  """Wraps one layer so that its backward pass keeps what the policy says.

  Args:
    layer: a pure function.
    policy: a name of `POLICIES`, or a policy of `jax.checkpoint`.
    in_scan: a scan's body needs no barrier against common-subexpression elimination, an unrolled layer does.

  Raises:
    ValueError: an unknown policy.
  """
  if isinstance(policy, str):
    if policy not in POLICIES:
      raise ValueError(f"remat must be a policy of jax.checkpoint or one of {list(POLICIES)}; got {policy!r}; "
                       f"{nearest(policy, list(POLICIES))}")
    keep = POLICIES[policy]
    if keep is None:
      return layer
  else:
    keep = policy
  return jax.checkpoint(layer, policy=keep, prevent_cse=not in_scan)
