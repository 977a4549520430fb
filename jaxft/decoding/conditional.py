"""An encoder and a decoder as a model that steps: the prompt is what the encoder reads, once."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxft.decoding.stepwise import Stepwise
from jaxft.models import encoder_decoder
from jaxft.models.config.encoder_decoder import EncoderDecoderConfig, init_cache
from jaxft.signatures import explain_errors


@explain_errors
def stepwise_encoder_decoder(
    params: dict[str, Any], config: EncoderDecoderConfig, *, dtype: DTypeLike = jnp.float32
) -> Stepwise:
  """A T5 of `jaxft.models`, which keeps the keys and values of what it has said, and those of the encoder's text.

  Its prompt is the text that the encoder reads; the decoder begins with the config's `start_id`.

  >>> from jaxft.models.config.encoder_decoder import init
  >>> config = EncoderDecoderConfig(
  ...     vocab_size=5, dim=4, num_heads=1, head_dim=4, mlp_dim=4, encoder_layers=1, decoder_layers=2)
  >>> model = stepwise_encoder_decoder(init(jax.random.key(0), config), config)
  >>> logits, state = model.start(model.params, jnp.array([[2, 3, 4]]), jnp.ones((1, 3), bool), room=1)
  >>> logits, state = model.step(model.params, state, jnp.array([3]), jnp.array([True]))
  >>> logits.shape, state["memory"].key.shape  # of two layers, one row, three tokens and one head
  ((1, 5), (2, 1, 3, 1, 4))

  Args:
    params, config: a model of `jaxft.models.encoder_decoder`; params may hold structured leaves.
    dtype: of the activations and the caches.
  """
  start, step = _calls(config, jnp.dtype(dtype))
  return Stepwise(
      params=params, start=start, step=step, take=_rows, length=_none, vocab_size=config.vocab_size,
      eos_id=config.eos_id, pad_id=0 if config.pad_id is None else config.pad_id)


@functools.cache
def _calls(config: EncoderDecoderConfig, dtype: Any) -> tuple[Callable[..., Any], ...]:
  """The functions of a model, the same objects for the same settings, so that loops are not compiled again."""

  def start(params, prompt, mask, room):
    states, _ = encoder_decoder.encode(params, config, prompt, mask, dtype=dtype)
    memory = encoder_decoder.remember(params, config, states, mask)
    state = {"memory": memory, "cache": init_cache(config, len(prompt), 1 + room, dtype)}
    return step(params, state, jnp.full(len(prompt), config.start_id), jnp.ones(len(prompt), bool))

  def step(params, state, tokens, running):
    out = encoder_decoder.decode(
        params, config, tokens[:, None], state["memory"], mask=running[:, None], cache=state["cache"], dtype=dtype)
    return encoder_decoder.logits(params, config, out.hidden[:, 0]), {**state, "cache": out.cache}

  return start, step


def _none(params, shape):
  """Of the decoder's positions the encoder's text takes none but the start."""
  del params, shape
  return 1


def _rows(state, rows):
  memory, cache = state["memory"], state["cache"]
  memory = memory._replace(key=memory.key[:, rows], value=memory.value[:, rows], mask=memory.mask[rows])
  cache = cache._replace(
      key=cache.key[:, rows], value=cache.value[:, rows], seen=cache.seen[rows], position=cache.position[rows])
  return {"memory": memory, "cache": cache}
