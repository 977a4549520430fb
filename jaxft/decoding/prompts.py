"""What every decoding loop asks of its prompts, checked before anything is compiled."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from jaxft.argument_kinds import is_integer
from jaxft.decoding.stepwise import Stepwise
from jaxft.models.bounds import check_range, values_of
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
    model: Stepwise, prompt: Int[AnyArray, "batch time"], mask: Shaped[AnyArray, "batch time"] | None,
    stop: Sequence[int] | None, *, max_new_tokens: int,
) -> Prompt:
  """The mask and the stop tokens of a prompt that the model can continue.

  Args:
    model: which is to continue it.
    prompt, mask, stop: as of `jaxft.decoding.generate`.
    max_new_tokens: how many tokens may follow.

  Raises:
    TypeError: a stop token is no integer.
    ValueError: max_new_tokens below 1; a row without a real token; a real token or a stop
      token outside the vocabulary; prompt and new tokens that reach beyond the model's context.
  """
  if max_new_tokens < 1:
    raise ValueError(f"max_new_tokens must be at least 1; got {max_new_tokens}")
  check_range("prompt", prompt, mask, model.vocab_size, "vocab_size")
  stop = (() if model.eos_id is None else (model.eos_id,)) if stop is None else tuple(stop)
  if strange := [s for s in stop if not is_integer(s)]:
    raise TypeError(f"stop must be token ids, integers; got {strange[0]!r}")
  stop = tuple(map(int, stop))
  if strange := [s for s in stop if not 0 <= s < model.vocab_size]:
    raise ValueError(f"stop must be token ids in [0, vocab_size = {model.vocab_size}); got {strange[0]}")
  length, context = model.length(model.params, prompt.shape), model.max_length
  if context is not None and length > context:
    raise ValueError(
        f"prompt may have at most max_length = {context} positions, padding and prepended ones included; got {length}")
  counts = None if mask is None else values_of(mask)
  longest = length if mask is None else None
  if counts is not None:
    real = (counts != 0).sum(1)
    if not real.all():
      raise ValueError(f"mask must leave every row of the prompt a real token; row {int(real.argmin())} has none")
    longest = length - prompt.shape[1] + int(real.max())
  # The last new token is drawn but never read.
  if context is not None and longest is not None and longest + max_new_tokens - 1 > context:
    raise ValueError(
        f"max_new_tokens may be at most {context - longest + 1} after a prompt of {longest} positions, as the model's "
        f"context is max_length = {context}; got {max_new_tokens}")
  mask = jnp.ones(prompt.shape, bool) if mask is None else jnp.asarray(mask).astype(bool)
  return Prompt(mask, stop)

