"""A model replaced by its tangent at the pretrained weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.signatures import explain_errors
from jaxft.tree.paths import Tree


@explain_errors
def linearize(apply: Callable[..., Any], params: Tree) -> Callable[..., Any]:
  """`f(delta, *inputs) = apply(params, *inputs) + (d/dt) apply(params + t delta, *inputs) at t = 0`.

  One forward pass and one of its tangent, together about twice the cost of `apply`; the Jacobian is never formed. The
  output is linear in delta, so that task vectors trained through it add up without bending one another.

  >>> apply = lambda params, x: x * params["w"] ** 2
  >>> linear = linearize(apply, {"w": jnp.array(3.0)})
  >>> float(linear({"w": jnp.array(1.0)}, 10.0)), float(apply({"w": jnp.array(4.0)}, 10.0))  # 10 * (9 + 6), 10 * 16
  (150.0, 160.0)

  Args:
    apply: `(params, *inputs) -> array or tree of arrays`.
    params: where the tangent is taken. Leaves that are not floating point do not move.

  Returns:
    The function of a task vector, whose None leaves do not move, and the inputs of `apply`. For a linear combination
    of task vectors pass the combination: `f(join(frozen, c))` with frozen split from zeros.

  Source: Ortiz-Jimenez et al. 2023 (arXiv 2305.12827); combined with learned coefficients in Zhang et al. 2024
  (arXiv 2407.02880).
  """

  def tangent(w: Any, d: Any) -> Any:
    if not jnp.issubdtype(w.dtype, jnp.floating):
      return np.zeros(w.shape, jax.dtypes.float0)
    return jnp.zeros_like(w) if d is None else d.astype(w.dtype)

  def linearized(delta: Tree, *inputs: Any) -> Any:
    tangents = jax.tree.map(tangent, params, delta)
    value, change = jax.jvp(lambda p: apply(p, *inputs), (params,), (tangents,))
    return jax.tree.map(jnp.add, value, change)

  return linearized
