"""Noise on embeddings and hidden states: NEFTune's, and NoiseFiT's, whose scale follows the state."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from jaxft.checks import in_range
from jaxft.signatures import AnyArray, check_arrays

EPS = 1e-6


@check_arrays
def embedding_noise(
    key: jax.Array,
    embeddings: Float[AnyArray, "batch time dim"],
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"],
    *,
    alpha: float | Float[AnyArray, ""] = 5.0,
) -> Float[Array, "batch time dim"]:
  """NEFTune: uniform noise of at most `alpha / sqrt(tokens dim)` on the embeddings of each row's tokens.

  Args:
    key: draws the noise.
    embeddings: of the tokens.
    where: real tokens, by whose number the noise of a row is scaled; the others stay.
    alpha: >= 0; the source takes 5, 10 or 15.

  Raises:
    ValueError: alpha below 0 or not finite.

  Example:
    >>> noisy = embedding_noise(jax.random.key(0), jnp.zeros((1, 2, 4)), jnp.array([[1, 0]]), alpha=2.0)
    >>> bool(jnp.abs(noisy).max() <= 1), bool((noisy[0, 1] == 0).all())
    (True, True)

  Source: Jain et al. 2023 (arXiv 2310.05914).
  """
  in_range("alpha", alpha, "[0, inf)")
  counts = jnp.asarray(where) != 0
  tokens = jnp.maximum(jnp.sum(counts, axis=1), 1)
  bound = alpha / jnp.sqrt(tokens * embeddings.shape[-1])
  noise = jax.random.uniform(key, embeddings.shape, minval=-1, maxval=1) * bound[:, None, None]
  return jnp.asarray(embeddings) + jnp.where(counts[..., None], noise, 0).astype(embeddings.dtype)


@check_arrays
def adaptive_gaussian_noise(
    key: jax.Array,
    hidden: Float[AnyArray, "batch time dim"],
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
    *,
    noise_std: float | Float[AnyArray, ""] = 0.1,
    beta: float = 0.1,
    largest_factor: float = 5.0,
    logits: Float[AnyArray, "batch time vocab"] | None = None,
) -> Float[Array, "batch time dim"]:
  """NoiseFiT: `h + xi noise_std std(h) a w f` with normal xi, scaled by token and coordinate.

  With the median m of a token's state, `a = median |h - m|` (at least 1e-6 of its norm) and
  `w = exp(-beta |h - m| / a)`: coordinates that stand out get less. f is `exp(Var(h) / mean Var)`, the mean over all
  tokens that count, or with logits `exp(entropy)`; at most `largest_factor`.

  Args:
    key: draws xi; two noisy passes take two keys.
    hidden: states of a layer. The noise is a constant to the gradient.
    where: tokens that count; the others stay and count in no statistic. None counts all.
    noise_std: >= 0, in units of the deviation of all entries that count.
    beta: >= 0.
    largest_factor: > 0.
    logits: of the token that follows, if its uncertainty is to scale the noise.

  Returns:
    The states with noise, in hidden's dtype; its mean over draws is hidden.

  Raises:
    ValueError: a number out of range.

  Example:
    >>> hidden = jnp.arange(12.0).reshape(1, 3, 4)
    >>> bool((adaptive_gaussian_noise(jax.random.key(0), hidden, noise_std=0.0) == hidden).all())
    True

  Source: Khadangi et al. 2025 (arXiv 2504.03302). The authors' code squares noise_std while it trains and not while it
  measures, differentiates through the scale in its first version, and counts padding; here it does none of these. Its
  median is the lower of two middle values, ours their mean.
  """
  in_range("noise_std", noise_std, "[0, inf)")
  in_range("beta", beta, "[0, inf)")
  in_range("largest_factor", largest_factor, "(0, inf)")
  counts = jnp.ones(hidden.shape[:2], bool) if where is None else jnp.asarray(where) != 0
  h = jax.lax.stop_gradient(jnp.where(counts[..., None], hidden, 0).astype(jnp.float32))
  total = jnp.maximum(jnp.sum(counts), 1)
  mean = jnp.sum(h) / (total * h.shape[-1])
  std = jnp.sqrt(jnp.sum(jnp.where(counts[..., None], jnp.square(h - mean), 0.0)) / (total * h.shape[-1]))
  apart = jnp.abs(h - jnp.median(h, axis=-1, keepdims=True))
  spread = jnp.median(apart, axis=-1, keepdims=True)
  spread = jnp.maximum(spread, EPS * jnp.linalg.norm(h, axis=-1, keepdims=True))
  weight = jnp.exp(-beta * apart / (spread + EPS))
  if logits is None:
    variance = jnp.var(h, axis=-1, ddof=1 if h.shape[-1] > 1 else 0)
    level = jnp.sum(jnp.where(counts, variance, 0.0)) / total
    exponent = variance / jnp.where(level > 0, level, 1)
  else:
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(jnp.asarray(logits, jnp.float32)))
    exponent = -jnp.sum(jnp.exp(log_p) * jnp.where(jnp.isneginf(log_p), 0.0, log_p), axis=-1)
  factor = jnp.minimum(jnp.exp(jnp.minimum(exponent, 80.0)), largest_factor)[..., None]
  noise = jax.random.normal(key, h.shape) * noise_std * std * spread * weight * factor
  return jnp.asarray(hidden) + jnp.where(counts[..., None], noise, 0.0).astype(hidden.dtype)
