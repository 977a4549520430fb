"""Tokens replaced by a mask, by random tokens, or by those of a generator; fixed shapes, under `jax.jit`."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxft.checks import in_range, one_of
from jaxft.signatures import AnyArray, check_arrays

Replacement = Literal["mask", "uniform", "mixed"]


class Corrupted(NamedTuple):
  """What the model sees, and where it differs in intent from the text: a random token may be the token itself."""

  tokens: Int[Array, "batch time"]
  chosen: Bool[Array, "batch time"]


@check_arrays
def corrupt_tokens(
    key: jax.Array,
    tokens: Int[AnyArray, "batch time"],
    where: Bool[AnyArray, "batch time"],
    *,
    rate: float | Float[AnyArray, "..."],
    replacement: Replacement = "mask",
    mask_id: int | None = None,
    vocab_size: int | None = None,
) -> Corrupted:
  """Replaces each token with probability `rate`, independently: Masked Thought's inputs, or BERT's.

  In Masked Thought these are inputs alone, at tokens of the solution, and the labels stay as they were: give the model
  the corrupted tokens and the loss the original ones.

  Args:
    key: fold in the step, and of examples that lie on several hosts their numbers.
    tokens: ids.
    where: tokens that may be replaced, never those of padding; Masked Thought takes the solution's and none of the
      question's.
    rate: in [0, 1], for all or for each row; it may come from a schedule, such as a linear one from 0 over the first
      two thirds of the steps.
    replacement: "mask" writes `mask_id`, "uniform" a random id in [0, vocab_size), which is the token's own once in
      vocab_size times; "mixed" BERT's 80% masks, 10% random ids and 10% that stay.
    mask_id: of "mask" and "mixed"; a model's own, or one that its text does not use.
    vocab_size: of "uniform" and "mixed".

  Returns:
    The tokens, and which of them were chosen.

  Raises:
    ValueError: an unknown replacement, a rate out of range, or ids that are missing or out of range.

  Example:
    >>> tokens, where = jnp.array([[5, 6, 7, 8]]), jnp.array([[False, False, True, True]])
    >>> corrupt_tokens(jax.random.key(0), tokens, where, rate=1.0, mask_id=99).tokens
    Array([[ 5,  6, 99, 99]], dtype=int32)

  Sources: Chen et al. 2024, Masked Thought (arXiv 2403.02178): a rate of 0.4 for GSM8K, 0.2 for dense formulas.
  """
  one_of("replacement", replacement, get_args(Replacement))
  if isinstance(rate, (int, float)):
    in_range("rate", rate, "[0, 1]")
  if replacement != "uniform" and (mask_id is None or mask_id < 0):
    raise ValueError(f"mask_id must be an id >= 0 with replacement {replacement!r}; got {mask_id}")
  if replacement != "mask" and (vocab_size is None or vocab_size < 1):
    raise ValueError(f"vocab_size must be at least 1 with replacement {replacement!r}; got {vocab_size}")
  rate = jnp.asarray(rate)
  if rate.shape not in ((), tokens.shape[:1]):
    raise ValueError(f"rate must be a number or one for each of {tokens.shape[0]} rows; got {list(rate.shape)}")
  for_choice, for_kind, for_token = jax.random.split(key, 3)
  chosen = jnp.asarray(where) & (jax.random.uniform(for_choice, tokens.shape) < (rate[:, None] if rate.ndim else rate))
  tokens = jnp.asarray(tokens)
  mask = jnp.asarray(mask_id or 0, tokens.dtype)
  new = mask
  if replacement != "mask":
    new = jax.random.randint(for_token, tokens.shape, 0, vocab_size or 1, tokens.dtype)
  if replacement == "mixed":
    kind = jax.random.uniform(for_kind, tokens.shape)
    new = jnp.where(kind < 0.8, mask, jnp.where(kind < 0.9, new, tokens))
  return Corrupted(jnp.where(chosen, new, tokens), chosen)


@check_arrays
def replace_by_generator(
    key: jax.Array,
    tokens: Int[AnyArray, "batch time"],
    generator_logits: Float[AnyArray, "batch time vocab"],
    chosen: Bool[AnyArray, "batch time"],
    *,
    temperature: float = 1.0,
) -> Int[Array, "batch time"]:
  """ELECTRA's corrupted text: at the chosen places a token drawn from a generator's distribution.

  Args:
    key: draws the tokens; nothing has a gradient.
    tokens: the text.
    generator_logits: of the generator over the masked text, for the token at each place itself.
    chosen: the places that were masked.
    temperature: > 0.

  Returns:
    The text that the discriminator reads; `replaced_token_detection` compares it with the original.

  Raises:
    ValueError: temperature <= 0 or not finite.

  Example:
    >>> logits = 1e3 * jax.nn.one_hot(jnp.array([[3, 3, 3]]), 5)
    >>> replace_by_generator(jax.random.key(0), jnp.array([[0, 1, 2]]), logits, jnp.array([[False, True, False]]))
    Array([[0, 3, 2]], dtype=int32)

  Source: Clark et al. 2020 (arXiv 2003.10555).
  """
  in_range("temperature", temperature, "(0, inf)")
  drawn = jax.random.categorical(key, jnp.asarray(generator_logits, jnp.float32) / temperature, axis=-1)
  return jnp.where(chosen, drawn.astype(tokens.dtype), tokens)
