"""Filters on next-token scores, as pure functions from logits to logits; what they drop becomes -inf.

NaN passes through them, so that `sample` sees it; a traced limit that is out of range makes all logits NaN.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key

from jaxft.signatures import explain_errors

Filter = Callable[[Array], Array]


@explain_errors
def top_k(logits: Float[Array, "... vocab"], k: int) -> Float[Array, "... vocab"]:
  """Keeps the k highest scores, and those equal to the lowest of them.

  >>> top_k(jnp.array([1.0, 3.0, 2.0, 3.0]), 2)
  Array([-inf,   3., -inf,   3.], dtype=float32)

  Args:
    logits: scores.
    k: how many to keep; all of them where there are no more.

  Raises:
    TypeError: k is no integer.
    ValueError: k below 1.

  Source: Fan et al. 2018 (arXiv 1805.04833).
  """
  _check_k("k", k)
  lowest = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
  return jnp.where(logits < lowest, -jnp.inf, logits)


@explain_errors
def top_p(logits: Float[Array, "... vocab"], p: float | Float[Array, ""]) -> Float[Array, "... vocab"]:
  """Nucleus: keeps the smallest set of likeliest tokens whose probability reaches p, and ties with its last.

  The likeliest token is always kept, and p = 1 keeps all.

  >>> jnp.isfinite(top_p(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), 0.7))  # 0.5 is too little, 0.5 + 0.3 enough
  Array([ True,  True, False, False], dtype=bool)

  Args:
    logits: scores, whose softmax is taken.
    p: the probability to reach.

  Raises:
    ValueError: p outside (0, 1].

  Source: Holtzman et al. 2019 (arXiv 1904.09751).
  """
  logits = logits + _check_top_p("p", p)
  ordered = jnp.sort(logits, axis=-1, descending=True)
  probabilities = jax.nn.softmax(ordered.astype(jnp.float32), axis=-1)
  before = jnp.cumsum(probabilities, axis=-1) - probabilities
  # The first is kept whatever p is; float32 sums may end above 1, which must not drop the tail at p = 1.
  kept = (before < p) | (jnp.asarray(p) >= 1.0) | (jnp.arange(logits.shape[-1]) == 0)
  lowest = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits < lowest, -jnp.inf, logits)


@explain_errors
def min_p(logits: Float[Array, "... vocab"], p: float | Float[Array, ""]) -> Float[Array, "... vocab"]:
  """Keeps the tokens at least p times as likely as the likeliest; p = 0 keeps all.

  >>> jnp.isfinite(min_p(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), 0.2))  # at least 0.2 * 0.5
  Array([ True,  True,  True, False], dtype=bool)

  Args:
    logits: scores.
    p: a share of the largest probability.

  Raises:
    ValueError: p outside [0, 1].

  Source: Nguyen et al. 2024 (arXiv 2407.01082).
  """
  logits = logits + _check_min_p("p", p)
  return jnp.where(logits < logits.max(-1, keepdims=True) + jnp.log(p), -jnp.inf, logits)


def check_limits(*, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None) -> None:
  """Raises the errors of `sample` and of the filters, by the names that `generate` has for their arguments."""
  _check_temperature(temperature)
  limits = {"top_k": (top_k, _check_k), "top_p": (top_p, _check_top_p), "min_p": (min_p, _check_min_p)}
  for name, (limit, check) in limits.items():
    if limit is not None:
      check(name, limit)


def _check_temperature(temperature):
  if not 0 <= temperature < math.inf:
    raise ValueError(f"temperature must be >= 0 and finite; got {temperature}")


def _check_k(name, k):
  if not isinstance(k, (int, np.integer)):
    raise TypeError(f"{name} must be an integer; got {k!r}")
  if k < 1:
    raise ValueError(f"{name} must be at least 1; got {k}")


def _check_top_p(name, p):
  return _zero_or_nan(name, p, (p > 0) & (p <= 1), "(0, 1]")


def _check_min_p(name, p):
  return _zero_or_nan(name, p, (p >= 0) & (p <= 1), "[0, 1]")


def _zero_or_nan(name, p, inside, takes):
  """What to add to the logits: 0, or NaN where a traced limit is out of range."""
  if isinstance(inside, Tracer):
    return jnp.where(inside, 0.0, jnp.nan)
  if not inside:
    raise ValueError(f"{name} must lie in {takes}; got {p}")
  return 0.0


@explain_errors
def sample(
    key: Key[Array, ""],
    logits: Float[Array, "batch vocab"],
    *,
    temperature: float = 1.0,
    filters: Sequence[Filter] = (),
) -> Int[Array, " batch"]:
  """Draws a token per row from `softmax(filters(logits / temperature))`; temperature 0 takes the likeliest.

  >>> logits = jnp.array([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]])
  >>> sample(jax.random.key(0), logits, temperature=0)
  Array([1, 0], dtype=int32)
  >>> sample(jax.random.key(0), logits, temperature=100.0, filters=[lambda logits: top_k(logits, 1)])
  Array([1, 0], dtype=int32)

  Args:
    key: one for the batch.
    logits: scores.
    temperature: divides the scores; 0 leaves the filters out.
    filters: functions logits -> logits, applied in order, such as `partial(top_p, p=0.9)`.

  Returns:
    Token ids. Under `jax.jit` -1 for a row that has no distribution: one with NaN or inf, or with -inf alone.

  Raises:
    ValueError: a temperature that is negative or not finite, or, where numbers are known, a row without a distribution.
  """
  _check_temperature(temperature)
  if temperature == 0:
    return _where_decided(logits, jnp.argmax(logits, axis=-1).astype(jnp.int32))
  logits = filtered(logits, temperature=temperature, filters=filters)
  return _where_decided(logits, jax.random.categorical(key, logits, axis=-1).astype(jnp.int32))


def filtered(
    logits: Float[Array, "... vocab"], *, temperature: float, filters: Sequence[Filter] = ()
) -> Float[Array, "... vocab"]:
  """The scores that `sample` draws from: divided by a temperature above 0, then filtered in order."""
  # The highest becomes 0, so that no temperature, however low, makes infinities of the others' distances to it.
  highest = jnp.max(logits, axis=-1, keepdims=True)
  logits = (logits - highest) / max(temperature, float(jnp.finfo(jnp.float32).tiny))
  for filter in filters:
    logits = filter(logits)
  return logits


def _where_decided(logits: Float[Array, "batch vocab"], token: Int[Array, " batch"]) -> Int[Array, " batch"]:
  decided = jnp.isfinite(jnp.max(logits, axis=-1))  # NaN where one is NaN
  if not isinstance(decided, Tracer) and not decided.all():
    row = int(decided.argmin())
    raise ValueError("logits, divided by the temperature and filtered, must have a finite maximum in every row and no "
                     f"NaN; that of row {row} is {float(jnp.max(logits[row]))}")
  return jnp.where(decided, token, -1)
