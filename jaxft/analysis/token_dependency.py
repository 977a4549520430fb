"""What a prediction rests on: tokens are replaced one at a time, and it is seen which later predictions change."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxft.signatures import AnyArray, check_arrays


class TokenDependency(NamedTuple):
  """Which predictions changed.

  Attributes:
    changed: `[b, i, j]` is True where another token at i has changed the token that is predicted at j; False for pairs
      that do not count.
    counted: the pairs i < j that count: i may be replaced and the prediction at j is looked at.
  """

  changed: Bool[Array, "batch time time"]
  counted: Bool[Array, "batch time time"]

  def rate(
      self, sources: Bool[AnyArray, "batch time"] | None = None, targets: Bool[AnyArray, "batch time"] | None = None
  ) -> Float[Array, ""]:
    """The share of pairs that changed, of those from some tokens to some; None is all of them. NaN where there is none.

    With the tokens of the question as sources and those of the solution as targets: how much the solution rests on it.
    """
    ones = jnp.ones(self.counted.shape[:2], bool)
    pairs = (ones if sources is None else jnp.asarray(sources))[:, :, None]
    pairs = pairs & (ones if targets is None else jnp.asarray(targets))[:, None, :] & self.counted
    return jnp.sum(self.changed & pairs) / jnp.sum(pairs)

  def by_distance(self) -> Float[Array, " time"]:
    """The share of pairs that changed at each distance j - i, from 0; NaN where no pair counts."""
    time = self.counted.shape[-1]
    at = jnp.arange(time)
    distance = jnp.clip(at[None, :] - at[:, None], 0)
    total = lambda pairs: jnp.zeros(time).at[distance].add(jnp.sum(pairs, axis=0))
    return total(self.changed) / total(self.counted)


@check_arrays
def token_dependency(
    apply: Callable[[Int[Array, "batch time"]], Float[Array, "batch time vocab"]],
    tokens: Int[AnyArray, "batch time"],
    sources: Bool[AnyArray, "batch time"],
    key: jax.Array,
    *,
    candidates: Sequence[int],
    targets: Bool[AnyArray, "batch time"] | None = None,
) -> TokenDependency:
  """Whether the likeliest token at j is another one once token i < j is: numbers of a reasoning chain, in the source.

      changed[i, j] = argmax apply(tokens with another candidate at i)[j - 1] != argmax apply(tokens)[j - 1]

  As many forward passes as there are positions, one after the other.

  Args:
    apply: tokens to scores of the token after each, by a model that looks back alone.
    tokens: texts.
    sources: tokens that are replaced, one at a time.
    key: draws what replaces them.
    candidates: different ids, such as those of the digits; each of those that are not the token itself is equally
      likely.
    targets: tokens whose prediction is looked at; None takes those of `sources`.

  Raises:
    ValueError: fewer than two candidates, or one of them twice or below 0.

  Example:
    >>> last = lambda ids: jax.nn.one_hot(ids, 5)  # a model that repeats
    >>> found = token_dependency(last, jnp.array([[1, 2, 3]]), jnp.ones((1, 3), bool), jax.random.key(0),
    ...                          candidates=[1, 2, 3])
    >>> found.by_distance(), found.rate()
    (Array([nan,  1.,  0.], dtype=float32), Array(0.6666667, dtype=float32))

  Source: Chen et al. 2024, Masked Thought (arXiv 2403.02178), whose histogram of distances is of generated solutions.
  """
  ids = [int(i) for i in candidates]
  if len(ids) < 2 or len(set(ids)) != len(ids) or min(ids) < 0:
    raise ValueError(f"candidates must be at least two different ids >= 0; got {ids}")
  tokens, sources = jnp.asarray(tokens), jnp.asarray(sources)
  targets = sources if targets is None else jnp.asarray(targets)
  time, pool = tokens.shape[1], jnp.asarray(np.array(ids), tokens.dtype)
  # The place of each token among the candidates; beyond them where it is none.
  own = jnp.where((tokens[..., None] == pool).any(-1), jnp.argmax(tokens[..., None] == pool, axis=-1), len(ids))
  others = jnp.where(own < len(ids), len(ids) - 1, len(ids))
  drawn = jnp.minimum(jnp.floor(jax.random.uniform(key, tokens.shape) * others).astype(jnp.int32), others - 1)
  new = pool[drawn + (drawn >= own)]
  predict = lambda x: jnp.argmax(apply(x), axis=-1)
  before = predict(tokens)

  def replaced(i: Array) -> Array:
    at = jnp.arange(time) == i
    return predict(jnp.where(at & sources, new, tokens)) != before

  after = jnp.moveaxis(jax.lax.map(replaced, jnp.arange(time)), 0, 1)
  changed = jnp.pad(after[..., :-1], ((0, 0), (0, 0), (1, 0)))
  counted = sources[:, :, None] & targets[:, None, :] & jnp.triu(jnp.ones((time, time), bool), 1)
  return TokenDependency(changed & counted, counted)
