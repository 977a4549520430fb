"""Generated text in several languages, which are substitutions of its letters into alphabets that share few or none.

What differs between two languages is all that a model sees and nothing that it could learn: a test of transfer between
languages with raw text in both and labels in one. The model is a small encoder that predicts masked letters and has a
head for the task.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxft.models import EncoderConfig, encoder
from jaxft.seal import check_open

SPLITS = ("train", "validation", "test")
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
  """A split of a seed's text: a Markov chain over letters, each with three likely successors of its own.

  Args:
    seed: of the chain, which all splits share.
    split: one of `SPLITS`; each draws sentences of its own, in the order of the calls.
    letters: of an alphabet; the first `good` are good ones, the next `good` bad ones.
    good: see above.
    length: letters of a sentence.
    masked: share of letters that are hidden.
    shared: the last letters, which all languages write alike: what a model can align them by. None of them has a label.
  """

  def __init__(self, seed: int, split: str, *, letters: int, good: int, length: int, masked: float, shared: int = 0):
    check_open(split)
    if not 0 <= shared <= letters - 2 * good:
      raise ValueError(f"shared must lie in [0, {letters - 2 * good}], the letters without a label; got {shared}")
    chain, self._shared = np.random.default_rng(seed), shared
    self._rng = np.random.default_rng((seed, SPLITS.index(split)))
    self.letters, self.good, self.length, self.share = letters, good, length, masked
    table = np.full((letters, letters), 0.02)
    for row in table:
      row[chain.choice(letters, 3, replace=False)] += (3.0, 1.5, 0.75)
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


def shape(*, letters: int, languages: int, dim: int, num_layers: int, length: int) -> EncoderConfig:
  """The encoder: of the letters of all languages and the mask."""
  return EncoderConfig(
      vocab_size=1 + letters * languages, dim=dim, num_layers=num_layers, num_heads=4, mlp_dim=2 * dim,
      max_length=length, type_vocab_size=1, norm_eps=1e-6)


def init(key: Key[Array, ""], config: EncoderConfig) -> dict[str, Any]:
  """Random params, with a head of zeros for the task."""
  head = {"kernel": jnp.zeros((config.dim, 2)), "bias": jnp.zeros(2)}
  return {**encoder.init(key, config, stddev=0.1), "head": head}


def masked_nll(
    params: dict[str, Any], config: EncoderConfig, batch: Masked, outputs: Float[Array, "vocab dim"]
) -> Float[Array, ""]:
  """Nats per hidden letter, by an output matrix."""
  ids = jnp.where(batch.hidden, MASK, batch.ids)
  logits = encoder.hidden_states(params, config, ids, remat="none")[0] @ outputs.T
  nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch.ids)
  return jnp.sum(nll * batch.hidden) / jnp.sum(batch.hidden)


def task_logits(params: dict[str, Any], config: EncoderConfig, ids: Int[Array, "n time"]) -> Float[Array, "n 2"]:
  """By the head, of the mean state."""
  states = encoder.hidden_states(params, config, ids, remat="none")[0]
  return states.mean(1) @ params["head"]["kernel"] + params["head"]["bias"]
