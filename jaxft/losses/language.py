"""The language-loss kernel: log-probabilities of tokens, their weights, and the ways to reduce them.

Everything is aligned with the tokens: the value at position t belongs to token t and is read from the logits at
position t - 1. The first token has no prediction; its value is 0 and it never counts, whatever the mask says there.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxft.losses.reduction import Mean
from jaxft.transforms.filters import nearest

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]


def token_log_probs(
    logits: Float[Array, "batch time vocab"],
    tokens: Int[Array, "batch time"],
    where: Bool[Array, "batch time"] | None = None,
) -> Float[Array, "batch time"]:
  """Log-probability of each token given those before it: `log softmax(logits[:, t-1])[tokens[:, t]]`, in float32.

  Args:
    logits: logits at each position, for the token that follows.
    tokens: token ids.
    where: tokens that are wanted; the others give 0, and neither their ids nor the logits that would score them have
      any effect, NaN included.

  Returns:
    Values in nats, 0 at the first position.
  """
  log_probs, _ = _score(logits, tokens, _scored(tokens, where))
  return log_probs


def sequence_log_probs(
    logits: Float[Array, "batch time vocab"],
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    *,
    normalize: Literal["tokens"] | None = None,
) -> Float[Array, "batch"]:
  """Log-probability of the masked tokens of each sequence: multiple choice, GRAPE, DPO and its kin rest on it.

  Args:
    logits: logits at each position, for the token that follows.
    tokens: token ids.
    mask: tokens that count, usually the completion.
    normalize: None sums; "tokens" divides by the number of tokens that count (SimPO, GRAPE). That is not lm-eval's
      `acc_norm`, which divides by characters.

  Returns:
    Nats per sequence, or per token; 0 for a sequence where no token counts.

  Raises:
    ValueError: an unknown `normalize`.
  """
  if normalize not in (None, "tokens"):
    raise ValueError(f"normalize must be None or 'tokens'; got {normalize!r}")
  scored = _scored(tokens, mask)
  total = jnp.sum(_score(logits, tokens, scored)[0], axis=-1)
  return total / jnp.maximum(jnp.sum(scored, axis=-1), 1) if normalize == "tokens" else total


def weighted_nll(
    logits: Float[Array, "batch time vocab"],
    tokens: Int[Array, "batch time"],
    weights: Bool[Array, "batch time"] | Float[Array, "batch time"],
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
  """Next-token cross-entropy and the weights it counts with: `Mean.of(*weighted_nll(...))` is the usual loss.

  `nll_t = -(1 - s) log p(x_t) - s mean_v log p(v) + z (log Z)^2`

  Args:
    logits: logits at each position, for the token that follows.
    tokens: token ids.
    weights: how much each token counts, >= 0: a mask of completions, or weights per token.
    label_smoothing: s in [0, 1): the share of the target spread evenly over the whole vocabulary. Not for logits with
      -inf in them.
    z_loss: z >= 0, the weight of the squared log-normalizer, which keeps logits from drifting (PaLM uses 1e-4).

  Returns:
    values: nats; 0 where the weight is 0.
    weights: float32, with the first position set to 0.

  Raises:
    ValueError: label_smoothing or z_loss out of range.

  Sources: Szegedy et al. 2015 (arXiv 1512.00567), label smoothing; Chowdhery et al. 2022 (arXiv 2204.02311), z-loss.
  """
  if not 0 <= label_smoothing < 1:
    raise ValueError(f"label_smoothing must lie in [0, 1); got {label_smoothing}")
  if not z_loss >= 0:
    raise ValueError(f"z_loss must be >= 0; got {z_loss}")
  scored = _scored(tokens, weights > 0)
  log_probs, (mean_log_probs, log_normalizer) = _score(logits, tokens, scored)
  values = -log_probs
  if label_smoothing:
    values = (1 - label_smoothing) * values - label_smoothing * mean_log_probs
  if z_loss:
    values = values + z_loss * jnp.square(log_normalizer)
  return values, jnp.where(scored, weights, 0).astype(jnp.float32)


def aggregate_tokens(
    values: Float[Array, "batch time"],
    weights: Bool[Array, "batch time"] | Float[Array, "batch time"],
    *,
    mode: Aggregation = "token-mean",
    max_length: int | None = None,
) -> Mean:
  """Reduces values per token in one of the four ways that post-training losses differ by.

  Args:
    values: one value for each token.
    weights: which tokens count, or how much. A sequence where none counts is no sequence.
    mode: "token-mean": `sum w v / sum w`, long sequences count more (SFT, DAPO);
      "seq-mean-token-mean": each sequence its own mean, then the mean of these (GRPO);
      "seq-mean-token-sum": each sequence its sum (DPO-like, REINFORCE);
      "seq-mean-token-sum-norm": that over a constant (Dr. GRPO).
    max_length: the constant of the last mode; None takes the number of columns.

  Returns:
    A `Mean` whose weight counts tokens in the first mode and sequences in the others, so that micro-batches add up.

  Raises:
    ValueError: an unknown mode, or `max_length` with another mode.

  Sources: mode names as in verl; Yu et al. 2025 (arXiv 2503.14476), DAPO; Liu et al. 2025 (arXiv 2503.20783), Dr. GRPO.
  """
  if mode not in get_args(Aggregation):
    known = get_args(Aggregation)
    raise ValueError(f"mode must be one of {', '.join(known)}; got {mode!r}; {nearest(str(mode), known, n=1)}")
  if max_length is not None and mode != "seq-mean-token-sum-norm":
    raise ValueError(f"max_length belongs to mode 'seq-mean-token-sum-norm'; got it with {mode!r}")
  if mode == "token-mean":
    return Mean.of(values, where=weights)
  weights = weights.astype(jnp.float32)
  sums = jnp.sum(jnp.where(weights > 0, values, 0) * weights, axis=-1)
  if mode == "seq-mean-token-mean":
    count = jnp.sum(weights, axis=-1)
    sums = sums / jnp.where(count > 0, count, 1)
  if mode == "seq-mean-token-sum-norm":
    sums = sums / (max_length or values.shape[-1])
  return Mean.of(sums, where=jnp.any(weights > 0, axis=-1))


def _scored(tokens: Int[Array, "batch time"], where: Bool[Array, "batch time"] | None) -> Bool[Array, "batch time"]:
  later = jnp.broadcast_to(jnp.arange(tokens.shape[-1]) > 0, tokens.shape)
  return later if where is None else later & where.astype(bool)


def _score(logits, tokens, scored):
  """Per token: log p(token), and (mean over the vocabulary of log p, log Z); all 0 where `scored` is False."""
  # The targets move left, in place of cutting the logits' last position off: the time axis keeps its length, which
  # may be split over devices, and the [batch, time, vocab] array is not copied.
  wanted = jnp.roll(scored, -1, axis=-1)
  target = jnp.where(wanted, jnp.roll(tokens, -1, axis=-1), 0)
  logits = jnp.where(wanted[..., None], logits, 0).astype(jnp.promote_types(logits.dtype, jnp.float32))
  log_normalizer = jax.nn.logsumexp(logits, axis=-1)
  log_probs = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0] - log_normalizer
  mean_log_probs = jnp.mean(logits, axis=-1) - log_normalizer
  align = lambda x: jnp.where(scored, jnp.roll(x, 1, axis=-1), 0)
  return align(log_probs), (align(mean_log_probs), align(log_normalizer))
