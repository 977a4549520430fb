"""CorDA: factors from a decomposition of the weight that the covariance of its inputs orients.

    lora("**/kernel", rank=16, init=corda("preview"), statistics=input_covariances(apply, params))
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxft.checks import in_range
from jaxft.finite import svd
from jaxft.signatures import explain_errors
from jaxft.transforms.low_rank.inits import FactorInit, check_rank_fits, check_statistic, plain, residual

MAX_DOUBLINGS = 20


def damped(
    covariance: Float[Array, "m m"], *, damping: float = 0.01, max_error: float = 0.05
) -> Float[Array, "m m"]:
  """`C + damping * mean(diag C) * I`, the damping doubled until `|C C^-1 - I| < max_error`, at most 20 times."""
  in_range("damping", damping, "[0, inf)")
  return _damped(covariance, damping, max_error)


@jax.jit
def _damped(covariance, damping, max_error) -> Float[Array, "m m"]:
  eye = jnp.eye(len(covariance))
  at = lambda d: covariance + d * jnp.mean(jnp.diag(covariance)) * eye

  def too_far(state: tuple[Array, Array]) -> Array:
    d, doublings = state
    error = jnp.linalg.norm(at(d) @ jnp.linalg.inv(at(d)) - eye)
    return ~(error < max_error) & (doublings < MAX_DOUBLINGS)

  d, _ = jax.lax.while_loop(too_far, lambda state: (2 * state[0], state[1] + 1), (jnp.float32(damping), jnp.int32(0)))
  return at(d)


@explain_errors
def oriented_svd(
    w: Float[Array, "m n"], covariance: Float[Array, "m m"], *, damping: float = 0.01, max_error: float = 0.05
) -> tuple[Float[Array, "m k"], Float[Array, " k"], Float[Array, "k n"]]:
  """CorDA's decomposition `w = inputs @ diag(s) @ outputs`, in order of what w does to inputs of that covariance.

  With C the damped covariance, `C w = v diag(s) outputs` is a singular value decomposition, and `inputs = C^-1 v`.

  >>> inputs, s, outputs = oriented_svd(jnp.diag(jnp.array([3.0, 2.0, 1.0])), jnp.eye(3))
  >>> s.round(2)
  Array([3.03, 2.02, 1.01], dtype=float32)
  """
  c = damped(covariance.astype(jnp.float32), damping=damping, max_error=max_error)
  v, s, outputs = svd(c @ w.astype(jnp.float32))
  return jax.scipy.linalg.solve(c, v, assume_a="pos"), s, outputs


@explain_errors
def corda(
    mode: Literal["preserve", "preview"] = "preview", *, damping: float = 0.01, max_error: float = 0.05
) -> FactorInit:
  """CorDA: the factors are r components of the decomposition of w oriented by the covariance of its inputs.

  >>> from jaxft.transforms import lora
  >>> params = {"up": jnp.diag(jnp.array([3.0, 2.0, 1.0]))}
  >>> transform = lora("up", rank=1, init=corda("preview"), statistics={"up": jnp.eye(3)})
  >>> frozen, _ = transform.split(jax.random.key(0), params)
  >>> jnp.linalg.norm(frozen["up"], axis=0).round(3)
  Array([0., 2., 1.], dtype=float32)

  Args:
    mode: "preserve" (knowledge-preserved) trains the r smallest, with inputs of what is to be kept; "preview"
      (instruction-previewed) the r largest, with inputs of what is to be learned.
    damping, max_error: see `damped`.

  Returns:
    An init of `lora`, which takes covariances `[m, m]` as statistics, up to a constant factor.

  Raises:
    ValueError: mode is neither.

  Source: Yang et al. 2024 (arXiv 2406.05223); components are divided by the scale, as in PEFT.
  """
  if mode not in ("preserve", "preview"):
    raise ValueError(f"mode must be 'preserve' or 'preview'; got {mode!r}")

  def init(key: jax.Array, w: Any, rank: int, scale: float, statistic: Any) -> tuple[Any, Array, Array]:
    del key
    check_rank_fits(rank, w)
    check_statistic(statistic, (w.shape[0],) * 2, "a covariance [m, m]")
    inputs, s, outputs = oriented_svd(plain(w), statistic, damping=damping, max_error=max_error)
    chosen = slice(0, rank) if mode == "preview" else slice(len(s) - rank, None)
    root = jnp.sqrt(s[chosen] / scale)
    return residual(w, inputs[:, chosen] * root, root[:, None] * outputs[chosen], scale)

  return init
