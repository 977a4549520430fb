"""The Kullback-Leibler divergence of logits, both ways, and what of it may have a gradient."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from jaxft.checks import in_range
from jaxft.losses.language import token_weights
from jaxft.losses.reduction import masked, weighed
from jaxft.signatures import AnyArray, check_arrays

LEAST = -1e30  # in place of -inf: of probability 0, and 0 times it is 0


@check_arrays
def kl_divergence(
    p_logits: Float[AnyArray, "*batch vocab"],
    q_logits: Float[AnyArray, "*batch vocab"],
    *,
    temperature: float = 1.0,
    stop_gradient: bool = True,
    where: Bool[AnyArray, "*batch"] | Num[AnyArray, "*batch"] | None = None,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """`KL(p || q) = sum_v p_v (log p_v - log q_v)` of softmaxes, in nats.

  Args:
    p_logits: of the teacher, or of the pass that the other is to follow.
    q_logits: of the student.
    temperature: > 0, of both. The values are not multiplied by its square.
    stop_gradient: p is a constant: a teacher that is pulled to its student teaches nothing.
    where: positions that count, or how much each weighs.

  Returns:
    `(values, weights)` of the positions, float32.

  Raises:
    ValueError: temperature <= 0 or not finite.

  Example:
    >>> values, weights = kl_divergence(jnp.array([[0.0, 0.0]]), jnp.log(jnp.array([[0.25, 0.75]])))
    >>> np.array(values).round(3), weights
    (array([0.144], dtype=float32), Array([1.], dtype=float32))
  """
  in_range("temperature", temperature, "(0, inf)")
  log_p, log_q = log_softmaxes(where, temperature, p_logits, q_logits)
  log_p = jax.lax.stop_gradient(log_p) if stop_gradient else log_p
  return weighed(divergence_of(log_p, log_q), where)


@check_arrays
def symmetric_kl(
    p_logits: Float[AnyArray, "*batch vocab"],
    q_logits: Float[AnyArray, "*batch vocab"],
    *,
    temperature: float = 1.0,
    stop_targets: bool = False,
    where: Bool[AnyArray, "*batch"] | Num[AnyArray, "*batch"] | None = None,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """`KL(p || q) + KL(q || p)`, which both passes follow: R-Drop takes half of it, SMART and SiFT all.

  Args:
    p_logits, q_logits: of two passes over one input.
    temperature: > 0.
    stop_targets: SiFT's form: the first argument of each divergence is a constant. It has another gradient and the same
      value.
    where: positions that count, or how much each weighs.

  Returns:
    `(values, weights)` of the positions, float32.

  Raises:
    ValueError: temperature <= 0 or not finite.

  Example:
    >>> values, _ = symmetric_kl(jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 0.0]]))
    >>> np.array(values).round(3)
    array([0.924], dtype=float32)

  Sources: Liang et al. 2021, R-Drop (arXiv 2106.14448); Jiang et al. 2019, SMART (arXiv 1911.03437). Microsoft's SiFT,
  of which Zhong et al. 2023, Vega (arXiv 2302.09268), may be the user, adds two entropies to the value.
  """
  in_range("temperature", temperature, "(0, inf)")
  log_p, log_q = log_softmaxes(where, temperature, p_logits, q_logits)
  target = jax.lax.stop_gradient if stop_targets else lambda x: x
  return weighed(divergence_of(target(log_p), log_q) + divergence_of(target(log_q), log_p), where)


@check_arrays
def next_tokens(
    tokens: Int[AnyArray, "batch time"],
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
    *,
    segment_ids: Int[AnyArray, "batch time"] | None = None,
) -> tuple[Int[Array, "batch time"], Float[Array, "batch time"]]:
  """The token that each position predicts, and what it weighs: `tokens` and `token_weights`, moved one to the left.

  Args:
    tokens, where, segment_ids: see `token_weights`.

  Returns:
    `(labels, weights)`: at the last position of a sequence, and wherever no token counts, the weight is 0.

  Example:
    >>> next_tokens(jnp.array([[5, 6, 7]]), jnp.array([[0, 1, 1]]))
    (Array([[6, 7, 5]], dtype=int32), Array([[1., 1., 0.]], dtype=float32))
  """
  weights = token_weights(tokens, where, segment_ids=segment_ids)
  return jnp.roll(tokens, -1, axis=-1), jnp.roll(weights, -1, axis=-1)


def log_softmaxes(where: AnyArray | None, temperature: float, *logits: AnyArray) -> list[Array]:
  """In float32; what does not count is uniform, and a logit of -inf has a probability of 0 and no NaN as gradient."""
  return [jax.nn.log_softmax(jnp.maximum(x, LEAST) / temperature) for x in masked(where, *logits)]


def divergence_of(log_p: Array, log_q: Array) -> Array:
  return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def negative_log_likelihood(log_p: Array, labels: AnyArray, where: AnyArray | None) -> Array:
  """NaN at labels that count and are none of the vocabulary."""
  labels = jnp.asarray(labels) if where is None else jnp.where(jnp.asarray(where) != 0, labels, 0)
  known = (labels >= 0) & (labels < log_p.shape[-1])
  picked = jnp.take_along_axis(log_p, jnp.where(known, labels, 0)[..., None], axis=-1)[..., 0]
  return jnp.where(known, -picked, jnp.nan)
