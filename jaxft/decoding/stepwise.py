"""What a decoding loop asks of a language model: a start on the prompts, then one token of every row at a time."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxft.models import decoder
from jaxft.models.cache import Cache
from jaxft.models.decoder import DecoderConfig
from jaxft.models.sites import Edits, Tap
from jaxft.signatures import explain_errors


def _first_axis(state: Any, rows: Int[Array, " rows"]) -> Any:
  return jax.tree.map(lambda x: x[rows], state)


def _time(params: Any, shape: tuple[int, int]) -> int:
  del params
  return shape[1]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["params"],
    meta_fields=["start", "step", "take", "length", "vocab_size", "max_length", "eos_id", "pad_id"])
@dataclasses.dataclass(frozen=True, kw_only=True)
class Stepwise:
  """A language model that gives the scores of each row's next token, one token after another.

  Any model is one: a cache of keys and values, a recurrent state, or all tokens so far in a buffer. The functions are
  part of the compiled program: make them once, not in each call.

  Attributes:
    params: a tree of arrays, handed to the functions.
    start: `(params, prompt [batch, time], mask [batch, time], room) -> (logits [batch, vocab], state)`: the scores
      after each row's last real token, wherever its padding is, and a state with room for so many tokens more.
    step: `(params, state, tokens [batch], running [batch]) -> (logits [batch, vocab], state)`; what a row reads that is
      not running means nothing.
    take: `(state, rows [n]) -> state`, the state of these rows in this order; by default along every leaf's first axis.
    length: `(params, (batch, time)) -> positions` of the start, should it prepend some to the prompt.
    vocab_size: tokens are in [0, vocab_size).
    max_length: positions that the model can read; None where nothing bounds them.
    eos_id: ends a row where no other stop is asked for; None where none does.
    pad_id: fills a row after its end.
  """

  params: Any
  start: Callable[..., Any]
  step: Callable[..., Any]
  take: Callable[..., Any] = _first_axis
  length: Callable[..., int] = _time
  vocab_size: int
  max_length: int | None = None
  eos_id: int | None = None
  pad_id: int = 0


def scores(model: Stepwise, logits: Any, rows: int) -> Float[Array, "rows vocab"]:
  """What the model gave, in float32.

  Raises:
    ValueError: it has another shape than `[rows, vocab_size]`.
  """
  if jnp.shape(logits) != (rows, model.vocab_size):
    raise ValueError(
        f"model must give logits of shape {(rows, model.vocab_size)}, [rows, vocab_size]; got {jnp.shape(logits)}")
  return logits.astype(jnp.float32)


@explain_errors
def stepwise_decoder(
    params: dict[str, Any], config: DecoderConfig, *, dtype: DTypeLike = jnp.float32, edits: Edits | None = None,
    prompt_edits: Edits | None = None,
) -> Stepwise:
  """A decoder of `jaxft.models`, which keeps keys and values of what it has read.

  >>> config = DecoderConfig(vocab_size=5, dim=4, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=4, mlp_dim=4)
  >>> model = stepwise_decoder(decoder.init(jax.random.key(0), config), config)
  >>> logits, cache = model.start(model.params, jnp.array([[1, 2]]), jnp.ones((1, 2), bool), room=1)
  >>> logits, cache = model.step(model.params, cache, jnp.array([3]), jnp.array([True]))
  >>> logits.shape, int(cache.length)
  ((1, 5), 3)

  Args:
    params, config: a model of `jaxft.models.decoder`; params may hold structured leaves. On CPU layers that lie apart
      (`load(..., stacked=False)`) decode faster, a stack being cut anew for each token, and compile more slowly.
    dtype: of the activations and the cache.
    edits: activations to edit in every pass (see `jaxft.models.sites`; wrap functions in `jax.tree_util.Partial`).
    prompt_edits: edits of the prompt's pass in place of `edits`: what has a time axis, such as a soft prompt.
  """
  edits = {} if edits is None else edits
  start, step, length = _calls(config, jnp.dtype(dtype))
  return Stepwise(
      params={"params": params, "edits": edits, "prompt_edits": edits if prompt_edits is None else prompt_edits},
      start=start, step=step, take=_rows_of_cache, length=length, vocab_size=config.vocab_size,
      max_length=config.max_length, eos_id=config.eos_id, pad_id=0 if config.pad_id is None else config.pad_id)


@functools.cache
def _calls(config: DecoderConfig, dtype: Any) -> tuple[Callable[..., Any], ...]:
  """The functions of a decoder, the same objects for the same settings, so that loops are not compiled again."""

  def length(model, shape):
    embedded = jax.ShapeDtypeStruct((*shape, config.dim), dtype)
    return jax.eval_shape(lambda x: Tap(model["prompt_edits"], ())("embed", x), embedded).shape[1]

  def start(model, prompt, mask, room):
    positions = length(model, prompt.shape)
    cache = decoder.init_cache(config, len(prompt), positions + room, dtype)
    hidden, cache, _ = decoder.hidden_states(
        model["params"], config, prompt, mask=mask, cache=cache, dtype=dtype, edits=model["prompt_edits"])
    last = positions - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return decoder.logits(model["params"], config, hidden[jnp.arange(len(prompt)), last]), cache

  def step(model, cache, tokens, running):
    hidden, cache, _ = decoder.hidden_states(
        model["params"], config, tokens[:, None], mask=running[:, None], cache=cache, dtype=dtype,
        edits=model["edits"])
    return decoder.logits(model["params"], config, hidden[:, 0]), cache

  return start, step, length


def _rows_of_cache(cache: Cache, rows: Int[Array, " rows"]) -> Cache:
  return cache._replace(
      key=cache.key[:, rows], value=cache.value[:, rows], seen=cache.seen[rows], position=cache.position[rows])
