"""Filters on next-token scores, as pure functions from logits to logits; what they drop becomes -inf."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

Filter = Callable[[Array], Array]


def top_k(logits: Float[Array, "... vocab"], k: int) -> Float[Array, "... vocab"]:
  """Keeps the k highest scores, and those equal to the lowest of them.

  Raises:
    ValueError: k below 1.

  Source: Fan et al. 2018 (arXiv 1805.04833).
  """
  if k < 1:
    raise ValueError(f"k must be at least 1; got {k}")
  lowest = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
  return jnp.where(logits < lowest, -jnp.inf, logits)


def top_p(logits: Float[Array, "... vocab"], p: float | Float[Array, ""]) -> Float[Array, "... vocab"]:
  """Nucleus: keeps the smallest set of likeliest tokens whose probability reaches p, and ties with its last.

  The likeliest token is always kept, so p = 0 is greedy and p >= 1 keeps all.

  Source: Holtzman et al. 2019 (arXiv 1904.09751).
  """
  ordered = jnp.sort(logits, axis=-1, descending=True)
  probabilities = jax.nn.softmax(ordered.astype(jnp.float32), axis=-1)
  before = jnp.cumsum(probabilities, axis=-1) - probabilities
  # The first is kept whatever p is; float32 sums may end above 1, which must not drop the tail at p = 1.
  kept = (before < p) | (jnp.asarray(p) >= 1.0) | (jnp.arange(logits.shape[-1]) == 0)
  lowest = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits < lowest, -jnp.inf, logits)


def min_p(logits: Float[Array, "... vocab"], p: float | Float[Array, ""]) -> Float[Array, "... vocab"]:
  """Keeps the tokens at least p times as likely as the likeliest.

  Source: Nguyen et al. 2024 (arXiv 2407.01082).
  """
  return jnp.where(logits < logits.max(-1, keepdims=True) + jnp.log(p), -jnp.inf, logits)


def sample(
    key: Key[Array, ""],
    logits: Float[Array, "batch vocab"],
    *,
    temperature: float = 1.0,
    filters: Sequence[Filter] = (),
) -> Int[Array, " batch"]:
  """Draws a token per row from `softmax(filters(logits / temperature))`; temperature 0 takes the likeliest.

  Args:
    key: one for the batch.
    logits: scores.
    temperature: divides the scores.
    filters: functions logits -> logits, applied in order, such as `partial(top_p, p=0.9)`.

  Raises:
    ValueError: a negative temperature.
  """
  if temperature < 0:
    raise ValueError(f"temperature must be >= 0; got {temperature}")
  if temperature == 0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  logits = logits / temperature
  for filter in filters:
    logits = filter(logits)
  return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)
