"""A veto on n-grams: what would complete one is not drawn, or less readily."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxft.checks import in_range
from jaxft.decoding.stepwise import Stepwise
from jaxft.signatures import AnyArray, check_arrays, explain_errors


@check_arrays
def ngram_veto(
    logits: Float[AnyArray, "batch vocab"], prefix: Int[AnyArray, "batch before"], blocked: Int[AnyArray, "grams n"], *,
    penalty: float = math.inf,
) -> Float[Array, "batch vocab"]:
  """Takes a penalty off the scores of all tokens that complete a blocked n-gram behind the prefix.

  Args:
    logits: of the next token.
    prefix: the last n - 1 tokens of each row, -1 where a row has fewer.
    blocked: the n-grams, such as the risky spans of `jaxft.analysis.provenance`; at least one.
    penalty: > 0; infinite forbids. A row all of whose tokens are forbidden is no distribution any more.

  Raises:
    ValueError: a prefix that is not of n - 1 tokens, or a penalty that is not above 0.

  Example:
    >>> ngram_veto(jnp.zeros((1, 3)), jnp.array([[7, 8]]), jnp.array([[7, 8, 1], [8, 8, 2]]))
    Array([[  0., -inf,   0.]], dtype=float32)

  Source: the provenance-aware decoding of Das et al. 2025, TraceAlign (arXiv 2508.02063), whose code has a
  penalty of 1.

  transformers: `NoBadWordsLogitsProcessor`
  """
  in_range("penalty", 1 / penalty if penalty else math.nan, "[0, inf)")
  n = blocked.shape[1]
  if prefix.shape[1] != n - 1:
    raise ValueError(f"prefix must be of {n - 1} tokens, one less than the n-grams; got {prefix.shape[1]}")
  completes = jnp.all(jnp.asarray(prefix)[:, None] == jnp.asarray(blocked)[:, :-1], axis=-1)  # [batch, grams]
  vetoed = jnp.zeros(logits.shape, bool).at[:, jnp.asarray(blocked)[:, -1]].max(completes, mode="drop")
  return jnp.where(vetoed, jnp.asarray(logits) - penalty, logits)


@explain_errors
def with_ngram_veto(model: Stepwise, blocked: Int[AnyArray, "grams n"], *, penalty: float = math.inf) -> Stepwise:
  """A model that steps under `ngram_veto`, over prompt and answer; for `generate` and `beam_search`.

  Args:
    model: `stepwise_decoder(params, config)`, or any other that steps.
    blocked: the n-grams, of two tokens or more; with none the model is as it was.
    penalty: see `ngram_veto`.

  Raises:
    ValueError: n-grams that are no table of two or more token ids, or a penalty that is not above 0.

  Example:
    >>> after = lambda t, room: (20.0 * jax.nn.one_hot(t + 1, 4), t)  # scores of a model that counts, and its state
    >>> counts = Stepwise(params={}, start=lambda params, prompt, mask, room: after(prompt[:, -1], room),
    ...                   step=lambda params, state, tokens, running: after(tokens, None), vocab_size=4)
    >>> model = with_ngram_veto(counts, np.array([[0, 1, 2]]))
    >>> logits, state = model.start(model.params, jnp.array([[0]]), jnp.array([[True]]), 2)
    >>> logits, state = model.step(model.params, state, jnp.array([1]), jnp.array([True]))
    >>> logits
    Array([[  0.,   0., -inf,   0.]], dtype=float32)
  """
  grams = np.asarray(blocked)
  if grams.ndim != 2 or grams.shape[1] < 2 or not np.issubdtype(grams.dtype, np.integer) or grams.min(initial=0) < 0:
    raise ValueError(f"blocked must be token ids [grams, n >= 2]; got {grams.dtype} of shape {grams.shape}")
  in_range("penalty", 1 / penalty if penalty else math.nan, "[0, inf)")
  if not len(grams):
    return model
  start, step, take, length = _calls(
      model.start, model.step, model.take, model.length, grams.shape[1] - 1, penalty)
  return Stepwise(
      params={"model": model.params, "blocked": jnp.asarray(grams, jnp.int32)}, start=start, step=step, take=take,
      length=length, vocab_size=model.vocab_size,
      max_length=model.max_length, eos_id=model.eos_id, pad_id=model.pad_id)


@functools.cache
def _calls(
    start: Any, step: Any, take: Any, length: Any, before: int, penalty: float
) -> tuple[Callable[..., Any], ...]:
  """The same objects for the same settings, so that loops are not compiled again."""

  def begin(params, prompt, mask, room):
    logits, state = start(params["model"], prompt, mask, room)
    # The last real tokens of each row, wherever its padding is: real ones are sorted to the end, in their order.
    order = jnp.argsort(jnp.asarray(mask) != 0, axis=1, stable=True)
    tokens = jnp.where(jnp.take_along_axis(jnp.asarray(mask) != 0, order, axis=1),
                       jnp.take_along_axis(jnp.asarray(prompt), order, axis=1), -1)
    seen = jnp.pad(tokens, ((0, 0), (before, 0)), constant_values=-1)[:, -before:].astype(jnp.int32)
    return ngram_veto(logits, seen, params["blocked"], penalty=penalty), (state, seen)

  def advance(params, state, tokens, running):
    state, seen = state
    logits, state = step(params["model"], state, tokens, running)
    seen = jnp.concatenate([seen[:, 1:], tokens[:, None].astype(jnp.int32)], axis=1)
    return ngram_veto(logits, seen, params["blocked"], penalty=penalty), (state, seen)

  def positions(params, shape):
    return length(params["model"], shape)

  return begin, advance, lambda state, rows: (take(state[0], rows), state[1][rows]), positions
