"""The straight line between two checkpoints: WiSE-FT, and the path along which a loss is looked at."""

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxft.checks import in_range
from jaxft.signatures import AnyArray, explain_errors
from jaxft.tree.paths import Tree, is_float
from jaxft.tree.task_vectors import check_same_leaves


@explain_errors
def interpolate(base: Tree, tuned: Tree, t: float | Float[Array, ""]) -> Tree:
  """`(1 - t) base + t tuned`, in float32, rounded once to the dtype of base; beyond [0, 1] it extrapolates.

  Leaves that are not floating point are the base's.

  >>> import jax.numpy as jnp
  >>> interpolate({"w": jnp.array([0.0, 4.0])}, {"w": jnp.array([2.0, 8.0])}, 0.25)
  {'w': Array([0.5, 5. ], dtype=float32)}

  Args:
    base, tuned: checkpoints with the same leaves.
    t: 0 gives base and 1 gives tuned, bit for bit.

  Raises:
    ValueError: the checkpoints differ in leaves or shapes, or t is not finite.

  Source: Wortsman et al. 2021, WiSE-FT (arXiv 2109.01903).
  """
  check_same_leaves("base", base, "tuned", tuned)
  in_range("t", t)

  def mix(x: AnyArray, y: AnyArray) -> AnyArray:
    if not is_float(x):
      return x
    mixed = lambda: ((1 - t) * x.astype(jnp.float32) + t * y.astype(jnp.float32)).astype(x.dtype)
    if isinstance(t, Tracer):
      return jnp.where(t == 0, x, jnp.where(t == 1, y.astype(x.dtype), mixed()))
    return x if t == 0 else y.astype(x.dtype) if t == 1 else mixed()  # 0 times infinity would be NaN

  return jax.tree.map(mix, base, tuned)
