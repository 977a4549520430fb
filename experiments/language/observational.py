"""Logs of texts with their outcomes, where popularity moves outcomes and something unseen moves both.

    C = g . phi(text) + Z + U        popularity, by the text, an instrument and something unseen
    Y = f(text) + 2 C + 1.5 U + e    the outcome; f is what a text is worth by itself

`headlines` makes texts of a topic and five words, each word of known worth; `Sentences` are real ones, rated by twenty
people each; `training_error` is about people, some of them in a job training, with the answer of an experiment.
"""

from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxft.analysis import two_stage_least_squares
from jaxft.data import residualize_reward, source
from jaxft.evaluation import fit_ridge
from jaxft.evaluation.embed import embed_texts
from jaxft.formats import load
from jaxft.models import encoder
from jaxft.seal import check_open

OF_POPULARITY, OF_UNSEEN = 2.0, 1.5

TOPICS = ("sports", "science", "travel", "food")
WORDS = (
    ("how", "why", "when", "where"), ("local", "famous", "young", "quiet"), ("people", "experts", "families", "crowds"),
    ("love", "avoid", "miss", "rank"), ("today", "again", "abroad", "together"))

REFERENCE, RAW, INVARIANT, MARGINAL, CONTROL, METHOD, LOT = (
    "as shown", "outcomes as they are", "uncorrelated with popularity (ODIN)", "marginal", "control", "DeconfoundLM",
    "popularity by lot")


class Logs(NamedTuple):
  """Texts by their features, with popularity, instrument and outcome."""

  features: Float[np.ndarray, "n features"]
  popularity: Float[np.ndarray, "n 1"]
  instrument: Float[np.ndarray, "n 1"]
  outcomes: Float[np.ndarray, " n"]


def observed(
    rng: np.random.Generator, features: Float[np.ndarray, "n f"], worth: Float[np.ndarray, " n"],
    pull: Float[np.ndarray, " n"], *, by_lot: bool, noise: float = 0.5,
) -> Logs:
  """What is logged of texts of some worth and with some pull on popularity, which by lot depends on neither."""
  n = len(worth)
  instrument, unseen, other = rng.normal(size=(3, n))
  popularity = instrument + (rng.normal(size=n) * np.std(pull + unseen) if by_lot else pull + unseen)
  outcomes = worth + OF_POPULARITY * popularity + OF_UNSEEN * unseen + noise * other
  return Logs(features, popularity[:, None], instrument[:, None], outcomes)


def reward_weights(arm: str, logs: Logs) -> Float[np.ndarray, " features"]:
  """The linear reward model that an arm learns, by ridge regression with the penalty that leave-one-out chooses."""
  outcomes = logs.outcomes
  if arm in (MARGINAL, LOT):
    outcomes = residualize_reward(outcomes, logs.popularity, method="marginal").rewards
  elif arm == CONTROL:
    outcomes = residualize_reward(outcomes, logs.popularity, logs.features).rewards
  elif arm == METHOD:
    outcomes = residualize_reward(
        outcomes, logs.popularity, logs.features, instruments=logs.instrument, method="iv").rewards
  ridge = fit_ridge(logs.features, outcomes)
  weights = ridge.weights[:, 0]
  if arm == INVARIANT:  # the best head among those that are uncorrelated with popularity
    x = logs.features - logs.features.mean(0)
    along = np.linalg.solve(x.T @ x + ridge.penalty * np.eye(x.shape[1]), x.T @ logs.popularity[:, 0])
    against = x.T @ logs.popularity[:, 0]
    weights = weights - along * (against @ weights) / (against @ along)
  return weights


def strength(logs: Logs) -> float:
  """The first-stage F of the instrument."""
  return float(two_stage_least_squares(
      logs.outcomes, logs.popularity, logs.instrument, logs.features).first_stage_f[0])


class Headlines(NamedTuple):
  """Texts as a topic and the words of five places, and what each word is worth and pulls under each topic."""

  topics: Int[np.ndarray, " n"]
  words: Int[np.ndarray, "n places"]
  worth: Float[np.ndarray, "topics places words"]
  pull: Float[np.ndarray, "topics places words"]
  shown: Float[np.ndarray, "topics places words"]  # how often each word is

  def of(self, table: Float[np.ndarray, "topics places words"]) -> Float[np.ndarray, " n"]:
    """The sum over the words of a text."""
    return table[self.topics[:, None], np.arange(len(WORDS)), self.words].sum(1)

  def features(self) -> Float[np.ndarray, "n features"]:
    """Which topic, and which words under which topic; of each choice all but the first."""
    topic, word = np.eye(len(TOPICS))[self.topics], np.eye(len(WORDS[0]))[self.words][:, :, 1:]
    under = topic[:, :, None] * word.reshape(len(word), 1, -1)
    return np.concatenate([topic[:, 1:], under.reshape(len(word), -1)], axis=1)

  @staticmethod
  def table(weights: Float[np.ndarray, " features"]) -> Float[np.ndarray, "topics places words"]:
    """What a linear model of the features says of each word."""
    words = weights[len(TOPICS) - 1 :].reshape(len(TOPICS), len(WORDS), -1)
    return np.pad(words, ((0, 0), (0, 0), (1, 0)))

  def texts(self) -> list[tuple[str, str]]:
    """Topics with their headlines."""
    return [(TOPICS[topic], " ".join(WORDS[i][word] for i, word in enumerate(words)))
            for topic, words in zip(self.topics, self.words, strict=True)]


def headlines(seed: int, n: int, split: str) -> Headlines:
  """What was shown; worth and pull of the words are a seed's."""
  check_open(split)
  rng = np.random.default_rng(seed)
  size = len(TOPICS), len(WORDS), len(WORDS[0])
  worth, pull = rng.normal(size=size), rng.normal(size=size)
  shown = rng.dirichlet(np.full(size[2], 3.0), size[:2])
  rng = np.random.default_rng((seed, ("train", "validation", "test").index(split)))
  topics = rng.integers(0, size[0], n)
  words = (rng.random((n, size[1], 1)) > np.cumsum(shown, axis=2)[topics]).sum(2).clip(max=size[2] - 1)
  return Headlines(topics, words, worth, pull, shown)


class Sentences:
  """Real sentences as the leading components of their embeddings, with the ratings of people."""

  def __init__(self, model: str, domain: str, *, logged: int, held_out: int, components: int):
    loaded = load(model)
    embed = jax.jit(lambda ids, mask: encoder.embed(loaded.params, loaded.config, ids, mask))

    @cache
    def read(split: str) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
      records = source(f"sentiment/{domain}", split)
      rows = records.__getitems__(range(min(logged if split == "train" else held_out, len(records))))
      vectors = embed_texts(embed, [row["text"] for row in rows], loaded.tokenizer, max_length=64)
      return vectors, np.array([row["rating"] for row in rows], np.float64), [row["ratings"] for row in rows]

    self._read = read
    vectors = read("train")[0]
    self._mean = vectors.mean(0)
    _, scale, turned = np.linalg.svd(vectors - self._mean, full_matrices=False)
    self._turned = turned[:components].T / (scale[:components] / np.sqrt(len(vectors)))

  def features(self, split: str) -> Float[np.ndarray, "n components"]:
    """Components of unit variance."""
    return (self._read(split)[0] - self._mean) @ self._turned

  def ratings(self, split: str) -> Float[np.ndarray, " n"]:
    """The mean rating of each sentence."""
    return self._read(split)[1]

  def logs(self, seed: int, *, by_lot: bool) -> Logs:
    """A rating of each sentence by one of its people, moved by a popularity that one direction of the text pulls."""
    rng = np.random.default_rng((seed, by_lot))
    features = self.features("train")
    direction = np.random.default_rng(seed).normal(size=min(10, features.shape[1]))
    pull = features[:, : len(direction)] @ (direction / np.linalg.norm(direction))
    worth = np.array([rng.choice(each) for each in self._read("train")[2]], np.float64)
    return observed(rng, features, worth, pull, by_lot=by_lot, noise=0.0)


KNOWN = ("age", "education", "black", "hispanic", "married", "no_degree", "earnings_1974", "earnings_1975")


@cache
def people() -> dict[str, Float[np.ndarray, " n"]]:
  """Columns of `causal/nsw`, earnings in thousands of dollars."""
  records = source("causal/nsw", "train")
  rows = records.__getitems__(range(len(records)))
  columns = {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}
  return {name: x / 1000 if name.startswith("earnings") else x for name, x in columns.items()}


def training_error(arm: str, seed: int, split: str) -> float:
  """How far an arm's effect of the training on earnings is from the experiment's, in thousands of dollars.

  Every arm but that by lot compares the trained with a survey, by people drawn with replacement from the split's half.
  There is no instrument, so that DeconfoundLM controls.
  """
  check_open(split)
  x: dict[str, Any] = people()
  lot, trained = x["group"] == 0, x["trained"] == 1
  effect = lambda y, of: y[of].mean() - y[~of].mean()
  answer = effect(x["earnings_1978"][lot], trained[lot])
  half = np.arange(len(lot)) % 2 == (split == "test")
  rng = np.random.default_rng((seed, split == "test"))
  draw = lambda rows: rng.choice(np.flatnonzero(rows), np.count_nonzero(rows))
  rows = np.concatenate([draw(half & trained), draw(half & ~trained & (lot if arm == LOT else ~lot))])
  earned, of = x["earnings_1978"][rows], trained[rows]
  known = np.column_stack([x[name][rows] for name in KNOWN])
  if arm in (INVARIANT, REFERENCE):
    return float(abs(answer))  # no function of a yes and a no but a constant is uncorrelated with all that is known
  if arm == MARGINAL:
    earned = residualize_reward(earned, known, method="marginal").rewards
  elif arm in (CONTROL, METHOD):
    earned = residualize_reward(earned, known, of[:, None].astype(np.float64)).rewards
  return float(abs(effect(earned, of) - answer))
