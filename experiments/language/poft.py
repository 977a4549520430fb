"""PoFT: does asking for more likelihood than aligned models give keep a tuned model from learning wrong answers?

    jaxft run poft            seven minutes on one core
    jaxft run poft --smoke    seconds

A decoder of two layers has learnt to sort digits from demonstrations of which half have two neighbours swapped; it is
tuned, for sixteen passes, on few demonstrations of which two fifths are wrong in this way. Three smaller decoders that
learnt from right demonstrations alone, each from few of its own, stand for the aligned models. Cross-entropy, also on
the demonstrations that the aligned models find likeliest, is compared with PoFT, whose gradient is that of
cross-entropy times a weight that is small where aligned models find an answer unlikely.

Premises: wrong demonstrations harm cross-entropy, and aligned models tell them from right ones. Scored is the
probability with which the right answer of an unseen prompt is drawn, which is exact. A seed draws all demonstrations,
inits and orders; rates are chosen for each arm.
"""

import dataclasses
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.tasks import small_decoder
from experiments.tasks.small_decoder import Params, Rows
from experiments.tasks.sorted_preferences import LENGTH, VOCABULARY, held_out, problems, swapped
from jaxft import losses
from jaxft.losses import Mean
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, equal, higher

BEFORE, ALIGNED, PLAIN, FILTERED, POFT, PLAIN_CLEAN, POFT_CLEAN = (
    "before", "aligned models alone", "cross-entropy", "cross-entropy of the likeliest", "PoFT",
    "cross-entropy, all right", "PoFT, all right")


@dataclasses.dataclass(frozen=True)
class Config:
  dim: int = 48
  base_steps: int = 600
  demonstrated: int = 4000
  habit: float = 0.5
  aligned: int = 3
  aligned_dim: int = 32
  aligned_steps: int = 50
  aligned_demonstrated: int = 100
  learning_rate: float = 4e-3
  examples: int = 128
  wrong: float = 0.4
  steps: int = 128
  batch_size: int = 16
  held: int = 300
  rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
  seeds: tuple[int, ...] = tuple(range(10))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    dim=16, base_steps=20, demonstrated=64, aligned=2, aligned_dim=16, aligned_steps=20, aligned_demonstrated=64,
    learning_rate=1e-2, examples=16, steps=4, batch_size=4, held=8, rates=(1e-3, 1e-2), seeds=(0, 1),
    tuning_seeds=(100,))


class Examples(NamedTuple):
  """Demonstrations, and the mean log-probability a token that aligned models give to each."""

  rows: Rows
  reference: Any


def demonstrations(rng: np.random.Generator, n: int, *, wrong: float) -> tuple[Rows, np.ndarray]:
  """Demonstrations, and which are right: all but a share of exactly this size."""
  given = problems(rng, n, parity=0)
  of_wrong = set(rng.permutation(n)[: round(wrong * n)].tolist())
  pairs = [(prompt, swapped(rng, answer) if i in of_wrong else answer) for i, (prompt, answer) in enumerate(given)]
  return small_decoder.rows_of(VOCABULARY, pairs, length=LENGTH), np.array([i not in of_wrong for i in range(n)])


class World:
  """The decoders before tuning and the aligned ones of each seed, and how one is tuned."""

  def __init__(self, config: Config):
    self.config = config
    shape = partial(small_decoder.shape, VOCABULARY, num_layers=2, num_heads=4, length=LENGTH)
    self.shape, self.aligned_shape = shape(dim=config.dim), shape(dim=config.aligned_dim)
    self.base, self.aligned = cache(self._base), cache(self._aligned)
    self._learn = jax.jit(self._learned, static_argnums=0)
    self._tune = jax.jit(self._tuned)

  def _learned(self, shape: Any, key: Array, rows: Rows, order: Array) -> Params:
    of_init, of_steps = jax.random.split(key)
    start = small_decoder.init(of_init, shape)
    loss = partial(small_decoder.objective, shape)
    return small_decoder.train(of_steps, start, rows, order, loss, rate=self.config.learning_rate).params

  def _base(self, seed: int) -> Params:
    c = self.config
    rows, _ = demonstrations(np.random.default_rng((seed, 1)), c.demonstrated, wrong=c.habit)
    order = small_decoder.draw_order(seed, c.demonstrated, steps=c.base_steps, batch_size=32)
    return self._learn(self.shape, jax.random.key(seed), rows, order)

  def _aligned(self, seed: int) -> list[Params]:
    c, found = self.config, []
    for i in range(c.aligned):
      rows, _ = demonstrations(np.random.default_rng((seed, 2, i)), c.aligned_demonstrated, wrong=0.0)
      order = small_decoder.draw_order(seed + 1000 * (i + 1), c.aligned_demonstrated, steps=c.aligned_steps,
                                       batch_size=32)
      found.append(self._learn(self.aligned_shape, jax.random.key(seed + 1000 * (i + 1)), rows, order))
    return found

  def examples(self, seed: int, *, wrong: float) -> tuple[Examples, np.ndarray]:
    """What is tuned on, scored by the aligned models once, and which of it is right."""
    rows, right = demonstrations(np.random.default_rng((seed, 3)), self.config.examples, wrong=wrong)
    scores = [-small_decoder.answer_nll(params, self.aligned_shape, rows) for params in self.aligned(seed)]
    return Examples(rows, np.mean(scores, axis=0)), right

  def _tuned(self, preferred: Any, key: Array, params: Params, data: Examples, order: Array, rate: Any) -> Params:
    def objective(params: Params, batch: Examples, key: Array, done: Array) -> Array:
      del key, done
      score = -small_decoder.answer_nll(params, self.shape, batch.rows)
      return jnp.where(preferred, Mean.of(*losses.poft(score, batch.reference)).value, -jnp.mean(score))

    return small_decoder.train(key, params, data, order, objective, rate=rate).params

  def tuned(self, arm: str, rate: float, seed: int) -> tuple[Params, float]:
    """The params of an arm, and how well the aligned models tell its wrong demonstrations from the right ones."""
    c = self.config
    data, right = self.examples(seed, wrong=0.0 if arm in (PLAIN_CLEAN, POFT_CLEAN) else c.wrong)
    told = float(np.mean(data.reference[right][:, None] > data.reference[~right])) if not right.all() else 0.5
    if arm == BEFORE:
      return self.base(seed), told
    order = small_decoder.draw_order(seed, c.examples, steps=c.steps, batch_size=c.batch_size)
    if arm == FILTERED:  # as many as are right, and as many steps
      kept = np.argsort(-data.reference, kind="stable")[: c.examples - round(c.wrong * c.examples)]
      order = kept[small_decoder.draw_order(seed, len(kept), steps=c.steps, batch_size=c.batch_size)]
    preferred = np.bool_(arm in (POFT, POFT_CLEAN))
    return self._tune(preferred, jax.random.key(seed), self.base(seed), data, order, np.float32(rate)), told

  def run(self, arm: str, rate: float | None, seed: int, split: str) -> dict[str, Any]:
    """One arm."""
    rows = held_out(split, self.config.held)
    tokens = np.sum(rows.scored, axis=1)
    drawn = lambda params, shape: np.exp(-tokens * np.asarray(small_decoder.answer_nll(params, shape, rows)))
    if arm == ALIGNED:
      each = [(drawn(params, self.aligned_shape), np.asarray(small_decoder.exact_answers(
          params, self.aligned_shape, rows))) for params in self.aligned(seed)]
      of_drawn, greedy = (np.mean(x, axis=0) for x in zip(*each, strict=True))
      return {"drawn": of_drawn, "greedy": greedy, "told": self.tuned(BEFORE, 0.0, seed)[1]}
    params, told = self.tuned(arm, rate or 0.0, seed)
    return {"drawn": drawn(params, self.shape), "told": told,
            "greedy": np.asarray(small_decoder.exact_answers(params, self.shape, rows))}


def arms(config: Config) -> dict[str, Arm]:
  """The model before, the aligned ones, and five ways to tune."""
  world = World(config)
  return {**{arm: Arm(partial(world.run, arm)) for arm in (BEFORE, ALIGNED)},
          **{arm: Arm(partial(world.run, arm), config.rates)
             for arm in (PLAIN, FILTERED, POFT, PLAIN_CLEAN, POFT_CLEAN)}}


STUDY = Study(
    slug="poft", arxiv="2412.12865",
    title="Preference-Oriented Supervised Fine-Tuning: Favoring Target Model Over Aligned Large Language Models",
    question="preferences", use_when="demonstrations are partly wrong and models that know better can score them",
    setting="a 2-layer decoder that sorts digits, on 128 demonstrations, two fifths of them wrong; three aligned ones",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("drawn", "probability of drawing the right answer of an unseen prompt"),
        Score("greedy", "share of unseen prompts answered rightly by greedy decoding"),
        Score("told", "share of pairs of demonstrations of which aligned models find the right one likelier",
              shared_items=False)),
    choose_by="drawn", baseline=PLAIN, method=POFT, start=BEFORE, best=PLAIN_CLEAN,
    premises=(
        Premise("wrong demonstrations harm cross-entropy", lambda s: s[PLAIN_CLEAN].drawn - s[PLAIN].drawn,
                at_least=0.05),
        Premise("aligned models tell right demonstrations from wrong ones", lambda s: s[PLAIN].told, at_least=0.7)),
    claims=(
        Claim("PoFT draws right answers more often than cross-entropy", higher("drawn"), smallest=0.02),
        Claim("and more often than the aligned models", higher("drawn", POFT, ALIGNED), smallest=0.02),
        Claim("and more often than cross-entropy of the demonstrations that these find likeliest",
              higher("drawn", POFT, FILTERED), smallest=0.02),
        Claim("where all demonstrations are right the two are equal", equal("drawn", POFT_CLEAN, PLAIN_CLEAN),
              smallest=0.02)),
    plot=Bars("drawn"))
