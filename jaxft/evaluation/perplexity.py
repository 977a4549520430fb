"""Perplexity: sums of negative log-likelihoods over sums of units, divided once."""

import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Num

from jaxft.finite import or_nan, require_finite
from jaxft.signatures import AnyArray, explain_errors


@explain_errors
def perplexity(nll_sum: float | Float[AnyArray, ""], count: float | Num[AnyArray, ""]) -> Float[Array, ""]:
  """`exp(nll_sum / count)`: per token, per word (lm-eval's `word_perplexity`: split on whitespace) or per byte.

  Args:
    nll_sum: negative log-likelihood in nats, summed over everything. Averaging over documents first gives another
      number; so does another window or stride, which belong in the report.
    count: the units to divide by.

  Raises:
    ValueError: a number is not finite, or the count is not > 0.

  Example:
    >>> round(float(perplexity(3 * float(np.log(8)), 3)), 3)
    8.0
  """
  fine = require_finite(nll_sum=nll_sum, count=count) & _positive(count=count)
  return or_nan(fine, jnp.exp(_share(nll_sum, count)))


@explain_errors
def bits_per_byte(nll_sum: float | Float[AnyArray, ""], n_bytes: float | Float[AnyArray, ""]) -> Float[Array, ""]:
  """`nll_sum / (n_bytes ln 2)`, comparable between tokenizers.

  Args:
    nll_sum: negative log-likelihood in nats, summed over everything.
    n_bytes: length of the same text in UTF-8.

  Raises:
    ValueError: a number is not finite, or the length is not > 0.

  Example:
    >>> round(float(bits_per_byte(3 * float(np.log(8)), 9)), 3)
    1.0
  """
  fine = require_finite(nll_sum=nll_sum, n_bytes=n_bytes) & _positive(n_bytes=n_bytes)
  return or_nan(fine, _share(nll_sum, n_bytes) / math.log(2))


def _share(total, count):
  """`total / count`, on the host in float64 for what is no JAX array: counts of a corpus may exceed int32."""
  if isinstance(total, jax.Array) or isinstance(count, jax.Array):
    as_float = lambda x: x if isinstance(x, jax.Array) else jnp.asarray(np.float64(x), jnp.float32)
    return as_float(total) / as_float(count)
  return jnp.asarray(np.float64(total) / np.float64(count), jnp.float32)


def _positive(**numbers):
  (name, x), = numbers.items()
  positive = (x if isinstance(x, jax.Array) else np.asarray(x)) > 0
  if isinstance(positive, Tracer):
    return jnp.all(positive)
  if not positive.all():
    raise ValueError(f"{name} must be > 0: nothing was counted; got {x}")
  return True


@explain_errors
def rolling_windows(
    tokens: Sequence[int], max_length: int, prefix_token: int, *, context_length: int = 1
) -> Iterator[tuple[list[int], list[int]]]:
  """Cuts a document into (context, continuation) pairs that predict every token exactly once.

  The first window is conditioned on the prefix token. Each later one predicts `max_length - context_length + 1` tokens
  after `context_length` tokens of context; the last one, which predicts fewer, has more context in exchange.

  Args:
    tokens: the document; an empty one gives no window.
    max_length: tokens that the model takes as input. A pair holds at most one more: its last token is not an input.
    prefix_token: beginning-of-sequence token, or where there is none the end-of-sequence token.
    context_length: tokens of context, from 1 to `max_length`; 1 makes the windows disjoint.

  Raises:
    ValueError: context_length out of range.

  Example:
    >>> for context, continuation in rolling_windows([1, 2, 3, 4, 5], max_length=3, prefix_token=0):
    ...   print(context, continuation)
    [0] [1, 2, 3]
    [2, 3] [4, 5]

  Source: lm-evaluation-harness, `get_rolling_token_windows` and `make_disjoint_window`.
  """
  if not 1 <= context_length <= max_length:
    raise ValueError(f"context_length must lie in [1, max_length = {max_length}]; got {context_length}")
  return _windows(list(tokens), max_length, prefix_token, context_length)


def _windows(tokens, max_length, prefix_token, context_length):
  if tokens:
    yield [prefix_token], tokens[:max_length]
  step = max_length - context_length + 1
  for start in range(max_length, len(tokens), step):
    end = min(start + step, len(tokens))
    yield tokens[end - max_length - 1 : start], tokens[start:end]
