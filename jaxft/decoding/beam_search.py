"""Beam search on the decoder's cache: the likeliest continuations that a search of fixed width finds."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxft.decoding.prompts import checked_prompt, prompt_length
from jaxft.models import decoder
from jaxft.models.cache import Cache
from jaxft.models.decoder import DecoderConfig
from jaxft.models.sites import Edits
from jaxft.signatures import AnyArray

UNREACHED = -1e9  # of a beam that does not exist: finite, so that sums and quotients stay finite


class Beams(NamedTuple):
  """What `beam_search` returns, best first.

  Attributes:
    tokens: the new tokens of each beam, its stop token included; the pad id after it.
    mask: True at the tokens of the beam.
    scores: `log p / length ** length_penalty`; -inf where there are fewer beams than asked for; NaN in a row where the
      model gave a running beam no distribution (NaN from a broken checkpoint, say), whose search ends there.
  """

  tokens: Int[Array, "batch beams max_new_tokens"]
  mask: Bool[Array, "batch beams max_new_tokens"]
  scores: Float[Array, "batch beams"]


class _Found(NamedTuple):
  """Hypotheses, running or finished."""

  tokens: Int[Array, "batch k max_new_tokens"]
  lengths: Int[Array, "batch k"]
  scores: Float[Array, "batch k"]


class _Search(NamedTuple):
  step: Int[Array, ""]
  running: _Found  # scores are plain sums of log-probabilities
  finished: _Found  # scores carry the length penalty
  going: Bool[Array, " batch"]  # False once no running beam of the row can enter the finished ones
  broken: Bool[Array, " batch"]  # True once the logits of a running beam were no distribution
  cache: Cache


def beam_search(
    params: dict[str, Any],
    config: DecoderConfig,
    prompt: Int[AnyArray, "batch time"],
    *,
    beams: int,
    max_new_tokens: int,
    mask: Shaped[AnyArray, "batch time"] | None = None,
    length_penalty: float = 1.0,
    stop: Sequence[int] | None = None,
    dtype: Any = jnp.float32,
    edits: Edits | None = None,
    prompt_edits: Edits | None = None,
) -> Beams:
  """Continues each prompt by the `beams` best continuations found, scored by `log p(y | x) / |y| ** length_penalty`.

  Each step extends the running beams by every token and takes the `(1 + stops) * beams` likeliest extensions, of which
  the first `beams` without a stop token run on. An extension that ends is kept if it is among the first `beams` of the
  step. A row is done when the likeliest running beam, at its present length, scores below the worst of `beams` finished
  ones, or at `max_new_tokens`, where what still runs counts as finished. Deterministic; one beam is greedy decoding.

  >>> config = DecoderConfig(vocab_size=4, dim=4, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=2, mlp_dim=2,
  ...                        tie_embeddings=False, eos_id=3)
  >>> params = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: decoder.init(jax.random.key(0), config)))
  >>> params |= {"embed": {"tokens": {"embedding": jnp.eye(4)}}, "norm": {"scale": jnp.ones(4)}}
  >>> after = jnp.array([[0.0, 0.6, 0.4, 0.0], [0.2, 0.3, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
  >>> params["head"]["kernel"] = jnp.log(after + 1e-9) / 2  # the norm makes 2 of a 1
  >>> found = beam_search(params, config, jnp.array([[0]]), beams=2, max_new_tokens=2, length_penalty=0.0)
  >>> found.tokens[0].tolist(), np.exp(found.scores[0]).round(2)  # greedily it would be 0.6 * 0.5
  ([[2, 3], [1, 2]], array([0.4, 0.3], dtype=float32))

  Args:
    params, config: a model of `jaxft.models.decoder`; params may hold structured leaves.
    prompt: token ids, padded on either side; every row has a real one.
    beams: width of the search, and number of continuations returned.
    max_new_tokens: at most so many.
    mask: nonzero at the real tokens of the prompt; None where all are.
    length_penalty: exponent of the length, the stop token counted; above 0 it favours long continuations.
    stop: token ids that end a beam; None takes the config's eos_id.
    dtype: of the activations and the cache, which holds `batch * beams` rows.
    edits, prompt_edits: as of `jaxft.decoding.generate`.

  Raises:
    ValueError: beams below 1, a length_penalty that is not finite, or a prompt that `generate` refuses.

  The rules are those of transformers' `generate(num_beams=beams, num_return_sequences=beams, early_stopping=False)`,
  which this is tested against. With a length penalty above 0 the rule for a row's end is a heuristic: a longer beam
  might still have overtaken.
  """
  if beams < 1:
    raise ValueError(f"beams must be at least 1; got {beams}")
  if not math.isfinite(length_penalty):
    raise ValueError(f"length_penalty must be finite; got {length_penalty}")
  edits = {} if edits is None else edits
  prompt_edits = edits if prompt_edits is None else prompt_edits
  mask, stop = checked_prompt(
      config, prompt, mask, stop, max_new_tokens=max_new_tokens, edits=prompt_edits, dtype=dtype)
  return _beam_search(
      params, prompt, mask, edits, prompt_edits, config=config, beams=beams,
      max_new_tokens=max_new_tokens, length_penalty=length_penalty, stop=stop, dtype=jnp.dtype(dtype))


@partial(jax.jit, static_argnames=("config", "beams", "max_new_tokens", "stop", "dtype"))
def _beam_search(
    params, prompt, mask, edits, prompt_edits, *, config, beams, max_new_tokens, length_penalty, stop, dtype
):
  batch = prompt.shape[0]
  pad = 0 if config.pad_id is None else config.pad_id
  empty = lambda scores: _Found(
      jnp.full((batch, beams, max_new_tokens), pad, jnp.int32), jnp.zeros((batch, beams), jnp.int32), scores)

  def extend(search: _Search, logits: Float[Array, "batch beams vocab"]) -> tuple[_Search, Int[Array, "batch beams"]]:
    """One step of the search, and the beam that each of the new running beams continues."""
    sums = search.running.scores[..., None] + jax.nn.log_softmax(logits)
    broken = search.broken | jnp.isnan(sums).any((1, 2)) & search.going
    vocab = sums.shape[-1]
    sums, flat = jax.lax.top_k(sums.reshape(batch, -1), min(beams * (1 + max(1, len(stop))), beams * vocab))
    parents, tokens = flat // vocab, flat % vocab
    length = search.step + 1
    lengths = jnp.full_like(tokens, length)
    new = _take(search.running, parents)
    new = _Found(new.tokens.at[:, :, search.step].set(tokens), lengths, sums)
    ends = jnp.isin(tokens, jnp.array(stop, jnp.int32)) | (length == max_new_tokens)

    kept = ends & (jnp.arange(tokens.shape[1]) < beams) & (sums > UNREACHED / 2) & search.going[:, None]
    done = new._replace(scores=jnp.where(kept, sums / length**length_penalty, UNREACHED))
    finished = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), search.finished, done)
    finished = _take(finished, jax.lax.top_k(finished.scores, beams)[1])

    onward, chosen = jax.lax.top_k(jnp.where(ends, sums + UNREACHED, sums), beams)
    running = _take(new, chosen)._replace(scores=onward)
    going = search.going & ~broken & (onward[:, 0] / length**length_penalty > finished.scores[:, -1])
    search = search._replace(step=length, running=running, finished=finished, going=going, broken=broken)
    return search, _gather(parents, chosen)

  def one_more(search: _Search) -> _Search:
    token = search.running.tokens[:, :, search.step - 1].reshape(-1, 1)
    hidden, cache, _ = decoder.hidden_states(params, config, token, cache=search.cache, dtype=dtype, edits=edits)
    logits = decoder.logits(params, config, hidden[:, 0]).reshape(batch, beams, -1)
    search, parents = extend(search, logits)
    rows = (jnp.arange(batch)[:, None] * beams + parents).ravel()
    return search._replace(cache=_rows(cache, rows))

  length = prompt_length(config, prompt.shape, prompt_edits, dtype)
  cache = decoder.init_cache(config, batch, length + max_new_tokens - 1, dtype)
  hidden, cache, _ = decoder.hidden_states(
      params, config, prompt, mask=mask, cache=cache, dtype=dtype, edits=prompt_edits)
  last = length - 1 - jnp.argmax(mask[:, ::-1], axis=1)
  logits = decoder.logits(params, config, hidden[jnp.arange(batch), last])
  # The prompt is one beam; of the others nothing may be continued.
  first = jnp.where(jnp.arange(beams) == 0, 0.0, UNREACHED) * jnp.ones((batch, 1))
  search = _Search(
      jnp.zeros((), jnp.int32), empty(first), empty(jnp.full((batch, beams), UNREACHED)), jnp.ones(batch, bool),
      jnp.zeros(batch, bool),
      _rows(cache, jnp.repeat(jnp.arange(batch), beams)))
  search, _ = extend(search, jnp.broadcast_to(logits[:, None], (batch, beams, logits.shape[-1])))
  search = jax.lax.while_loop(lambda s: (s.step < max_new_tokens) & s.going.any(), one_more, search)
  tokens, lengths, scores = search.finished
  real = jnp.arange(max_new_tokens) < lengths[..., None]
  scores = jnp.where(scores > UNREACHED / 2, scores, -jnp.inf)
  return Beams(jnp.where(real, tokens, pad), real, jnp.where(search.broken[:, None], jnp.nan, scores))


def _gather(x: Array, index: Int[Array, "batch k"]) -> Array:
  return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)


def _take(found: _Found, index: Int[Array, "batch k"]) -> _Found:
  return jax.tree.map(lambda x: _gather(x, index), found)


def _rows(cache: Cache, rows: Int[Array, " rows"]) -> Cache:
  """The cache of the chosen rows, in their order."""
  return cache._replace(
      key=cache.key[:, rows], value=cache.value[:, rows], seen=cache.seen[rows], position=cache.position[rows])
