"""Log-probabilities of tokens and sequences from hidden states and a head: the logits are held in pieces.

Values and gradients are those of `token_log_probs` and `sequence_log_probs` of all logits. A reference model's are the
same calls with its states and its head; nothing of them is kept for a backward pass that does not come.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from jaxft.checks import in_range
from jaxft.leaves import dot
from jaxft.leaves.products import dot_transposed
from jaxft.losses.divergence.kl import negative_log_likelihood
from jaxft.losses.language import sequence_sums, token_weights
from jaxft.losses.linear_cross_entropy import check_head, in_pieces, linear_cross_entropy
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def linear_token_log_probs(
    hidden: Float[AnyArray, "batch time dim"],
    head: Any,
    tokens: Int[AnyArray, "batch time"],
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
    *,
    segment_ids: Int[AnyArray, "batch time"] | None = None,
    temperature: float = 1.0,
    transposed: bool = False,
    chunk: int = 256,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
  """`token_log_probs(hidden @ head / temperature, tokens, where)`, whose logits are held `chunk` positions at a time.

  Args:
    hidden: states at each position, for the token that follows.
    head, transposed, chunk: see `linear_cross_entropy`.
    tokens, where, segment_ids: see `token_log_probs`.
    temperature: > 0, at which the tokens were sampled.

  Returns:
    `(values, weights)`, float32, aligned with the tokens; both are 0 where nothing is wanted or predicted.

  Raises:
    ValueError: temperature <= 0, shapes that do not fit, or a chunk below 1.

  Example:
    >>> hidden, head, tokens = jnp.ones((1, 3, 2)), jnp.zeros((2, 4)), jnp.array([[1, 2, 3]])
    >>> values, weights = linear_token_log_probs(hidden, head, tokens)
    >>> np.array(values).round(3), weights  # log 1/4
    (array([[ 0.   , -1.386, -1.386]], dtype=float32), Array([[0., 1., 1.]], dtype=float32))
  """
  in_range("temperature", temperature, "(0, inf)")
  weights = token_weights(tokens, where, segment_ids=segment_ids)
  hidden = hidden if temperature == 1 else hidden / temperature
  nll, _ = linear_cross_entropy(
      hidden, head, jnp.roll(tokens, -1, axis=-1), where=jnp.roll(weights, -1, axis=-1), transposed=transposed,
      chunk=chunk)
  return jnp.where(weights != 0, -jnp.roll(nll, 1, axis=-1), 0.0), weights


@check_arrays
def linear_sequence_log_probs(
    hidden: Float[AnyArray, "batch time dim"],
    head: Any,
    tokens: Int[AnyArray, "batch time"],
    mask: Bool[AnyArray, "batch time"] | Int[AnyArray, "batch time"],
    *,
    normalize: Literal["tokens"] | None = None,
    segment_ids: Int[AnyArray, "batch time"] | None = None,
    temperature: float = 1.0,
    transposed: bool = False,
    chunk: int = 256,
) -> tuple[Float[Array, "batch *segments"], Float[Array, "batch *segments"]]:  # noqa: F821
  """`sequence_log_probs(hidden @ head / temperature, tokens, mask)`, whose logits are held `chunk` positions at a time.

  Args:
    hidden, head, temperature, transposed, chunk: see `linear_token_log_probs`.
    tokens, mask, normalize, segment_ids: see `sequence_log_probs`.

  Returns:
    `(values, weights)`, float32, of the sequences, as of `sequence_log_probs`.

  Raises:
    ValueError: an unknown `normalize`, or as of `linear_token_log_probs`.

  Example:
    >>> hidden, head, tokens = jnp.ones((1, 3, 2)), jnp.zeros((2, 4)), jnp.array([[1, 2, 3]])
    >>> values, weights = linear_sequence_log_probs(hidden, head, tokens, jnp.array([[0, 1, 1]]))
    >>> np.array(values).round(3), weights  # 2 log 1/4
    (array([-2.773], dtype=float32), Array([1.], dtype=float32))
  """
  log_probs, weights = linear_token_log_probs(
      hidden, head, tokens, mask != 0, segment_ids=segment_ids, temperature=temperature, transposed=transposed,
      chunk=chunk)
  total, count = (sequence_sums(x, segment_ids) for x in (log_probs, weights))
  return total / jnp.maximum(count, 1) if normalize == "tokens" else total, (count > 0).astype(jnp.float32)


class TokenStatistics(NamedTuple):
  """Of each token its log-probability, and of the distribution that predicts it the entropy and the collision.

  Attributes:
    log_probs: of the tokens, in nats.
    entropies: `-sum_v p_v log p_v`.
    log_collisions: `log sum_v p_v^2`, which WPO measures log-probabilities from.
    weights: what the tokens weigh; all others are 0 where it is.
  """

  log_probs: Float[Array, "batch time"]
  entropies: Float[Array, "batch time"]
  log_collisions: Float[Array, "batch time"]
  weights: Float[Array, "batch time"]


@check_arrays
def token_statistics(
    hidden: Float[AnyArray, "batch time dim"],
    head: Any,
    tokens: Int[AnyArray, "batch time"],
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
    *,
    segment_ids: Int[AnyArray, "batch time"] | None = None,
    temperature: float = 1.0,
    transposed: bool = False,
    chunk: int = 256,
) -> TokenStatistics:
  """Log-probabilities, entropies and collisions of tokens, whose logits are held `chunk` positions at a time.

  All have gradients, by forming the logits of each piece once more; where only log-probabilities are wanted,
  `linear_token_log_probs` is cheaper.

  Args:
    hidden, head, tokens, where, segment_ids, temperature, transposed, chunk: see `linear_token_log_probs`.

  Raises:
    ValueError: temperature <= 0 or a chunk below 1.

  Example:
    >>> hidden, head, tokens = jnp.ones((1, 2, 2)), jnp.zeros((2, 4)), jnp.array([[1, 2]])
    >>> of = token_statistics(hidden, head, tokens)
    >>> of.entropies.round(3), of.log_collisions.round(3)  # log 4 and log 1/4
    (Array([[0.   , 1.386]], dtype=float32), Array([[ 0.   , -1.386]], dtype=float32))
  """
  in_range("temperature", temperature, "(0, inf)")
  in_range("chunk", chunk, "[1, inf)")
  check_head("head", head, hidden, transposed)
  weights = token_weights(tokens, where, segment_ids=segment_ids)
  counts = jnp.roll(weights, -1, axis=-1) != 0
  labels = jnp.where(counts, jnp.roll(tokens, -1, axis=-1), 0)
  hidden = jnp.where(counts[..., None], hidden, 0)

  @jax.checkpoint
  def piece(hidden, labels, counts):
    logits = (dot_transposed if transposed else dot)(hidden, head).astype(jnp.float32) / temperature
    log_p = jax.nn.log_softmax(logits)
    entropies = -jnp.sum(jnp.exp(log_p) * jnp.where(jnp.isneginf(log_p), 0.0, log_p), axis=-1)
    found = (-negative_log_likelihood(log_p, labels, None), entropies, jax.nn.logsumexp(2 * log_p, axis=-1))
    return tuple(jnp.where(counts, x, 0.0) for x in found)

  found = in_pieces(-(-labels.shape[-1] // chunk), piece, hidden, labels, counts)
  log_probs, entropies, log_collisions = (jnp.roll(x, 1, axis=-1) for x in found)
  return TokenStatistics(log_probs, entropies, log_collisions, weights)
