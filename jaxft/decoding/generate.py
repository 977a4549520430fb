"""Autoregressive generation with a cache of keys and values: one compiled loop, whatever the lengths of the rows."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from jaxft.decoding import sampling
from jaxft.decoding.prompts import checked_prompt, prompt_length
from jaxft.models import decoder
from jaxft.models.decoder import DecoderConfig
from jaxft.models.sites import Edits
from jaxft.signatures import AnyArray


class Generated(NamedTuple):
  """What `generate` returns.

  Attributes:
    tokens: the new tokens, without the prompt; the pad id after a row's end. A row whose logits are no distribution
      (NaN from a broken checkpoint, say) ends with -1, which is no token.
    mask: True at the tokens of the row, its stop token or -1 included.
    log_probs: of each token under the model itself, before temperature and filters; NaN at -1; 0 after the end.
  """

  tokens: Int[Array, "batch max_new_tokens"]
  mask: Bool[Array, "batch max_new_tokens"]
  log_probs: Float[Array, "batch max_new_tokens"]


def generate(
    params: dict[str, Any],
    config: DecoderConfig,
    prompt: Int[AnyArray, "batch time"],
    key: Key[Array, ""],
    *,
    max_new_tokens: int,
    mask: Shaped[AnyArray, "batch time"] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop: Sequence[int] | None = None,
    dtype: Any = jnp.float32,
    edits: Edits | None = None,
    prompt_edits: Edits | None = None,
) -> Generated:
  """Continues prompts until each row has drawn a stop token, or for `max_new_tokens`.

  Compiled once for each shape of the prompt and choice of the keyword arguments that are not arrays.

  >>> config = DecoderConfig(vocab_size=4, dim=4, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=2, mlp_dim=2,
  ...                        tie_embeddings=False, eos_id=3)
  >>> params = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: decoder.init(jax.random.key(0), config)))
  >>> params |= {"embed": {"tokens": {"embedding": jnp.eye(4)}}, "norm": {"scale": jnp.ones(4)}}
  >>> params["head"]["kernel"] = jnp.eye(4, k=1)  # after t comes t + 1
  >>> generate(params, config, jnp.array([[0], [1]]), jax.random.key(0), max_new_tokens=4, temperature=0).tokens
  Array([[1, 2, 3, 0],
         [2, 3, 0, 0]], dtype=int32)

  Args:
    params, config: a model of `jaxft.models.decoder`; params may hold structured leaves.
    prompt: token ids, padded on either side; every row has a real one.
    key: for the draws; unused at temperature 0.
    max_new_tokens: at most so many.
    mask: nonzero at the real tokens of the prompt; None where all are.
    temperature: divides the scores; 0 takes the likeliest token.
    top_k, top_p, min_p: filters of `jaxft.decoding.sampling`, in this order; None leaves one out.
    stop: token ids that end a row; None takes the config's eos_id.
    dtype: of the activations and the cache.
    edits: activations to edit in every pass (see `jaxft.models.sites`; wrap functions in `jax.tree_util.Partial`).
    prompt_edits: edits of the prompt's pass in place of `edits`: what has a time axis, such as a soft prompt.

  Raises:
    ValueError: a temperature, top_k, top_p or min_p out of range; max_new_tokens below 1; a mask of another shape; a
      row without a real token; a real token or a stop token outside the vocabulary; prompt and new tokens that reach
      beyond `config.max_length`.
  """
  sampling.check_limits(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
  edits = {} if edits is None else edits
  prompt_edits = edits if prompt_edits is None else prompt_edits
  mask, stop = checked_prompt(
      config, prompt, mask, stop, max_new_tokens=max_new_tokens, edits=prompt_edits, dtype=dtype)
  return _generate(
      params, prompt, mask, key, edits, prompt_edits, config=config,
      max_new_tokens=max_new_tokens, temperature=temperature, limits=(top_k, top_p, min_p), stop=stop,
      dtype=jnp.dtype(dtype),
  )


@partial(jax.jit, static_argnames=("config", "max_new_tokens", "temperature", "limits", "stop", "dtype"))
def _generate(
    params, prompt, mask, key, edits, prompt_edits, *, config, max_new_tokens, temperature, limits, stop, dtype
):
  batch = prompt.shape[0]
  filters = [
      lambda logits, keep=keep, limit=limit: keep(logits, limit)
      for keep, limit in zip((sampling.top_k, sampling.top_p, sampling.min_p), limits, strict=True)
      if limit is not None
  ]
  pad = 0 if config.pad_id is None else config.pad_id

  def draw(hidden, step, done):
    logits = decoder.logits(params, config, hidden)
    token = sampling.sample(jax.random.fold_in(key, step), logits, temperature=temperature, filters=filters)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]
    log_probs = jnp.where(token < 0, jnp.nan, log_probs)
    return jnp.where(done, pad, token), jnp.where(done, 0.0, log_probs)

  def put(out, step, token, log_prob, done):
    column = lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new[:, None].astype(x.dtype), step, axis=1)
    return Generated(column(out.tokens, token), column(out.mask, ~done), column(out.log_probs, log_prob))

  def stopped(token):
    return jnp.isin(token, jnp.array(stop, jnp.int32)) | (token < 0)

  def one_more(state):
    step, token, done, cache, out = state
    hidden, cache, _ = decoder.hidden_states(
        params, config, token[:, None], mask=~done[:, None], cache=cache, dtype=dtype, edits=edits
    )
    token, log_prob = draw(hidden[:, 0], step, done)
    return step + 1, token, done | stopped(token), cache, put(out, step, token, log_prob, done)

  def unfinished(state):
    step, _, done, _, _ = state
    return (step < max_new_tokens) & ~done.all()

  length = prompt_length(config, prompt.shape, prompt_edits, dtype)
  cache = decoder.init_cache(config, batch, length + max_new_tokens - 1, dtype)
  hidden, cache, _ = decoder.hidden_states(
      params, config, prompt, mask=mask, cache=cache, dtype=dtype, edits=prompt_edits
  )
  last = length - 1 - jnp.argmax(mask[:, ::-1], axis=1)
  done = jnp.zeros(batch, bool)
  token, log_prob = draw(hidden[jnp.arange(batch), last], 0, done)
  shape = (batch, max_new_tokens)
  out = Generated(jnp.full(shape, pad, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape, jnp.float32))
  state = (jnp.asarray(1), token, stopped(token), cache, put(out, 0, token, log_prob, done))
  return jax.lax.while_loop(unfinished, one_more, state)[-1]
