"""Autoregressive generation by any model that steps: one compiled loop, whatever the lengths of the rows."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from jaxft.decoding import sampling
from jaxft.decoding.prompts import checked_prompt
from jaxft.decoding.stepwise import Stepwise, scores
from jaxft.decoding.stop_strings import StopStrings
from jaxft.signatures import AnyArray, check_arrays


class Generated(NamedTuple):
  """What `generate` returns.

  Attributes:
    tokens: the new tokens, without the prompt; the pad id after a row's end. A row whose logits are no distribution
      (NaN from a broken checkpoint, say) ends with -1, which is no token.
    mask: True at the tokens of the row, its stop token or -1 included.
    log_probs: of each token under the model itself, before temperature and filters; NaN at -1; 0 after the end.
    sampling_log_probs: of each token under what it was drawn from, after temperature and filters, which corrections of
      off-policy training ask for: 0 at temperature 0; NaN at -1; 0 after the end.
  """

  tokens: Int[Array, "batch max_new_tokens"]
  mask: Bool[Array, "batch max_new_tokens"]
  log_probs: Float[Array, "batch max_new_tokens"]
  sampling_log_probs: Float[Array, "batch max_new_tokens"]


@check_arrays
def generate(
    model: Stepwise,
    prompt: Int[AnyArray, "batch time"],
    key: Key[Array, ""],
    *,
    max_new_tokens: int,
    samples: int = 1,
    mask: Shaped[AnyArray, "batch time"] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop: Sequence[int] | None = None,
    stop_strings: StopStrings | None = None,
) -> Generated:
  """Continues prompts until each row has drawn a stop token or spelled a stop string, or for `max_new_tokens`.

  Compiled once for each shape of the prompt and choice of the keyword arguments that are not arrays.

  >>> after = lambda t, room: (20.0 * jax.nn.one_hot(t + 1, 4), t)  # scores of a model that counts, and its state
  >>> model = Stepwise(params={}, start=lambda params, prompt, mask, room: after(prompt[:, -1], room),
  ...                  step=lambda params, state, tokens, running: after(tokens, None), vocab_size=4, eos_id=3)
  >>> generate(model, jnp.array([[0], [1]]), jax.random.key(0), max_new_tokens=4, temperature=0).tokens
  Array([[1, 2, 3, 0],
         [2, 3, 0, 0]], dtype=int32)

  Args:
    model: `stepwise_decoder(params, config)`, or any other that steps.
    prompt: token ids, padded on either side; every row has a real one.
    key: for the draws; unused at temperature 0.
    max_new_tokens: at most so many.
    samples: >= 1, how often each prompt is continued, those of one prompt being neighbours; it is read once.
    mask: nonzero at the real tokens of the prompt; None where all are.
    temperature: divides the scores; 0 takes the likeliest token.
    top_k, top_p, min_p: filters of `jaxft.decoding.sampling`, in this order; None leaves one out.
    stop: token ids that end a row; None takes the model's eos_id.
    stop_strings: strings that end a row, of the function of that name; the token that completes one is kept whole, and
      `before_stop` cuts the text.

  Raises:
    ValueError: a temperature, top_k, top_p or min_p out of range; max_new_tokens or samples below 1; a mask of another
      shape; a row without a real token; a real token or a stop token outside the vocabulary; prompt and new tokens that
      reach beyond the model's `max_length`; logits that are not `[batch, vocab_size]`; stop strings of another
      vocabulary.
  """
  sampling.check_limits(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
  mask, stop = checked_prompt(model, prompt, mask, stop, max_new_tokens=max_new_tokens)
  if stop_strings is not None and stop_strings.after.shape[1] != model.vocab_size:
    raise ValueError(f"stop_strings must have a column for each of the model's {model.vocab_size} tokens (vocab_size); "
                     f"got {stop_strings.after.shape[1]}")
  if samples < 1:
    raise ValueError(f"samples must be at least 1; got {samples}")
  return _generate(
      model, prompt, mask, key, stop_strings, max_new_tokens=max_new_tokens, samples=samples, temperature=temperature,
      limits=(top_k, top_p, min_p), stop=stop)


@partial(jax.jit, static_argnames=("max_new_tokens", "samples", "temperature", "limits", "stop"))
def _generate(model, prompt, mask, key, strings, *, max_new_tokens, samples, temperature, limits, stop):
  batch = prompt.shape[0] * samples
  filters = [
      lambda logits, keep=keep, limit=limit: keep(logits, limit)
      for keep, limit in zip((sampling.top_k, sampling.top_p, sampling.min_p), limits, strict=True)
      if limit is not None
  ]

  def draw(logits, step, done):
    logits = scores(model, logits, batch)
    token = sampling.sample(jax.random.fold_in(key, step), logits, temperature=temperature, filters=filters)
    own = _log_prob(logits, token)
    drawn = jnp.zeros_like(own)
    if temperature > 0:
      drawn = _log_prob(sampling.filtered(logits, temperature=temperature, filters=filters), token)
    out = [jnp.where(done, 0.0, jnp.where(token < 0, jnp.nan, x)) for x in (own, drawn)]
    return jnp.where(done, model.pad_id, token), out

  def put(out, step, token, log_probs, done):
    column = lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new[:, None].astype(x.dtype), step, axis=1)
    return Generated(*map(column, out, (token, ~done, *log_probs)))

  def stopped(token, spelled):
    ends = jnp.isin(token, jnp.array(stop, jnp.int32)) | (token < 0)
    if strings is None:
      return ends, spelled
    spelled = jnp.asarray(strings.after)[spelled, jnp.maximum(token, 0)]
    return ends | (spelled == len(strings.after) - 1), spelled

  def one_more(state):
    step, token, done, spelled, memory, out = state
    logits, memory = model.step(model.params, memory, token, ~done)
    token, log_probs = draw(logits, step, done)
    ends, spelled = stopped(token, spelled)
    return step + 1, token, done | ends, spelled, memory, put(out, step, token, log_probs, done)

  def unfinished(state):
    step, _, done, *_ = state
    return (step < max_new_tokens) & ~done.all()

  # The last new token is drawn but never read.
  logits, memory = model.start(model.params, prompt, mask, max_new_tokens - 1)
  if samples > 1:
    rows = jnp.repeat(jnp.arange(prompt.shape[0]), samples)
    logits, memory = scores(model, logits, prompt.shape[0])[rows], model.take(memory, rows)
  done = jnp.zeros(batch, bool)
  token, log_probs = draw(logits, 0, done)
  shape = (batch, max_new_tokens)
  nothing = jnp.zeros(shape, jnp.float32)
  out = Generated(jnp.full(shape, model.pad_id, jnp.int32), jnp.zeros(shape, bool), nothing, nothing)
  ends, spelled = stopped(token, jnp.zeros(batch, jnp.int32))
  state = (jnp.asarray(1), token, ends, spelled, memory, put(out, 0, token, log_probs, done))
  return jax.lax.while_loop(unfinished, one_more, state)[-1]


def _log_prob(logits: Float[Array, "batch vocab"], token: Int[Array, " batch"]) -> Float[Array, " batch"]:
  return jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]
