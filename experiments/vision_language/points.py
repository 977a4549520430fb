"""POINTS: is a caption that the model finds likely a clean one, and is a soup over data sets better than any of them?

    jaxft run points            some minutes on one core, and ten for the captioner
    jaxft run points --smoke    seconds

A captioner that knows two vendors' emoji, `tasks/captions/captioner.py` without Open Clipart, is to learn two further
data sets: Fluent's emoji, and drawings of Open Clipart with whatever title somebody gave them. In seven of ten of
either the captions are exchanged among its pictures, so that what is wrong is known; in a first try it was half, and
what is right taught hardly more than the rest. The filter keeps the fifth of the pool that the captioner before tuning
finds least perplexing, given the picture; beside it a random fifth, all of it, and, as an oracle, a random fifth of
what is right. All arms have the same steps, and rates of their own.

The soup: three captioners are tuned on the filtered emoji, the filtered drawings, and both, each from the same start; a
greedy soup is chosen on validation pictures, and so is the best of the three. A seed draws what is exchanged, what is
chosen at random, batches and dropped features. Perplexity is per word, the caption's end included.
"""

import dataclasses
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.tasks.captions.captioner import TINY, Params, Recipe, seen
from experiments.tasks.captions.tuning import REFERENCES, World, at_random, pictures
from experiments.tasks.captions.words import Reference, references, to_ids, within
from jaxft.evaluation import token_f1
from jaxft.merging import greedy_soup
from jaxft.seal import check_open
from jaxft.selection import select_band
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, higher

DRAWINGS = "clipart"


@dataclasses.dataclass(frozen=True)
class Config:
  recipe: Recipe = Recipe(sources=("emoji/google", "emoji/twitter"))
  exchanged: float = 0.7  # share of the pool whose captions are another picture's
  kept: float = 0.2
  steps: int = 60
  batch_size: int = 60
  rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 1e-3)
  seeds: tuple[int, ...] = tuple(range(10))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(recipe=TINY, kept=0.5, steps=4, batch_size=4, rates=(0.1, 0.3), seeds=(0, 1), tuning_seeds=(100,))

START, ALL, CLEAN = "before", "all of the pool", "a fifth that is right"
RANDOM, METHOD = "a random fifth", "the least perplexing fifth"
BEST, SOUP = "the best of three data sets", "greedy soup of three data sets"
MIXES = ("emoji", "drawings", "both")  # what the members of the soup are tuned on, each filtered


class Pool(NamedTuple):
  """What a seed may learn from: rows of captions, whether each is its picture's, its perplexity, and its data set."""

  ids: Int[np.ndarray, "n 1 time"]
  right: Bool[np.ndarray, " n"]
  perplexity: Float[np.ndarray, " n"]
  drawn: Bool[np.ndarray, " n"]


def drawings(split: str, recipe: Recipe) -> tuple[Float[np.ndarray, "n width"], list[Reference]]:
  """Drawings with their titles."""
  check_open(split)
  vision = recipe.towers.vision
  return seen(DRAWINGS, split, vision=vision), references(DRAWINGS, split, limit=vision.limit)


def auroc(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
  """The probability that a positive scores higher than a negative; ties count half."""
  above, below = scores[positive], np.sort(scores[~positive])
  ranks = np.searchsorted(below, above, side="left") + np.searchsorted(below, above, side="right")
  return float(ranks.mean() / (2 * len(below)))


class Tuned:
  """Captioners tuned on parts of a pool, and what their captions are worth."""

  def __init__(self, config: Config):
    self.config, self.world = config, World(config.recipe)
    words = self.world.made.words
    parts, said = [], []
    for x, own in (pictures("train", config.recipe), drawings("train", config.recipe)):
      known = within([one._replace(tags=()) for one in own], words)
      kept = [at for at, one in enumerate(known) if one.name]
      parts.append(x[kept])
      said.append([known[at].name for at in kept])
    self.pictures = np.concatenate(parts)
    self.drawn = np.arange(len(self.pictures)) >= len(parts[0])
    self.ids = to_ids([*said[0], *said[1]], words, longest=config.recipe.longest)
    self.log_probs = jax.jit(self.world.log_probs)
    self.pool, self._held = cache(self._pool), cache(self._both)
    self._members = cache(self._tune_members)

  def _both(self, split: str) -> tuple[Float[np.ndarray, "n width"], list[str], int]:
    """Held-out pictures of both data sets, their names, and how many are emoji."""
    (x, first), (y, second) = pictures(split, self.config.recipe), drawings(split, self.config.recipe)
    return np.concatenate([x, y]), [" ".join(one.name) for one in (*first, *second)], len(x)

  def _pool(self, seed: int) -> Pool:
    """The captions of a seed, some exchanged within their data set."""
    rng, ids = np.random.default_rng(seed), self.ids.copy()
    right = np.ones(len(ids), bool)
    for own in (np.flatnonzero(~self.drawn), np.flatnonzero(self.drawn)):
      moved = rng.permutation(own)[: round(self.config.exchanged * len(own))]
      ids[moved] = self.ids[np.roll(moved, 1)]
      right[moved] = (ids[moved] == self.ids[moved]).all(1)
    likely = np.asarray(self.log_probs(self.world.made.params, self.pictures, ids))
    return Pool(ids[:, None], right, np.exp(-likely), self.drawn)

  def filtered(self, seed: int, mix: str = "both") -> Int[np.ndarray, " chosen"]:
    """The rows that the captioner before tuning finds least perplexing, of one data set or of both."""
    pool = self.pool(seed)
    eligible = {"emoji": ~pool.drawn, "drawings": pool.drawn, "both": np.ones(len(pool.drawn), bool)}[mix]
    return select_band(pool.perplexity, high=self.config.kept, eligible=eligible)

  def rows(self, arm: str, seed: int) -> Int[np.ndarray, " chosen"]:
    """What an arm learns from."""
    pool, rng = self.pool(seed), np.random.default_rng(seed)
    if arm == METHOD:
      return self.filtered(seed)
    some = np.flatnonzero(pool.right) if arm == CLEAN else np.arange(len(pool.right))
    return some if arm == ALL else rng.permutation(some)[: len(self.filtered(seed))]

  def tune(self, own: Int[np.ndarray, " chosen"], rate: float, seed: int) -> Params:
    """The captioner after so many steps on some rows of the pool."""
    c, rng = self.config, np.random.default_rng(seed)
    rows = own[at_random(rng, len(own), steps=c.steps, batch=c.batch_size)].astype(np.int32)
    params, _ = self.world.tune(
        self.world.made.params, self.pictures, self.pool(seed).ids, rows, jax.random.key(seed), rate, by=REFERENCES)
    return params

  def before(self, rate: None, seed: int, split: str) -> dict[str, Any]:
    """As it is."""
    return self._scores(self.world.made.params, seed, split)

  def tuned(self, arm: str, rate: float, seed: int, split: str) -> dict[str, Any]:
    """Tuned by one arm."""
    return self._scores(self.tune(self.rows(arm, seed), rate, seed), seed, split)

  def _tune_members(self, rate: float, seed: int) -> list[Params]:
    return [jax.device_get(self.tune(self.filtered(seed, mix), rate, seed)) for mix in MIXES]

  def merged(self, arm: str, rate: float, seed: int, split: str) -> dict[str, Any]:
    """One of the members, or a soup of some, chosen on validation pictures."""
    members = self._members(rate, seed)
    score = lambda params: np.mean(self._f1(params, "validation"))
    soup = max(members, key=score) if arm == BEST else greedy_soup(members, score)[0]
    return self._scores(soup, seed, split)

  def _f1(self, params: Params, split: str) -> list[float]:
    x, names, _ = self._held(split)
    return token_f1(self.world.captions(params, x), names)

  def _scores(self, params: Params, seed: int, split: str) -> dict[str, Any]:
    found, pool, (_, _, emoji) = self._f1(params, split), self.pool(seed), self._held(split)
    # Both data sets count alike, however many pictures they have.
    weights = np.concatenate([np.full(emoji, 1 / emoji), np.full(len(found) - emoji, 1 / (len(found) - emoji))])
    return {
        "f1": np.asarray(found) * weights * len(found) / 2, "emoji": found[:emoji], "drawings": found[emoji:],
        "detected": auroc(pool.perplexity, ~pool.right), "right": float(pool.right[self.filtered(seed)].mean())}


def arms(config: Config) -> dict[str, Arm]:
  """Before tuning, parts of the pool, and what three data sets give together."""
  own = Tuned(config)
  return {START: Arm(own.before),
          **{arm: Arm(partial(own.tuned, arm), config.rates) for arm in (ALL, CLEAN, RANDOM, METHOD)},
          **{arm: Arm(partial(own.merged, arm), config.rates) for arm in (BEST, SOUP)}}


STUDY = Study(
    slug="points", arxiv="2409.04828", title="POINTS: Improving Your Vision-language Model with Affordable Strategies",
    question="which data", use_when="captions are many and of uneven quality, and a captioner is at hand",
    setting="a home-made captioner of two vendors' emoji learns a third vendor's and drawings, most of whose captions "
            "are exchanged, in 60 steps of 60",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("f1", "F1 of the words of captions and names, the mean of emoji and of drawings"),
        Score("emoji", "F1 on emoji"), Score("drawings", "F1 on drawings"),
        Score("detected", "AUROC of perplexity for an exchanged caption", shared_items=False),
        Score("right", "share of the least perplexing fifth whose caption is the picture's", shared_items=False)),
    choose_by="f1", baseline=RANDOM, method=METHOD, start=START,
    premises=(
        Premise("perplexity tells an exchanged caption", lambda s: s[START].detected, at_least=0.7),
        Premise("what is right teaches more than a random part of the pool", lambda s: s[CLEAN].f1 - s[RANDOM].f1,
                at_least=0.01)),
    claims=(
        Claim("the least perplexing fifth teaches more than a random one", higher("f1"), smallest=0.01),
        Claim("more than all of the pool", higher("f1", METHOD, ALL), smallest=0.005),
        Claim("a greedy soup over data sets is better than the best of them", higher("f1", SOUP, BEST),
              smallest=0.005)),
    plot=Bars("f1"))
