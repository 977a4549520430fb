"""NoiseFiT: do passes under noise that must agree make facts known in wordings that were not trained on?

    jaxft run noisefit            ten minutes on one core
    jaxft run noisefit --smoke    seconds

A fact is the value of a relation of an entity, asked for in three wordings. A small decoder of four layers learns the
facts of 30 entities in all wordings, then by supervised tuning those of 20 others in the first wording alone. Scored is
how often it gives these values when asked in another wording, at temperature 0.5: the probability of the right one,
which is what five samples of each would estimate. Rates are chosen for each arm by the second wording; the third is for
the test.

NoiseFiT makes a clean pass and two noisy ones: the clean one learns the answers, the noisy ones follow it and each
other. The noise, of 0.1 deviations as the paper has it, is put out by two of the four layers, those with the highest
ratio of signal to noise on one batch. Arms of the same number of steps: supervised tuning, NEFTune with alpha 5, R-Drop
with dropout 0.05, the likelihood under noise alone, and agreement without the likelihood. One arm more has SFT make
three times the steps, for what three passes cost. A seed draws the facts, the pretraining, the order and the noise.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments.tasks import small_decoder as small
from experiments.tasks.small_decoder import PAD, Rows, Vocabulary
from jaxft.analysis import layer_snr
from jaxft.choices import top_layers
from jaxft.data import adaptive_gaussian_noise, embedding_noise, layer_noise
from jaxft.losses import Mean, kl_divergence, next_tokens, noise_consistency, symmetric_kl
from jaxft.models import decoder
from jaxft.models.dropout import layer_dropout
from jaxft.seal import check_open
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, higher

WORDINGS = ("what is the {r} of {e} ?", "{e} 's {r} is", "tell me for {e} its {r} :")
LENGTH = 10
SITE = "layers/out"


@dataclasses.dataclass(frozen=True)
class Config:
  dim: int = 32
  num_layers: int = 4
  num_heads: int = 4
  known: int = 30
  new: int = 20
  relations: int = 4
  values: int = 20
  base_steps: int = 400
  base_batch_size: int = 64
  base_rate: float = 5e-3
  steps: int = 100
  batch_size: int = 32
  noisy_layers: int = 2
  noise_std: float = 0.1
  alpha: float = 0.5
  consistency_weight: float = 0.1
  neftune: float = 5.0
  dropout: float = 0.05
  temperature: float = 0.5
  rates: tuple[float, ...] = (2e-3, 5e-3, 1.2e-2, 3e-2)
  seeds: tuple[int, ...] = tuple(range(8))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)

  def vocabulary(self) -> Vocabulary:
    """Wordings, entities, relations and values."""
    words = {word for wording in WORDINGS for word in wording.split() if "{" not in word}
    named = [f"{kind}{i}" for kind, n in (("e", self.known + self.new), ("r", self.relations), ("v", self.values))
             for i in range(n)]
    return Vocabulary((*small.SPECIAL, *sorted(words), *named))


SMOKE = Config(
    dim=16, num_layers=2, num_heads=2, known=6, new=4, relations=2, values=5, base_steps=20, base_batch_size=16,
    steps=4, batch_size=4, noisy_layers=1, rates=(1e-2,), seeds=(0, 1), tuning_seeds=(100,))

BASE, SFT, LONGER, NEFTUNE, RDROP = "base", "SFT", "SFT, three times the steps", "NEFTune", "R-Drop"
NOISE, METHOD, ALONE = "likelihood under noise", "NoiseFiT", "agreement alone"
TUNED = (SFT, LONGER, NEFTUNE, RDROP, NOISE, METHOD, ALONE)


class Facts:
  """The facts of a seed, as rows.

  Attributes:
    known: of the entities of the pretraining, in all wordings.
    trained: of the others, in the first wording.
    held: `[wordings, facts]`, the same facts in the other wordings.
  """

  def __init__(self, config: Config, seed: int):
    rng, rows = np.random.default_rng(seed), partial(small.rows_of, config.vocabulary(), length=LENGTH)
    value = rng.integers(config.values, size=(config.known + config.new, config.relations))

    def of(entities: range, wording: str) -> list[tuple[str, str]]:
      return [(wording.format(e=f"e{e}", r=f"r{r}"), f"v{value[e, r]}") for e in entities
              for r in range(config.relations)]

    old, new = range(config.known), range(config.known, config.known + config.new)
    self.known = rows([pair for wording in WORDINGS for pair in of(old, wording)])
    self.trained = rows(of(new, WORDINGS[0]))
    self.held = jax.tree.map(lambda *x: np.stack(x), *(rows(of(new, wording)) for wording in WORDINGS[1:]))


class World:
  """The facts and the pretrained model of each seed, and what an arm makes of it."""

  def __init__(self, config: Config):
    c = self.config = config
    self.shape = small.shape(
        c.vocabulary(), dim=c.dim, num_layers=c.num_layers, num_heads=c.num_heads, length=LENGTH)
    self.facts, self.base, self.layers = cache(partial(Facts, c)), cache(self._base), cache(self._layers)
    self._pretrain, self._ratios, self._judge = map(jax.jit, (self._pretrained, self._ratio, self._judged))
    self._tune = jax.jit(self._tuned, static_argnums=0)

  def _pretrained(self, key: Array, rows: Rows, order: Array) -> Any:
    loss = partial(small.objective, self.shape)
    return small.train(key, small.init(key, self.shape), rows, order, loss, rate=self.config.base_rate).params

  def _base(self, seed: int) -> Any:
    c, rows = self.config, self.facts(seed).known
    order = small.draw_order(seed, len(rows.ids), steps=c.base_steps, batch_size=c.base_batch_size)
    return self._pretrain(jax.random.key(seed), rows, order)

  def _ratio(self, params: Any, batch: Rows, key: Array) -> Float[Array, " layers"]:
    real = jnp.asarray(batch.ids != PAD)
    states = decoder.hidden_states(params, self.shape, batch.ids, record=(SITE,), remat="none").recorded[SITE]
    noise = lambda key, h: adaptive_gaussian_noise(key, h, real, noise_std=self.config.noise_std)
    return layer_snr(states, noise, key, where=real)

  def _layers(self, seed: int) -> Any:
    """Which layers put out noise: by one batch of what is to be learned."""
    batch = Rows(*(x[: self.config.batch_size] for x in self.facts(seed).trained))
    ratios = np.asarray(self._ratios(self.base(seed), batch, jax.random.key(seed)))
    return top_layers(ratios, k=self.config.noisy_layers)

  def loss(self, arm: str, layers: Any, params: Any, batch: Rows, key: Array, done: Array) -> Array:
    """That of one arm."""
    del done
    c, (first, second, third) = self.config, jax.random.split(key, 3)
    real = jnp.asarray(batch.ids != PAD)
    labels, weights = next_tokens(batch.ids, batch.scored)
    run = lambda edits=None: small.logits(params, self.shape, batch.ids, edits=edits)
    nll = lambda scores: optax.softmax_cross_entropy_with_integer_labels(scores, labels)
    noisy = lambda key: run({SITE: layer_noise(key, layers, real, noise_std=c.noise_std)})
    if arm in (SFT, LONGER):
      values = nll(run())
    elif arm == NEFTUNE:
      values = nll(run({"embed": lambda x: embedding_noise(first, x, real, alpha=c.neftune)}))
    elif arm == NOISE:
      values = nll(noisy(first))
    elif arm == RDROP:
      sites = ("layers/attention/out", "layers/mlp/out")
      drop = lambda key: {site: layer_dropout(jax.random.fold_in(key, i), c.num_layers, c.dropout)
                          for i, site in enumerate(sites)}
      scores = run(drop(first)), run(drop(second))
      values = (nll(scores[0]) + nll(scores[1])) / 2 + symmetric_kl(*scores)[0] / 2
    else:
      alpha = 0.0 if arm == ALONE else c.alpha
      values, _ = noise_consistency(run(), noisy(second), noisy(third), labels, alpha=alpha,
                                    consistency_weight=c.consistency_weight, where=weights)
    return Mean.of(values, weights).value

  def _tuned(self, arm: str, params: Any, layers: Any, key: Array, rows: Rows, order: Array, rate: Any) -> Any:
    return small.train(key, params, rows, order, partial(self.loss, arm, layers), rate=rate).params

  def _judged(self, params: Any, rows: Rows) -> tuple[Float[Array, " n"], Float[Array, "n vocab"]]:
    """The probability of each row's value, and the scores of all, at the temperature of the answers."""
    at = jnp.argmax(jnp.asarray(rows.scored), axis=1)
    scores = jnp.take_along_axis(small.logits(params, self.shape, rows.ids), (at - 1)[:, None, None], axis=1)[:, 0]
    scores = scores / self.config.temperature
    value = jnp.take_along_axis(jnp.asarray(rows.ids), at[:, None], axis=1)
    return jnp.take_along_axis(jax.nn.softmax(scores), value, axis=1)[:, 0], scores

  def run(self, arm: str, rate: float | None, seed: int, split: str) -> dict[str, Any]:
    """One arm; the facts are the same in all splits, and the wording that is asked in is the split's."""
    check_open(split)
    c, facts, params = self.config, self.facts(seed), self.base(seed)
    if arm != BASE:
      steps = c.steps * (3 if arm == LONGER else 1)
      order = small.draw_order(seed, len(facts.trained.ids), steps=steps, batch_size=c.batch_size)
      layers = jnp.asarray(self.layers(seed))
      params = self._tune(arm, params, layers, jax.random.key(seed), facts.trained, order, rate)
    wordings = [self._judge(params, Rows(*(x[i] for x in facts.held))) for i in range(len(WORDINGS) - 1)]
    asked, scores = wordings[{"validation": 0, "test": 1}[split]]
    trained, as_trained = self._judge(params, facts.trained)
    apart, _ = kl_divergence(as_trained, scores)
    return {"held": np.asarray(asked), "trained": np.asarray(trained), "apart": np.asarray(apart),
            "known": np.asarray(self._judge(params, facts.known)[0])}


def arms(config: Config) -> dict[str, Arm]:
  """The pretrained model, and ways to tune it."""
  world = World(config)
  return {BASE: Arm(partial(world.run, BASE))} | {arm: Arm(partial(world.run, arm), config.rates) for arm in TUNED}


STUDY = Study(
    slug="noisefit", arxiv="2504.03302",
    title="Noise Augmented Fine Tuning for Mitigating Hallucinations in Large Language Models",
    question="few labels",
    use_when="facts are taught in one wording and asked for in others",
    setting="a 4-layer decoder that knows facts in three wordings learns 80 others in one of them",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("held", "probability of the right value at temperature 0.5, in a wording not trained on",
              shared_items=False),
        Score("trained", "the same in the wording trained on", shared_items=False),
        Score("apart", "nats between what is answered in the two wordings", higher_is_better=False,
              shared_items=False),
        Score("known", "probability of the values known before, in all wordings", shared_items=False)),
    choose_by="held", baseline=SFT, method=METHOD, start=BASE, kept="known",
    premises=(
        Premise("SFT teaches the facts", lambda s: s[SFT].trained, at_least=0.8),
        Premise("and less of them in another wording", lambda s: s[SFT].trained - s[SFT].held, at_least=0.1),
        Premise("but more than nothing", lambda s: s[SFT].held - s[BASE].held, at_least=0.1)),
    claims=(
        Claim("NoiseFiT gives the right value in another wording more often than SFT", higher("held"), smallest=0.02),
        Claim("and than SFT with three times the steps", higher("held", METHOD, LONGER), smallest=0.02),
        Claim("and than R-Drop", higher("held", METHOD, RDROP), smallest=0.02),
        Claim("agreement alone teaches nothing: with the likelihood more is right", higher("held", METHOD, ALONE),
              smallest=0.1)),
    plot=Bars("held"))
