"""Generated text in several languages, which are substitutions of its letters into alphabets that share few or none.

What differs between two languages is all that a model sees and nothing that it could learn: a test of transfer between
languages with raw text in both and labels in one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

MASK = 0  # the id of a masked letter; the letters of language l follow one another after it


class Masked(NamedTuple):
  """Text and the letters that are hidden in it."""

  ids: Int[Array, "*batch time"]
  hidden: Bool[Array, "*batch time"]


class Labelled(NamedTuple):
  """Text and whether its good letters outnumber its bad ones."""

  ids: Int[Array, "*batch time"]
  labels: Int[Array, " *batch"]


class Text:
  """The text of a seed: a Markov chain over letters, each with three likely successors of its own.

  Args:
    seed: of the chain and of all that is drawn from it.
    letters: of an alphabet; the first `good` are good ones, the next `good` bad ones.
    good: see above.
    length: letters of a sentence.
    masked: share of letters that are hidden.
    shared: the last letters, which all languages write alike: what a model can align them by. None of them has a label.
  """

  def __init__(self, seed: int, *, letters: int, good: int, length: int, masked: float, shared: int = 0):
    if not 0 <= shared <= letters - 2 * good:
      raise ValueError(f"shared must lie in [0, {letters - 2 * good}], the letters without a label; got {shared}")
    self._rng, self._shared = np.random.default_rng(seed), shared
    self.letters, self.good, self.length, self.share = letters, good, length, masked
    table = np.full((letters, letters), 0.02)
    for row in table:
      row[self._rng.choice(letters, 3, replace=False)] += (3.0, 1.5, 0.75)
    self._cumulative = (table / table.sum(1, keepdims=True)).cumsum(1)

  def sentences(self, n: int) -> Int[np.ndarray, "n time"]:
    """Letters from 0, before any substitution."""
    out = [self._rng.integers(0, self.letters, n)]
    for _ in range(self.length - 1):
      above = self._rng.random(n)[:, None] > self._cumulative[out[-1]]
      out.append(np.minimum(above.sum(1), self.letters - 1))
    return np.stack(out, axis=1)

  def written(self, letters: Int[np.ndarray, "... time"], language: Any) -> Int[np.ndarray, "... time"]:
    """The letters as ids of a language, or of one for each sentence `[..., 1]`."""
    own = np.where(letters < self.letters - self._shared, self.letters * np.asarray(language), 0)
    return (1 + own + letters).astype(np.int32)

  def masked(self, shape: tuple[int, ...], languages: Any) -> Masked:
    """Sentences with hidden letters, at least one in each; `languages` as of `written`."""
    letters = self.sentences(int(np.prod(shape))).reshape(*shape, -1)
    hidden = self._rng.random(letters.shape) < self.share
    hidden[..., 0] |= ~hidden.any(-1)
    return Masked(jnp.asarray(self.written(letters, languages)), jnp.asarray(hidden))

  def mixed(self, shape: tuple[int, ...], shares: Sequence[float]) -> Masked:
    """As `masked`, in several languages with these shares, which sum to 1."""
    return self.masked(shape, self._rng.choice(len(shares), (*shape, 1), p=shares))

  def labelled(self, n: int) -> tuple[Int[np.ndarray, "n time"], Int[np.ndarray, " n"]]:
    """Sentences without a tie, half of them with each label, and the labels."""
    value = np.repeat([1, -1, 0], [self.good, self.good, self.letters - 2 * self.good])
    kinds: tuple[list, list] = ([], [])
    while min(map(len, kinds)) < -(-n // 2):
      for letters in self.sentences(2 * n):
        if total := value[letters].sum():
          kinds[int(total > 0)].append(letters)
    letters = np.stack([kinds[i % 2][i // 2] for i in range(n)])
    order = self._rng.permutation(n)
    return letters[order], (order % 2).astype(np.int32)
