"""Noise on vectors in the direction that changes a model's answer most: SMART's and SiFT's adversarial smoothness."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from jaxft.checks import in_range, one_of
from jaxft.signatures import AnyArray, check_arrays

Norm = Literal["max", "l2"]
FLOOR = 1e-6  # in the denominator of a step: where the gradient is as small, the step is shorter


def _divergence(p_logits: Array, q_logits: Array) -> Array:
  from jaxft.losses.divergence.kl import symmetric_kl  # here, as data by themselves need no optimizer's library

  return symmetric_kl(p_logits, q_logits)[0]


@check_arrays
def adversarial_noise(
    key: jax.Array,
    logits_of: Callable[[Array], Array],
    inputs: Float[AnyArray, "*batch dim"],
    *,
    init_scale: float | Float[AnyArray, ""] = 1e-2,
    step_size: float | Float[AnyArray, ""] = 1e-4,
    steps: int = 1,
    norm: Norm = "max",
    divergence: Callable[[Array, Array], Array] = _divergence,
    where: Bool[AnyArray, "*batch"] | Num[AnyArray, "*batch"] | None = None,
) -> Float[Array, "*batch dim"]:
  """Noise, then steps up the gradient of how far the answer is from that to the inputs as they are.

      delta_0 ~ N(0, init_scale^2), clipped at 2 init_scale
      delta_{i+1} = delta_i + step_size g / (1e-6 + |g|),    g = d/d delta sum D(f(x + delta), f(x))

  Args:
    key: draws the noise.
    logits_of: the model from vectors, such as normed word embeddings, to logits `[batch, ...]`, with the same dropout
      in every call, or none. Its params are constants here.
    inputs: the vectors.
    init_scale, step_size: >= 0; SiFT's. They may be traced.
    steps: >= 0.
    norm: "max", the greatest entry of each token's vector, or "l2", the length of each row's.
    divergence: `(logits, logits) -> [batch, ...]`, the first of the changed inputs; for numbers, their squared error.
    where: real tokens; the others stay as they are and are in no norm.

  Returns:
    What to add to the inputs, float32, a constant to the gradient. A row whose gradient is not finite keeps its noise.

  Raises:
    ValueError: a number out of range, or an unknown norm.

  Example:
    >>> head = jnp.array([[1.0, -1.0], [0.5, 2.0]])
    >>> inputs = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> delta = adversarial_noise(jax.random.key(0), lambda x: x @ head, inputs, step_size=0.1)
    >>> start = adversarial_noise(jax.random.key(0), lambda x: x @ head, inputs, steps=0)
    >>> np.abs(delta - start).max(-1).round(3)
    array([0.1, 0.1], dtype=float32)

  Sources: Jiang et al. 2019, SMART (arXiv 1911.03437); in this form He et al. 2020, DeBERTa's scale-invariant
  fine-tuning (arXiv 2006.03654), as its code has it.
  """
  for name, value in (("init_scale", init_scale), ("step_size", step_size)):
    if isinstance(value, (int, float)):
      in_range(name, value, "[0, inf)")
  in_range("steps", steps, "[0, inf)")
  one_of("norm", norm, get_args(Norm))
  x = jax.lax.stop_gradient(jnp.asarray(inputs))
  counts = jnp.ones(x.shape[:-1], bool) if where is None else jnp.asarray(where) != 0
  kept = lambda delta: jnp.where(counts[..., None], delta, 0.0)
  delta = kept(jnp.clip(init_scale * jax.random.normal(key, x.shape), -2 * init_scale, 2 * init_scale))
  if not steps:
    return jax.lax.stop_gradient(delta)
  clean = jax.lax.stop_gradient(logits_of(x))
  apart = lambda delta: jnp.sum(divergence(logits_of(x + delta.astype(x.dtype)), clean))
  rows = tuple(range(1, x.ndim))
  for _ in range(steps):
    g = kept(jax.grad(apart)(delta).astype(jnp.float32))
    if norm == "max":
      size = jnp.max(jnp.abs(g), axis=-1, keepdims=True)
    else:
      size = jnp.sqrt(jnp.sum(jnp.square(g), axis=rows, keepdims=True))
    fine = jnp.isfinite(g).all(axis=rows, keepdims=True)
    delta = jnp.where(fine, delta + step_size * g / (FLOOR + size), delta)
  return jax.lax.stop_gradient(delta)


@check_arrays
def adversarial_consistency(
    key: jax.Array,
    logits_of: Callable[[Array], Array],
    inputs: Float[AnyArray, "*batch dim"],
    *,
    divergence: Callable[[Array, Array], Array] = _divergence,
    **options: Any,
) -> Float[Array, "..."]:
  """How far a model's answer to changed inputs is from that to the inputs: `D(f(x + delta), f(x))`.

  The gradient flows through both answers, not through delta or the changed inputs' x. Beside the loss of the task it
  takes a weight of 3 to 5 with SiFT's numbers.

  Args:
    key, logits_of, inputs: as of `adversarial_noise`.
    divergence: as there; `partial(symmetric_kl, stop_targets=True)`'s first value is SiFT's own form.
    **options: of `adversarial_noise`.

  Returns:
    The divergences, `[batch, ...]`.

  Example:
    >>> far = adversarial_consistency(jax.random.key(0), lambda x: 0 * x, jnp.ones((2, 3)))
    >>> far  # a model that ignores its input
    Array([0., 0.], dtype=float32)

  Sources: as of `adversarial_noise`.
  """
  delta = adversarial_noise(key, logits_of, inputs, divergence=divergence, **options)
  x = jnp.asarray(inputs)
  return divergence(logits_of(jax.lax.stop_gradient(x) + delta.astype(x.dtype)), logits_of(x))
