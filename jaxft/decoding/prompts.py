"""What every decoding loop asks of its prompts, checked before anything is compiled."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from jaxft.models.bounds import check_range, values_of
from jaxft.models.decoder import DecoderConfig
from jaxft.models.sites import Edits, Tap
from jaxft.signatures import AnyArray


class Prompt(NamedTuple):
  """A checked prompt.

  Attributes:
    mask: True at real tokens.
    stop: ids that end a row.
  """

  mask: Bool[Array, "batch time"]
  stop: tuple[int, ...]


def checked_prompt(
    config: DecoderConfig, prompt: Int[AnyArray, "batch time"], mask: Shaped[AnyArray, "batch time"] | None,
    stop: Sequence[int] | None, *, max_new_tokens: int, edits: Edits, dtype: Any,
) -> Prompt:
  """The mask and the stop tokens of a prompt that the model can continue.

  Args:
    config: of the model.
    prompt, mask, stop: as of `jaxft.decoding.generate`.
    max_new_tokens: how many tokens may follow.
    edits: of the prompt's pass; those of `embed` may prepend positions.
    dtype: of the activations.

  Raises:
    ValueError: max_new_tokens below 1; a mask of another shape; a row without a real token; a real token or a stop
      token outside the vocabulary; prompt and new tokens that reach beyond the model's context.
  """
  if max_new_tokens < 1:
    raise ValueError(f"max_new_tokens must be at least 1; got {max_new_tokens}")
  if mask is not None and mask.shape != prompt.shape:
    raise ValueError(f"mask must have the prompt's shape {prompt.shape}; got {mask.shape}")
  check_range("prompt", prompt, mask, config.vocab_size, "vocab_size")
  stop = (() if config.eos_id is None else (config.eos_id,)) if stop is None else tuple(int(s) for s in stop)
  if strange := [s for s in stop if not 0 <= s < config.vocab_size]:
    raise ValueError(f"stop must be token ids in [0, vocab_size = {config.vocab_size}); got {strange[0]}")
  length = prompt_length(config, prompt.shape, edits, dtype)
  if length > config.max_length:
    raise ValueError(
        f"prompt may have at most max_length = {config.max_length} positions, padding and prepended ones included; got "
        f"{length}")
  counts = None if mask is None else values_of(mask)
  longest = length if mask is None else None
  if counts is not None:
    real = (counts != 0).sum(1)
    if not real.all():
      raise ValueError(f"mask must leave every row of the prompt a real token; row {int(real.argmin())} has none")
    longest = length - prompt.shape[1] + int(real.max())
  # The last new token is drawn but never read.
  if longest is not None and longest + max_new_tokens - 1 > config.max_length:
    raise ValueError(
        f"max_new_tokens may be at most {config.max_length - longest + 1} after a prompt of {longest} positions, as "
        f"the model's context is max_length = {config.max_length}; got {max_new_tokens}")
  mask = jnp.ones(prompt.shape, bool) if mask is None else jnp.asarray(mask).astype(bool)
  return Prompt(mask, stop)


def prompt_length(config: DecoderConfig, shape: tuple[int, ...], edits: Edits, dtype: Any) -> int:
  """Positions of the prompt's pass, those included that an edit of `embed` prepends."""
  embedded = jax.ShapeDtypeStruct((*shape, config.dim), dtype)
  return jax.eval_shape(lambda x: Tap(edits, ())("embed", x), embedded).shape[1]
