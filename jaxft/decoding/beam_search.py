"""Beam search by any model that steps: the likeliest continuations that a search of fixed width finds."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxft.decoding.prompts import checked_prompt
from jaxft.decoding.stepwise import Stepwise, scores
from jaxft.signatures import AnyArray, check_arrays

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
  memory: Any  # the model's, of batch * beams rows


@check_arrays
def beam_search(
    model: Stepwise,
    prompt: Int[AnyArray, "batch time"],
    *,
    beams: int,
    max_new_tokens: int,
    mask: Shaped[AnyArray, "batch time"] | None = None,
    length_penalty: float = 1.0,
    stop: Sequence[int] | None = None,
) -> Beams:
  """Continues each prompt by the `beams` best continuations found, scored by `log p(y | x) / |y| ** length_penalty`.

  Each step extends the running beams by every token and takes the `(1 + stops) * beams` likeliest extensions, of which
  the first `beams` without a stop token run on. An extension that ends is kept if it is among the first `beams` of the
  step. A row is done when the likeliest running beam, at its present length, scores below the worst of `beams` finished
  ones, or at `max_new_tokens`, where what still runs counts as finished. Deterministic; one beam is greedy decoding.

  >>> after = jnp.log(jnp.array([[0, 0.6, 0.4, 0], [0.2, 0.3, 0.5, 0], [0, 0, 0, 1], [0, 0, 0, 1]]) + 1e-9)
  >>> model = Stepwise(params=after, start=lambda after, prompt, mask, room: (after[prompt[:, -1]], {}),
  ...                  step=lambda after, state, tokens, running: (after[tokens], state), vocab_size=4, eos_id=3)
  >>> found = beam_search(model, jnp.array([[0]]), beams=2, max_new_tokens=2, length_penalty=0.0)
  >>> found.tokens[0].tolist(), np.exp(found.scores[0]).round(2)  # greedily it would be 0.6 * 0.5
  ([[2, 3], [1, 2]], array([0.4, 0.3], dtype=float32))

  Args:
    model: `stepwise_decoder(params, config)`, or any other that steps; it holds `batch * beams` rows.
    prompt: token ids, padded on either side; every row has a real one.
    beams: width of the search, and number of continuations returned.
    max_new_tokens: at most so many.
    mask: nonzero at the real tokens of the prompt; None where all are.
    length_penalty: exponent of the length, the stop token counted; above 0 it favours long continuations.
    stop: token ids that end a beam; None takes the model's eos_id.

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
  mask, stop = checked_prompt(model, prompt, mask, stop, max_new_tokens=max_new_tokens)
  return _beam_search(
      model, prompt, mask, beams=beams, max_new_tokens=max_new_tokens, length_penalty=length_penalty, stop=stop)


@partial(jax.jit, static_argnames=("beams", "max_new_tokens", "stop"))
def _beam_search(model, prompt, mask, *, beams, max_new_tokens, length_penalty, stop):
  batch, pad = prompt.shape[0], model.pad_id
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
    tokens = search.running.tokens[:, :, search.step - 1].ravel()
    logits, memory = model.step(model.params, search.memory, tokens, jnp.ones(tokens.shape, bool))
    search, parents = extend(search, scores(model, logits, batch * beams).reshape(batch, beams, -1))
    rows = (jnp.arange(batch)[:, None] * beams + parents).ravel()
    return search._replace(memory=model.take(memory, rows))

  # The last new token is drawn but never read.
  logits, memory = model.start(model.params, prompt, mask, max_new_tokens - 1)
  # The prompt is one beam; of the others nothing may be continued.
  first = jnp.where(jnp.arange(beams) == 0, 0.0, UNREACHED) * jnp.ones((batch, 1))
  search = _Search(
      jnp.zeros((), jnp.int32), empty(first), empty(jnp.full((batch, beams), UNREACHED)), jnp.ones(batch, bool),
      jnp.zeros(batch, bool),
      model.take(memory, jnp.repeat(jnp.arange(batch), beams)))
  logits = scores(model, logits, batch)
  search, _ = extend(search, jnp.broadcast_to(logits[:, None], (batch, beams, logits.shape[-1])))
  search = jax.lax.while_loop(lambda s: (s.step < max_new_tokens) & s.going.any(), one_more, search)
  tokens, lengths, found = search.finished
  real = jnp.arange(max_new_tokens) < lengths[..., None]
  found = jnp.where(found > UNREACHED / 2, found, -jnp.inf)
  return Beams(jnp.where(real, tokens, pad), real, jnp.where(search.broken[:, None], jnp.nan, found))


def _gather(x: Array, index: Int[Array, "batch k"]) -> Array:
  return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)


def _take(found: _Found, index: Int[Array, "batch k"]) -> _Found:
  return jax.tree.map(lambda x: _gather(x, index), found)

