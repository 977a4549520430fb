"""The language-loss kernel: log-probabilities of tokens, their weights, and the ways to reduce them.

Everything is aligned with the tokens: the value at position t belongs to token t and is read from the logits at
position t - 1. The first token of a row, or of a segment of a packed row, has no prediction: its value is 0 and it
never counts, whatever the mask says there. So each function gives its values with what they weigh:
`Mean.of(*weighted_nll(...))`.

`segment_ids` are those of `jaxft.data.pack`: a run of equal numbers is a sequence, of a negative one such as -1 too; 0
alone is padding.
"""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from jaxft.checks import one_of
from jaxft.losses.reduction import Mean
from jaxft.signatures import AnyArray, check_arrays

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]


@check_arrays
def token_weights(
    tokens: Int[AnyArray, "batch time"],
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
    *,
    mask: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
    segment_ids: Int[AnyArray, "batch time"] | None = None,
) -> Float[Array, "batch time"]:
  """How much each token counts: nothing where nothing before it in its own sequence predicts it.

  Args:
    tokens: token ids.
    where: which tokens count, as booleans, or how much, as weights >= 0; None counts all.
    mask: nonzero at real tokens; what follows padding is the first token of its sequence.
    segment_ids: of packed rows.

  Returns:
    The weights, float32.

  Example:
    >>> token_weights(jnp.array([[5, 6, 7, 0]]), where=jnp.array([[1, 1, 1, 0]]), mask=jnp.array([[0, 1, 1, 0]]))
    Array([[0., 0., 1., 0.]], dtype=float32)
  """
  predicted = jnp.broadcast_to(jnp.arange(tokens.shape[-1]) > 0, tokens.shape)
  if mask is not None:
    real = mask.astype(bool)
    predicted &= real & jnp.roll(real, 1, axis=-1)
  if segment_ids is not None:
    predicted &= (segment_ids != 0) & (segment_ids == jnp.roll(segment_ids, 1, axis=-1))
  return predicted.astype(jnp.float32) if where is None else jnp.where(predicted, where.astype(jnp.float32), 0)


@check_arrays
def token_log_probs(
    logits: Float[AnyArray, "batch time vocab"],
    tokens: Int[AnyArray, "batch time"],
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
    *,
    segment_ids: Int[AnyArray, "batch time"] | None = None,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
  """Log-probability of each token given those before it: `log softmax(logits[:, t-1])[tokens[:, t]]`, in float32.

  Args:
    logits: logits at each position, for the token that follows.
    tokens: token ids, in [0, vocab) where they count; others give NaN.
    where: tokens that are wanted, or how much each weighs; the others give 0, and neither their ids nor the logits that
      would score them have any effect, NaN included.
    segment_ids: of packed rows.

  Returns:
    `(values, weights)`, float32: values in nats; both are 0 where nothing is wanted or predicted.

  Example:
    >>> values, weights = token_log_probs(jnp.zeros((1, 3, 4)), jnp.array([[1, 2, 3]]))
    >>> np.array(values).round(3), weights  # no token predicts the first
    (array([[ 0.   , -1.386, -1.386]], dtype=float32), Array([[0., 1., 1.]], dtype=float32))
  """
  weights = token_weights(tokens, where, segment_ids=segment_ids)
  log_probs, _ = _score(logits, tokens, weights != 0)
  return log_probs, weights


@check_arrays
def sequence_log_probs(
    logits: Float[AnyArray, "batch time vocab"],
    tokens: Int[AnyArray, "batch time"],
    mask: Bool[AnyArray, "batch time"] | Int[AnyArray, "batch time"],
    *,
    normalize: Literal["tokens"] | None = None,
    segment_ids: Int[AnyArray, "batch time"] | None = None,
) -> tuple[Float[Array, "batch *segments"], Float[Array, "batch *segments"]]:  # noqa: F821
  """Log-probability of the masked tokens of each sequence: multiple choice, GRAPE, DPO and its kin rest on it.

  Args:
    logits: logits at each position, for the token that follows.
    tokens: token ids, in [0, vocab) where they count; others give NaN.
    mask: nonzero at tokens that count, usually the completion.
    normalize: None sums; "tokens" divides by the number of tokens that count (SimPO, GRAPE). That is not lm-eval's
      `acc_norm`, which divides by characters.
    segment_ids: of packed rows.

  Returns:
    `(values, weights)`, float32: nats per sequence, or per token, and 1; both are 0 for a sequence where no token
    counts. Of packed rows `[batch, time]`: entry k is the row's sequence number k, and the rest weighs 0.

  Raises:
    ValueError: an unknown `normalize`.

  Example:
    >>> logits, tokens = jnp.zeros((1, 3, 4)), jnp.array([[1, 2, 3]])
    >>> values, weights = sequence_log_probs(logits, tokens, jnp.array([[0, 1, 1]]))
    >>> np.array(values).round(3), weights  # 2 log 1/4
    (array([-2.773], dtype=float32), Array([1.], dtype=float32))
  """
  scored = token_weights(tokens, mask, segment_ids=segment_ids) != 0
  log_probs, _ = _score(logits, tokens, scored)
  total, count = (sequence_sums(x, segment_ids) for x in (log_probs, scored.astype(jnp.float32)))
  values = total / jnp.maximum(count, 1) if normalize == "tokens" else total
  return values, (count > 0).astype(jnp.float32)


@check_arrays
def weighted_nll(
    logits: Float[AnyArray, "batch time vocab"],
    tokens: Int[AnyArray, "batch time"],
    weights: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"],
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    segment_ids: Int[AnyArray, "batch time"] | None = None,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
  """Next-token cross-entropy and the weights it counts with: `Mean.of(*weighted_nll(...))` is the usual loss.

  `nll_t = -(1 - s) log p(x_t) - s mean_v log p(v) + z (log Z)^2`

  Args:
    logits: logits at each position, for the token that follows.
    tokens: token ids, in [0, vocab) where they count; others give NaN.
    weights: how much each token counts, >= 0: a mask of completions, or weights per token.
    label_smoothing: s in [0, 1): the share of the target spread evenly over the whole vocabulary. Not for logits with
      -inf in them.
    z_loss: z >= 0, the weight of the squared log-normalizer, which keeps logits from drifting (PaLM uses 1e-4).
    segment_ids: of packed rows.

  Returns:
    `(values, weights)`, float32: values in nats, 0 where the weight is; weights 0 at tokens that nothing predicts.

  Raises:
    ValueError: label_smoothing or z_loss out of range.

  Example:
    >>> values, weights = weighted_nll(jnp.zeros((1, 3, 4)), jnp.array([[1, 2, 3]]), jnp.array([[0, 1, 1]]))
    >>> round(float(Mean.of(values, weights).value), 3)  # log 4
    1.386

  Sources: Szegedy et al. 2015 (arXiv 1512.00567), label smoothing; Chowdhery et al. 2022 (arXiv 2204.02311), z-loss.

  sentence-transformers: `DenoisingAutoEncoderLoss`, of a decoder that reads the embedding of the damaged text

  TRL: `SFTTrainer`, `loss_type` "nll"; `DPOTrainer`, `loss_type` "sft", of the chosen responses
  """
  if not 0 <= label_smoothing < 1:
    raise ValueError(f"label_smoothing must lie in [0, 1); got {label_smoothing}")
  if not 0 <= z_loss < math.inf:
    raise ValueError(f"z_loss must be >= 0 and finite; got {z_loss}")
  weights = token_weights(tokens, weights, segment_ids=segment_ids)
  log_probs, (mean_log_probs, log_normalizer) = _score(logits, tokens, weights != 0)
  values = -log_probs
  if label_smoothing:
    values = (1 - label_smoothing) * values - label_smoothing * mean_log_probs
  if z_loss:
    values = values + z_loss * jnp.square(log_normalizer)
  return values, weights


@check_arrays
def aggregate_tokens(
    values: Float[AnyArray, "batch time"],
    weights: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"],
    *,
    mode: Aggregation = "token-mean",
    max_length: int | None = None,
    count_empty: bool = False,
    segment_ids: Int[AnyArray, "batch time"] | None = None,
) -> Mean:
  """Reduces values per token in one of the four ways that post-training losses differ by.

  Args:
    values: one value for each token.
    weights: which tokens count, or how much. A sequence where none counts is no sequence, unless `count_empty`.
    mode: "token-mean": `sum w v / sum w`, long sequences count more (SFT, DAPO);
      "seq-mean-token-mean": each sequence its own mean, then the mean of these (GRPO);
      "seq-mean-token-sum": each sequence its sum (DPO-like, REINFORCE);
      "seq-mean-token-sum-norm": that over a constant (Dr. GRPO).
    max_length: the constant of the last mode; None takes the number of columns, which for packed rows is no length of a
      sequence and must be given.
    count_empty: the modes of sequences count rows where no token counts as well, with the value 0: TRL's policy losses
      do so where they mask truncated responses. Not of packed rows.
    segment_ids: of packed rows, whose sequences are then counted one by one.

  Returns:
    A `Mean` whose weight counts tokens in the first mode and sequences in the others, so that micro-batches add up.

  Raises:
    ValueError: an unknown mode, `max_length` with another mode, below 1, or missing for packed rows; `count_empty` with
      "token-mean" or packed rows.

  Example:
    >>> values, weights = jnp.array([[1.0, 1.0, 1.0], [4.0, 0.0, 0.0]]), jnp.array([[1, 1, 1], [1, 0, 0]])
    >>> [float(aggregate_tokens(values, weights, mode=m).value) for m in ("token-mean", "seq-mean-token-mean")]
    [1.75, 2.5]

  Sources: mode names as in verl; Yu et al. 2025 (arXiv 2503.14476), DAPO; Liu et al. 2025 (arXiv 2503.20783), Dr. GRPO.
  """
  one_of("mode", mode, get_args(Aggregation))
  if max_length is not None and mode != "seq-mean-token-sum-norm":
    raise ValueError(f"max_length belongs to mode 'seq-mean-token-sum-norm'; got it with {mode!r}")
  if max_length is not None and not 1 <= max_length < math.inf:
    raise ValueError(f"max_length must be at least 1 and finite; got {max_length}")
  if mode == "seq-mean-token-sum-norm" and max_length is None and segment_ids is not None:
    raise ValueError("max_length must be given with segment_ids: a packed row's columns are no length of a sequence")
  if count_empty and (mode == "token-mean" or segment_ids is not None):
    raise ValueError(f"count_empty must be False with mode 'token-mean' and with segment_ids; got it with {mode!r}")
  weights = weights.astype(jnp.float32)
  if segment_ids is not None:
    weights = jnp.where(segment_ids != 0, weights, 0)
  if mode == "token-mean":
    return Mean.of(values, where=weights)
  sums = sequence_sums(jnp.where(weights != 0, values, 0) * weights, segment_ids)
  count = sequence_sums(weights, segment_ids)
  if mode == "seq-mean-token-mean":
    sums = sums / jnp.where(count > 0, count, 1)
  if mode == "seq-mean-token-sum-norm":
    sums = sums / (values.shape[-1] if max_length is None else max_length)
  return Mean.of(sums, where=None if count_empty else count > 0)


def sequence_sums(
    x: Float[AnyArray, "batch time"], segment_ids: Int[AnyArray, "batch time"] | None
) -> Float[Array, "batch *segments"]:  # noqa: F821
  """Sums over rows, or over the sequences of packed rows, `[batch, time]`: entry k is the row's sequence number k."""
  if segment_ids is None:
    return jnp.sum(x, axis=-1)
  starts = (segment_ids != 0) & (segment_ids != jnp.roll(segment_ids, 1, axis=-1))
  starts = starts.at[:, 0].set(segment_ids[:, 0] != 0)
  number = jnp.maximum(jnp.cumsum(starts, axis=-1) - 1, 0)
  add = lambda row, to: jnp.zeros_like(row).at[to].add(row)
  return jax.vmap(add)(jnp.where(segment_ids != 0, x, 0), number)


def _score(logits, tokens, scored):
  """Per token: log p(token), and (mean over the vocabulary of log p, log Z); all 0 where `scored` is False."""
  # The targets move left, in place of cutting the logits' last position off: the time axis keeps its length, which
  # may be split over devices, and the [batch, time, vocab] array is not copied.
  wanted = jnp.roll(scored, -1, axis=-1)
  target = jnp.where(wanted, jnp.roll(tokens, -1, axis=-1), 0)
  known = (target >= 0) & (target < logits.shape[-1])  # a negative one would count from the vocabulary's end
  logits = jnp.where(wanted[..., None], logits, 0).astype(jnp.promote_types(logits.dtype, jnp.float32))
  log_normalizer = jax.nn.logsumexp(logits, axis=-1)
  picked = jnp.take_along_axis(logits, jnp.where(known, target, 0)[..., None], axis=-1)[..., 0]
  log_probs = jnp.where(known, picked, jnp.nan) - log_normalizer
  mean_log_probs = jnp.mean(logits, axis=-1) - log_normalizer
  align = lambda x: jnp.where(scored, jnp.roll(x, 1, axis=-1), 0)
  return align(log_probs), (align(mean_log_probs), align(log_normalizer))
