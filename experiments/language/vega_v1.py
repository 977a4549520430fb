"""Vega v1: do adversarial, self-calibrated and transductive fine-tuning help where labels are few and noisy?

    jaxft run vega-v1            ten minutes on one core
    jaxft run vega-v1 --smoke    seconds

Sentences come from reviews of films, reviews of products, editorials or tweets. A classifier of one hidden layer reads
the frozen embeddings of MiniLM, normed to the same scale, and learns from 400 sentences of which 120 have a wrong
label, over 150 whole-batch steps. The tricks, in the reading of their names that the library has, as the paper gives no
formulas:

*Adversarial*: beside the loss of the task five times the symmetric divergence between the answers to an embedding and
to one that is moved where the answer changes most. *Self-calibrated*: five classifiers of four fifths each judge the
fifth they have not seen, and the labels are mixed with what they say. *Transductive*: the classifier labels the
sentences that it is to be tested on, and the surest tenth of them for each class join what it learns from. *All three*
does one after the other. Each arm chooses a decay of weights and one number of its own; plain training's is a smoothing
of its labels. The rate is one, as with a decay that is chosen rates from 0.0003 to 0.01 were alike.

The paper presupposes noise that hurts, and that models of other folds tell wrong labels from right ones. Whether they
do hangs on the decay: with little of it they repeat the noise, and are right less often than the labels. Transductive
tuning uses test sentences, never their labels. A seed draws sentences, wrong labels, folds and init.
"""

import dataclasses
from collections.abc import Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxft.data import adversarial_consistency, folds, relabel, source
from jaxft.evaluation.calibration import calibration_error
from jaxft.evaluation.embed import embed_texts
from jaxft.formats.pretrained import load
from jaxft.models import encoder
from jaxft.models.linear import linear
from jaxft.seal import check_open
from jaxft.selection import confident
from jaxft.studies.study import Arm, Bars, Claim, Grid, Premise, Score, Study, higher

PLAIN, CLEAN = "plain", "plain, right labels"
DOMAINS = ("movies", "products", "news", "tweets")
CLASSES = len(DOMAINS)
ADVERSARIAL, CALIBRATED, TRANSDUCTIVE, METHOD = "adversarial", "self-calibrated", "transductive", "Vega's three tricks"


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "minilm-l6"
  max_length: int = 64
  pool: int = 2400
  held_out: int = 800
  labelled: int = 400
  wrong: float = 0.3
  hidden: int = 64
  steps: int = 150
  folds: int = 5
  adversarial_weight: float = 5.0
  noise: float = 1e-2
  share: float = 0.1  # of the unlabelled sentences, for each class
  rate: float = 1e-2
  decays: tuple[float, ...] = (10.0, 20.0, 40.0, 80.0, 160.0)
  smoothings: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4)
  sizes: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)  # of an adversarial step
  mixes: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
  weights: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0, 30.0)  # of a pseudo-label
  all_size: float = 0.1  # the first two of these, where all three are at work
  all_mix: float = 0.5
  seeds: tuple[int, ...] = tuple(range(20))
  tuning_seeds: tuple[int, ...] = (100, 101, 102, 103, 104)


SMOKE = Config(
    model="minilm-l6:tiny", max_length=16, pool=32, held_out=20, labelled=16, hidden=4, steps=2, folds=2,
    rate=1e-1, decays=(1.0, 3.0), smoothings=(0.0, 0.2), sizes=(0.1, 1.0), mixes=(0.5, 1.0),
    weights=(0.3, 1.0), seeds=(0, 1), tuning_seeds=(100,))


class Sentences(NamedTuple):
  """Embeddings, each with mean 0 and variance 1, and labels."""

  x: Float[np.ndarray, "n dim"]
  labels: Int[np.ndarray, " n"]


class Settings(NamedTuple):
  """What is chosen for an arm; what it does not use has no effect."""

  decay: float
  smoothing: float = 0.0
  size: float = 0.0
  mix: float = 0.0
  weight: float = 0.0


def logits(params: Any, x: Float[Array, "n dim"]) -> Float[Array, "n classes"]:
  """One hidden layer."""
  return linear(jax.nn.gelu(linear(x, params["hidden"])), params["head"])


def fitted(
    config: Config, adversarial: bool, key: Array, x: Float[Array, "n dim"], targets: Float[Array, "n classes"],
    weights: Float[Array, " n"], settings: Settings,
) -> Any:
  """A classifier of the weighed examples, after whole-batch steps of Adam that also shrink all weights."""
  of_hidden, of_head, of_noise = jax.random.split(key, 3)
  dense = lambda key, m, n: {"kernel": jax.random.normal(key, (m, n)) * m**-0.5, "bias": jnp.zeros(n)}
  params = {"hidden": dense(of_hidden, x.shape[1], config.hidden), "head": dense(of_head, config.hidden, CLASSES)}
  mean = lambda values: jnp.sum(weights * values) / jnp.sum(weights)

  def loss(params: Any, key: Array) -> Array:
    task = mean(optax.softmax_cross_entropy(logits(params, x), targets))
    if not adversarial:
      return task
    apart = adversarial_consistency(
        key, partial(logits, params), x, init_scale=config.noise, step_size=settings.size)
    return task + config.adversarial_weight * mean(apart)

  optimizer = optax.scale_by_adam()

  def step(state: Any, key: Array) -> tuple[Any, None]:
    params, memory = state
    updates, memory = optimizer.update(jax.grad(loss)(params, key), memory)
    kept = jnp.exp(-config.rate * settings.decay)  # of a weight, however great the decay
    return (jax.tree.map(lambda p, u: kept * p - config.rate * u, params, updates), memory), None

  (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(of_noise, config.steps))
  return params


class Answers(NamedTuple):
  """What an arm says of the unlabelled sentences, and of the labels that it was given."""

  probs: Float[Array, "m classes"]
  judged: Int[Array, " n"]


def tuned(
    config: Config, arm: str, key: Array, x: Float[Array, "n dim"], labels: Int[Array, " n"], fold: Int[Array, " n"],
    unlabelled: Float[Array, "m dim"], settings: Settings,
) -> Answers:
  """An arm's training; labels are judged by the models of the other folds, without folds by the model itself."""
  fit = partial(fitted, config, arm in (ADVERSARIAL, METHOD))
  says = lambda params, x: jax.nn.softmax(logits(params, x))
  of_folds, of_first, of_last = jax.random.split(key, 3)
  every = jnp.ones(len(labels))
  smoothed = (1 - settings.smoothing) * jax.nn.one_hot(labels, CLASSES) + settings.smoothing / CLASSES
  targets, probs = smoothed, None
  if arm in (CALIBRATED, METHOD):
    def judge(key: Array, i: Array) -> Array:
      return says(fitted(config, False, key, x, smoothed, (fold != i).astype(jnp.float32), settings), x)

    by_fold = jax.vmap(judge)(jax.random.split(of_folds, config.folds), jnp.arange(config.folds))
    probs = by_fold[fold, jnp.arange(len(labels))]
    targets = settings.mix * probs + (1 - settings.mix) * relabel(labels, probs)
  params = fit(of_first, x, targets, every, settings)
  judged = (says(params, x) if probs is None else probs).argmax(1)
  if arm in (TRANSDUCTIVE, METHOD):
    chosen, pseudo = confident(says(params, unlabelled), top_per_class=int(config.share * len(unlabelled)))
    # The pseudo-labels weigh together as much as the labels, times the weight.
    weighs = settings.weight * chosen * len(labels) / jnp.maximum(chosen.sum(), 1)
    params = fit(of_last, jnp.concatenate([x, unlabelled]), jnp.concatenate([targets, jax.nn.one_hot(pseudo, CLASSES)]),
                 jnp.concatenate([every, weighs]), settings)
  return Answers(says(params, unlabelled), judged)


class World:
  """The sentences as MiniLM sees them."""

  def __init__(self, config: Config):
    self.config, model = config, load(config.model)
    shape, self.tokenizer = model.text_encoder()
    self._embed = jax.jit(lambda ids, mask: encoder.embed(model.params, shape, ids, mask))
    self.pool = self.sentences("train", config.pool)
    self.held_out = cache(lambda split: self.sentences(split, config.held_out))
    self._tune = jax.jit(partial(tuned, config), static_argnums=0)
    self._error = jax.jit(calibration_error)

  def sentences(self, split: str, count: int) -> Sentences:
    """So many of a split, the domains in turn; drawn, since a split is sorted by what its sentences say."""
    rng, texts = np.random.default_rng(0), []
    for domain in DOMAINS:
      records = source(f"sentiment/{domain}", split)
      texts.append([records[int(i)]["text"] for i in rng.permutation(len(records))[:count // CLASSES]])
    texts = [text for turn in zip(*texts, strict=True) for text in turn]
    x = embed_texts(self._embed, texts, self.tokenizer, max_length=self.config.max_length)
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    return Sentences(x, np.arange(len(texts), dtype=np.int32) % CLASSES)

  def run(self, arm: str, chosen: dict[str, float], seed: int, split: str) -> dict[str, Any]:
    """One arm."""
    check_open(split)
    c, rng = self.config, np.random.default_rng(seed)
    rows = rng.choice(len(self.pool.labels), c.labelled, replace=False)
    right = self.pool.labels[rows]
    wrong: Bool[np.ndarray, " n"] = rng.permutation(c.labelled) < round(c.wrong * c.labelled)
    other = (right + rng.integers(1, CLASSES, c.labelled, np.int32)) % CLASSES
    wrong &= arm != CLEAN
    labels, fold = np.where(wrong, other, right), folds(rng, c.labelled, c.folds)
    held_out = self.held_out(split)
    probs, judged = self._tune(
        arm, jax.random.key(seed), jnp.asarray(self.pool.x[rows]), jnp.asarray(labels), jnp.asarray(fold),
        jnp.asarray(held_out.x), Settings(**chosen))
    judged = np.asarray(judged)
    flagged = judged != labels
    return {
        "accuracy": (np.asarray(probs).argmax(1) == held_out.labels).astype(np.float32),
        "miscalibration": float(self._error(probs, jnp.asarray(held_out.labels))),
        "judged": float(np.mean(judged == right)),
        "flagged": float(np.mean(wrong[flagged])) if flagged.any() else 0.0}


def arms(config: Config) -> dict[str, Arm]:
  """Plain training on noisy and on right labels, each trick, and all; each chooses two numbers."""
  world, c = World(config), config

  def arm(name: str, own: Mapping[str, tuple[float, ...] | Grid], **fixed: float) -> Arm:
    return Arm(lambda chosen, seed, split: world.run(name, {**fixed, **chosen}, seed, split),
               {"decay": c.decays, **own})

  smoothing = {"smoothing": Grid(c.smoothings, high=1.0)}
  return {
      PLAIN: arm(PLAIN, smoothing), CLEAN: arm(CLEAN, smoothing),
      ADVERSARIAL: arm(ADVERSARIAL, {"size": c.sizes}), CALIBRATED: arm(CALIBRATED, {"mix": Grid(c.mixes, high=1.0)}),
      TRANSDUCTIVE: arm(TRANSDUCTIVE, {"weight": c.weights}),
      METHOD: arm(METHOD, {"weight": c.weights}, size=c.all_size, mix=c.all_mix)}


STUDY = Study(
    slug="vega-v1", arxiv="2302.09268",
    title="Bag of Tricks for Effective Language Model Pretraining and Downstream Adaptation: A Case Study on GLUE",
    question="few labels", use_when="labels are few and some are wrong, and the texts to be judged are at hand",
    setting="a classifier on MiniLM's embeddings learns where sentences come from, of 400 with 120 wrong labels",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("accuracy", "accuracy on unseen sentences"),
        Score("miscalibration", "expected calibration error", higher_is_better=False, shared_items=False),
        Score("judged", "share of the training sentences that models of the other folds, or else the model itself, "
              "judge rightly", shared_items=False),
        Score("flagged", "share wrong of the labels that they contradict", shared_items=False)),
    choose_by="accuracy", baseline=PLAIN, method=METHOD, best=CLEAN,
    premises=(
        Premise("wrong labels cost accuracy", lambda s: s[CLEAN].accuracy - s[PLAIN].accuracy, at_least=0.02),
        Premise("models of other folds are right more often than the labels",
                lambda s: s[CALIBRATED].judged - (1 - Config.wrong), at_least=0.02),
        Premise("of the labels that they contradict more are wrong than of all",
                lambda s: s[CALIBRATED].flagged - Config.wrong, at_least=0.1)),
    claims=(
        Claim("all three are more accurate than plain training", higher("accuracy"), smallest=0.01),
        Claim("self-calibration alone is", higher("accuracy", CALIBRATED), smallest=0.01),
        Claim("transduction alone is", higher("accuracy", TRANSDUCTIVE), smallest=0.01),
        Claim("adversarial training alone is", higher("accuracy", ADVERSARIAL), smallest=0.01)),
    plot=Bars("accuracy"))
