"""DeconfoundLM: does a policy aligned to logged outcomes do better once the effect of popularity is taken off them?

    jaxft run deconfoundlm            six minutes on one core
    jaxft run deconfoundlm --smoke    seconds

A decoder of two layers learns to write headlines of five words for a topic, as they were shown, and is then aligned by
DPO to their outcomes. Popularity, which texts move, and something unseen that moves popularity too, move outcomes. A
linear reward model of an arm's corrected outcomes labels pairs of logged headlines, and what the policy then writes is
measured by what it is truly worth: 0 is what was shown, 1 the best headline of each topic. DeconfoundLM is here
two-stage least squares with an instrument of popularity; the source names an estimator for no case but this one. A
second log is real: sentences of movie reviews as MiniLM embeds them, rated by one of their twenty raters, with a
popularity added; the reward model then chooses the best of 16 unseen sentences, which the mean rating judges.

A third has no text: earnings after a job training, compared with those of a survey, where an experiment tells the
effect. It has no instrument, so DeconfoundLM controls for what is known.

Learning rates are chosen by what an arm's own reward model says of the headlines that its policy writes, never by what
these are worth. A seed draws worth, pull and logs, batches, init and samples.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.language.observational import (
  CONTROL,
  INVARIANT,
  LOT,
  MARGINAL,
  METHOD,
  RAW,
  REFERENCE,
  TOPICS,
  WORDS,
  Headlines,
  Logs,
  Sentences,
  headlines,
  observed,
  reward_weights,
  strength,
  training_error,
)
from experiments.tasks import small_decoder
from experiments.tasks.small_decoder import Prompts, Rows, Vocabulary, draw_order, prompts_of, rows_of
from jaxft.losses import Mean, dpo
from jaxft.seal import check_open
from jaxft.selection import preference_pairs
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, higher, lower

LENGTH = 2 + len(WORDS)


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "minilm-l6"
  domain: str = "movies"
  logged: int = 2000  # headlines, and sentences
  held_out: int = 600
  components: int = 64
  candidates: int = 16
  dim: int = 32
  layers: int = 2
  pretraining: int = 300
  steps: int = 150
  batch_size: int = 64
  pairs: int = 1000  # of each topic
  beta: float = 0.1
  samples: int = 64  # of each topic
  rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
  seeds: tuple[int, ...] = tuple(range(12))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    model="minilm-l6:tiny", logged=100, held_out=30, components=8, candidates=4, dim=8, layers=1, pretraining=4,
    steps=4, batch_size=16, pairs=40, samples=4, rates=(1e-3, 3e-2), seeds=(0, 1), tuning_seeds=(100,))


class World:
  """Logs, the decoder that writes as they do, and its alignment."""

  def __init__(self, config: Config):
    self.config = config
    self.vocabulary = Vocabulary.of([*TOPICS, *(word for place in WORDS for word in place)])
    self.shape = small_decoder.shape(
        self.vocabulary, dim=config.dim, num_layers=config.layers, num_heads=2, length=LENGTH)
    self.sentences = Sentences(config.model, config.domain, logged=config.logged, held_out=config.held_out,
                               components=config.components)
    self.start, self.learned, self.best_rating = cache(self._start), cache(self._learned), cache(self._best_rating)
    self._pretrain = jax.jit(self._pretrained)
    self._align = jax.jit(self._aligned)
    self._log_probs = jax.jit(self.log_probs)

  def rows(self, shown: Headlines) -> Rows:
    """As the decoder reads them."""
    return rows_of(self.vocabulary, shown.texts(), length=LENGTH)

  def log_probs(self, params: Any, rows: Rows) -> Float[Array, " n"]:
    """Of whole headlines."""
    values, weights = small_decoder.token_nll(params, self.shape, rows)
    return -jnp.sum(values * weights, axis=1)

  def _pretrained(self, key: Array, rows: Rows, order: Int[Array, "steps batch"]) -> Any:
    of_init, of_steps = jax.random.split(key)
    return small_decoder.train(
        of_steps, small_decoder.init(of_init, self.shape), rows, order, partial(small_decoder.objective, self.shape),
        rate=3e-3).params

  def _start(self, seed: int) -> tuple[Headlines, Rows, Any, Float[np.ndarray, " n"]]:
    """What was shown, also as the decoder reads it, the decoder that learned it, and its log-probabilities."""
    c = self.config
    shown = headlines(seed, c.logged, "train")
    rows = self.rows(shown)
    order = draw_order(seed, c.logged, steps=c.pretraining, batch_size=c.batch_size)
    params = self._pretrain(jax.random.key(seed), rows, order)
    return shown, rows, params, np.asarray(self._log_probs(params, rows))

  def _aligned(self, params: Any, pairs: Any, order: Int[Array, "steps batch"], rate: Array) -> Any:
    """DPO."""
    def loss(params: Any, batch: Any, key: Array, done: Array) -> Array:
      del key, done
      both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch["chosen"], batch["rejected"])
      chosen, rejected = jnp.split(self.log_probs(params, both), 2)
      return Mean.of(*dpo(chosen, rejected, batch["reference_chosen"], batch["reference_rejected"],
                          beta=self.config.beta)).value

    return small_decoder.train(jax.random.key(0), params, pairs, order, loss, rate=rate).params

  def _learned(self, arm: str, seed: int) -> tuple[Logs, Float[np.ndarray, " features"]]:
    """What is observed of the headlines that were shown, and the reward model that an arm learns of it."""
    shown = self.start(seed)[0]
    rng = np.random.default_rng((seed, arm == LOT))
    logs = observed(rng, shown.features(), shown.of(shown.worth), shown.of(shown.pull), by_lot=arm == LOT)
    return logs, reward_weights(arm, logs)

  def run(self, arm: str, rate: float | None, seed: int, split: str) -> dict[str, float]:
    """One arm, on all three logs."""
    check_open(split)
    c, (shown, logged, start, reference) = self.config, self.start(seed)
    logs, weights = self.learned(arm, seed)
    params = start
    if arm != REFERENCE:
      rewards = logs.features @ weights
      chosen, rejected = preference_pairs(
          rewards, shown.topics, min_gap=0.5 * float(np.std(rewards)), per_group=c.pairs, seed=seed)
      some = np.arange(c.pairs * len(TOPICS)) % len(chosen)
      pick = lambda of: jax.tree.map(lambda x: x[of[some]], logged)
      pairs = {"chosen": pick(chosen), "rejected": pick(rejected), "reference_chosen": reference[chosen[some]],
               "reference_rejected": reference[rejected[some]]}
      order = draw_order(seed, len(some), steps=c.steps, batch_size=c.batch_size)
      params = self._align(start, pairs, order, jnp.float32(rate))
    tables = {"worth": shown.worth, "popularity": shown.pull, "own": shown.table(weights)}
    return {
        **self._written(params, (seed, split), shown, tables), "rating": self.best_rating(arm, seed, split),
        "earnings": training_error(arm, seed, split), "strength": strength(logs)}

  def _written(
      self, params: Any, draw: tuple[int, str], shown: Headlines, tables: dict[str, np.ndarray]
  ) -> dict[str, float]:
    """What tables say of the policy's headlines; a word out of its place counts as the usual one."""
    topics = np.repeat(np.arange(len(TOPICS)), self.config.samples)
    prompts = prompts_of(self.vocabulary, [TOPICS[topic] for topic in topics], length=1)
    ids = small_decoder.decode(params, self.shape, Prompts(*prompts), max_new_tokens=len(WORDS) + 1, temperature=1.0,
                               key=jax.random.fold_in(jax.random.key(draw[0]), draw[1] == "test"))
    found, places = {}, np.arange(len(WORDS))
    is_word = np.stack([ids[:, i, None] == np.array([self.vocabulary.encode(word)[0] for word in place])
                        for i, place in enumerate(WORDS)], axis=1)  # [texts, places, words]
    for name, table in tables.items():
      usual = (shown.shown * table).sum(2)
      gain = table[topics[:, None], places, is_word.argmax(2)] - usual[topics]
      best = (table.max(2) - usual).sum(1)[topics]
      found[name] = float(np.mean(np.sum(gain * is_word.any(2), axis=1) / best))
    return found

  def _best_rating(self, arm: str, seed: int, split: str) -> float:
    """The mean rating of the sentences that an arm's reward model thinks best, of some candidates each."""
    ratings = self.sentences.ratings(split)
    rng = np.random.default_rng(seed)
    candidates = np.stack([rng.permutation(len(ratings))[: self.config.candidates] for _ in range(300)])
    if arm == REFERENCE:
      return float(ratings[candidates[:, 0]].mean())
    rewards = self.sentences.features(split) @ reward_weights(arm, self.sentences.logs(seed, by_lot=arm == LOT))
    best = candidates[np.arange(len(candidates)), rewards[candidates].argmax(1)]
    return float(ratings[best].mean())


def arms(config: Config) -> dict[str, Arm]:
  """The policy as it is, aligned to outcomes as they are or corrected, and where popularity was drawn by lot."""
  world = World(config)
  tuned = {arm: Arm(partial(world.run, arm), config.rates) for arm in (RAW, INVARIANT, MARGINAL, CONTROL, METHOD, LOT)}
  return {REFERENCE: Arm(partial(world.run, REFERENCE)), **tuned}


STUDY = Study(
    slug="deconfoundlm", arxiv="2506.00152",
    title="Aligning Language Models with Observational Data: Opportunities and Risks from a Causal Perspective",
    question="preferences",
    use_when="outcomes are logged, known causes beside the text move them, and an instrument or all causes are known",
    setting="DPO of a 2-layer decoder on logged headlines; best of 16 rated sentences; earnings after a job training",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("worth", "true worth of written headlines: 0 as shown, 1 the best of each topic", shared_items=False),
        Score("popularity", "popularity that they draw, on the same scale", shared_items=False),
        Score("rating", "mean human rating of the sentence chosen of 16, from -4 to 4", shared_items=False),
        Score("earnings", "error of the training's effect against the experiment, in $1,000", higher_is_better=False,
              shared_items=False),
        Score("own", "what the arm's reward model says of them, on the same scale", shared_items=False),
        Score("strength", "first-stage F of the instrument", shared_items=False)),
    choose_by="own", baseline=RAW, method=METHOD, start=REFERENCE, best=LOT, gain="worth",
    premises=(
        Premise("outcomes as they are lead to less worth than those with popularity by lot",
                lambda s: s[LOT].worth - s[RAW].worth, at_least=0.15),
        Premise("and to sentences that are rated lower", lambda s: s[LOT].rating - s[RAW].rating, at_least=0.2),
        Premise("compared with a survey, training seems to lower earnings by thousands of dollars",
                lambda s: s[RAW].earnings, at_least=3.0),
        Premise("the instrument is strong", lambda s: s[RAW].strength, at_least=10.0)),
    claims=(
        Claim("the policy writes headlines of more worth after DeconfoundLM than by outcomes as they are",
              higher("worth"), smallest=0.05),
        Claim("and than with a reward that is uncorrelated with popularity", higher("worth", METHOD, INVARIANT),
              smallest=0.05),
        Claim("real sentences that it chooses are rated higher", higher("rating"), smallest=0.1),
        Claim("its effect of the job training is nearer to the experiment's, in $1,000", lower("earnings"),
              smallest=1.0)),
    plot=Bars("worth"))
