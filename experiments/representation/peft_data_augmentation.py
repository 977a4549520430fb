"""Data augmentation with few labels: does it help prefix tuning as it helps full tuning?

    jaxft run peft-data-augmentation            nine minutes on one core
    jaxft run peft-data-augmentation --smoke    seconds

The last two layers of all-MiniLM-L6-v2 learn to tell whether a definition of WordNet is that of a noun, a verb, an
adjective or an adverb, from eight labelled definitions of each: what a sentence is about, by which MiniLM sorts
sentences, does not say it. Tuned are a prefix of 16 positions (P-tuning v2), or the layers in full, each beside a head
on the mean of the states. Augmented by EDA with WordNet's synonyms, a sentence has eight variants, with a tenth of its
words edited or, heavily, a half. The contrastive term is supervised: sentences of one label and their variants are each
other's positives, and it weighs as much as cross-entropy. All texts, those that are told too, are the lower-case words
that EDA makes of a sentence, without its marks. That there is something to gain is measured by full tuning with eight
times the labels.

What leaves the lower layers is stored once for each text. All arms have as many steps, so that augmented data are seen
less often. A seed draws the labelled sentences, their variants and the batches; rates are chosen for each arm, the
head has one of its own. Separability is that of held-out sentences, as the ratio of scatter between and within classes,
for the sentences as they are and for their heavily edited variants.
"""

import dataclasses
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxft.adapters import Adapter, prefix
from jaxft.data import (
  easy_data_augmentation,
  few_shot,
  nearest_word_synonyms,
  source,
  tokenize_texts,
  wordnet_synonyms,
)
from jaxft.data.augmentation.easy import plain_words
from jaxft.evaluation import class_separability
from jaxft.formats.pretrained import load
from jaxft.losses import Mean, cosine_similarity, cross_entropy, supervised_contrastive
from jaxft.models import encoder
from jaxft.models.cut import cached_features, cut_model, entry
from jaxft.models.linear import linear
from jaxft.optimizers import scale_updates
from jaxft.recipes.optimizers import warmed_up
from jaxft.studies.study import Arm, Bars, Claim, Contrast, Premise, Score, Study, higher
from jaxft.transforms import train
from jaxft.tree import map_with_path

PARTS = ("noun", "verb", "adj", "adv")


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "minilm-l6"
  boundary: int = 4  # layers below it are frozen
  wordnet: bool = True  # synonyms by WordNet; by the model's embeddings otherwise
  words: tuple[int, int] = (6, 11)  # of a definition
  every: int = 4  # of the definitions of the training split
  length: int = 16  # tokens
  shots: int = 8
  more_shots: int = 64  # of the arm that has many labels
  variants: int = 8
  held_out: int = 60  # sentences of each class, for evaluation
  prefix_length: int = 16
  steps: int = 60
  batch_size: int = 8
  temperature: float = 0.3
  head_rate: float = 1e-2
  prefix_rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2, 1e-1)
  full_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
  seeds: tuple[int, ...] = tuple(range(10))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    model="minilm-l6:tiny", boundary=1, wordnet=False, every=8, length=12, shots=2, more_shots=4, variants=2,
    held_out=3, prefix_length=2, steps=2, batch_size=4, prefix_rates=(1e-1,), full_rates=(1e-3,), seeds=(0, 1),
    tuning_seeds=(100,))


class Way(NamedTuple):
  """What trains, and on what."""

  tuning: str  # "prefix" or "full"
  edits: float = 0.0  # the rate of EDA; 0 is no EDA
  contrast: float = 0.0  # the share of the contrastive term
  many: bool = False  # labels


MILD, HEAVY = 0.1, 0.5
PREFIX, PREFIX_EDA, PREFIX_HEAVY = "prefix", "prefix, EDA", "prefix, heavy EDA"
METHOD = "prefix, EDA, contrastive term"
FULL, FULL_EDA, FULL_HEAVY = "full", "full, EDA", "full, heavy EDA"
MANY = "full, many labels"
WAYS = {
    PREFIX: Way("prefix"), PREFIX_EDA: Way("prefix", MILD), PREFIX_HEAVY: Way("prefix", HEAVY),
    METHOD: Way("prefix", MILD, contrast=0.5),
    FULL: Way("full"), FULL_EDA: Way("full", MILD), FULL_HEAVY: Way("full", HEAVY),
    MANY: Way("full", many=True)}


class Texts(NamedTuple):
  """What leaves the lower layers for each text, which tokens are real, and the classes."""

  states: Float[Any, "n time dim"]
  mask: Int[Any, "n time"]
  labels: Int[Any, " n"]


def sentences(split: str, words: tuple[int, int], every: int = 1) -> tuple[list[str], Int[np.ndarray, " n"]]:
  """Definitions of so many words, and the part of speech of what they define."""
  records = source("wordnet", split)
  found = [(plain_words(r["anchor"]), r["part"]) for r in records.__getitems__(range(0, len(records), every))]
  found = [(" ".join(text), part) for text, part in found if words[0] <= len(text) <= words[1]]
  return [text for text, _ in found], np.array([part for _, part in found], np.int32)


class World:
  """The model above the cut, and for each seed the labelled sentences with their variants."""

  def __init__(self, config: Config):
    self.config, model = config, load(config.model)
    of_model, self.tokenizer = model.text_encoder("model")
    self.lower, self.upper = cut_model(model.params, of_model, config.boundary)
    self.shape = self.upper.config
    self.synonyms = wordnet_synonyms() if config.wordnet else nearest_word_synonyms(
        np.asarray(model.params["embed"]["tokens"]["embedding"]), self.tokenizer.get_vocab())
    self.adapter: Adapter = prefix(self.shape, config.prefix_length, stddev=0.5)
    self.transforms = {"prefix": train("{head,prefix}/**"), "full": train(["head/**", "layers/**"])}
    self.train_texts = cache(partial(sentences, "train", config.words, config.every))
    self.labelled, self.held = cache(self._labelled), cache(self._held)
    self._run = jax.jit(self._learn, static_argnums=0)

  def _stored(self, texts: list[str], labels: Int[np.ndarray, " n"]) -> Texts:
    tokens = tokenize_texts(texts, self.tokenizer, lengths=self.config.length)
    states = cached_features(encoder.hidden_states, self.lower, tokens["ids"], tokens["mask"])
    return jax.tree.map(jnp.asarray, Texts(states, tokens["mask"], labels))

  def _edited(self, rng: np.random.Generator, texts: list[str], rate: float, count: int) -> list[list[str]]:
    rates = dict.fromkeys(("synonym", "insert", "swap", "delete"), rate)
    return [easy_data_augmentation(rng, text, rates=rates, count=count, synonyms=self.synonyms)[:-1] for text in texts]

  def _labelled(self, seed: int, rate: float, shots: int) -> Texts:
    """The labelled sentences and the variants of each after them; with rate 0, without."""
    c, (texts, labels) = self.config, self.train_texts()
    rows = few_shot(labels, shots, seed=seed)
    mine, of = [texts[i] for i in rows], labels[rows]
    if not rate:
      return self._stored(mine, of)
    variants = self._edited(np.random.default_rng((seed, 1)), mine, rate, c.variants)
    return self._stored(mine + [v for one in variants for v in one], np.concatenate([of, np.repeat(of, c.variants)]))

  def _held(self, split: str) -> tuple[Texts, Texts]:
    """Sentences for evaluation, as many of each class, and a heavily edited variant of each."""
    texts, labels = sentences(split, self.config.words)
    rows = few_shot(labels, self.config.held_out, seed=0)
    mine = [texts[i] for i in rows]
    edited = [one[0] for one in self._edited(np.random.default_rng(0), mine, HEAVY, 1)]
    return self._stored(mine, labels[rows]), self._stored(edited, labels[rows])

  def _pooled(self, params: Any, states: Array, mask: Array) -> Float[Array, "n dim"]:
    edits = entry(self.shape, states)
    if "prefix" in params:
      edits = {**edits, **self.adapter.edits(params["prefix"])}
    hidden, _ = encoder.hidden_states(params, self.shape, jnp.zeros(mask.shape, jnp.int32), mask, edits=edits)
    return encoder.pool(hidden, mask, normalize=False)

  def _learn(
      self, tuning: str, params: Any, key: Array, texts: Texts, rows: Int[Array, "steps batch"], rate: Array,
      contrast: Array, held: Texts, edited: Texts,
  ) -> tuple[Array, Array, Array]:
    """Which held-out sentences are told right, and the features of these and of their variants."""
    c = self.config
    of_start, of_split = jax.random.split(key)
    params = params | {"head": {"kernel": jnp.zeros((self.shape.dim, len(PARTS))), "bias": jnp.zeros(len(PARTS))}}
    if tuning == "prefix":
      params = params | {"prefix": self.adapter.init(of_start)}
    transform = self.transforms[tuning]
    frozen, trainable = transform.split(of_split, params)
    rates = map_with_path(
        lambda path, x: None if x is None else c.head_rate if "head/" in path else rate, trainable)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(warmed_up(c.steps)), scale_updates(rates))

    def loss(trainable: Any, batch: Texts) -> Array:
      params = transform.join(frozen, trainable)
      features = self._pooled(params, batch.states, batch.mask)
      told = Mean.of(*cross_entropy(linear(features, params["head"]), batch.labels)).value
      apart = Mean.of(*supervised_contrastive(
          cosine_similarity(features, features), batch.labels[:, None] == batch.labels,
          temperature=c.temperature, drop=jnp.eye(c.batch_size, dtype=bool))).value
      return (1 - contrast) * told + contrast * apart

    def step(carry: Any, row: Int[Array, " batch"]) -> tuple[Any, None]:
      trainable, state = carry
      batch = jax.tree.map(lambda x: x[row], texts)
      updates, state = optimizer.update(jax.grad(loss)(trainable, batch), state)
      return (optax.apply_updates(trainable, updates), state), None

    (trainable, _), _ = jax.lax.scan(step, (trainable, optimizer.init(trainable)), rows)
    params = transform.join(frozen, trainable)
    features, of_edited = (self._pooled(params, t.states, t.mask) for t in (held, edited))
    return jnp.argmax(linear(features, params["head"]), axis=-1) == held.labels, features, of_edited

  def tuned(self, way: Way, rate: float, seed: int, split: str) -> dict[str, Any]:
    """One way, from one draw of labelled sentences."""
    c = self.config
    edits, shots = (0.0, c.more_shots) if way.many else (way.edits or MILD, c.shots)
    texts, (held, edited) = self.labelled(seed, edits, shots), self.held(split)
    size = len(texts.labels) if way.edits else len(PARTS) * shots
    rng = np.random.default_rng((seed, 2))
    orders = [rng.permutation(size) for _ in range(-(-c.steps * c.batch_size // size))]
    rows = np.concatenate(orders)[: c.steps * c.batch_size].reshape(c.steps, c.batch_size)
    right, features, of_edited = self._run(
        way.tuning, self.upper.params, jax.random.key(seed), texts, rows, rate, way.contrast, held, edited)
    scatter = lambda x: class_separability(np.asarray(x), np.asarray(held.labels)).scatter_ratio
    return {"accuracy": np.asarray(right, np.float64), "scatter": scatter(features), "edited": scatter(of_edited)}


def arms(config: Config) -> dict[str, Arm]:
  """Tunings by augmentations."""
  world = World(config)
  rates = {"prefix": config.prefix_rates, "full": config.full_rates}
  return {name: Arm(partial(world.tuned, way), rates[way.tuning]) for name, way in WAYS.items()}


def gain(scores: Any, arm: str, than: str) -> np.ndarray:
  """In accuracy, `[seeds, items]`."""
  return scores[arm].accuracy - scores[than].accuracy


STUDY = Study(
    slug="peft-data-augmentation",
    title="Effectiveness of Data Augmentation for Parameter Efficient Tuning with Limited Data", arxiv="2303.02577",
    question="few labels", use_when="a few sentences of each class are labelled and a prefix is tuned on them",
    setting="the last two layers of MiniLM tell the part of speech that a definition defines, from eight of each",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("accuracy", "share of held-out definitions whose part of speech is told right"),
        Score("scatter", "scatter of held-out sentences between classes over that within", shared_items=False),
        Score("edited", "the same of their heavily edited variants", shared_items=False)),
    choose_by="accuracy", baseline=PREFIX_EDA, method=METHOD,
    premises=(
        Premise("there is something to gain: with eight times the labels full tuning tells more right",
                lambda s: s[MANY].accuracy - s[FULL].accuracy, at_least=0.05),
        Premise("a prefix separates edited sentences less than full tuning does, as a share of its scatter ratio",
                lambda s: 1 - s[PREFIX].edited / s[FULL].edited, at_least=0.1)),
    claims=(
        Claim("with EDA the contrastive term raises a prefix's accuracy", higher("accuracy"), smallest=0.01),
        Claim("EDA helps full tuning more than a prefix, in accuracy", Contrast(
            lambda s, study: gain(s, FULL_EDA, FULL) - gain(s, PREFIX_EDA, PREFIX), "higher"), smallest=0.01),
        Claim("heavy in place of mild edits cost a prefix more accuracy than full tuning", Contrast(
            lambda s, study: gain(s, FULL_HEAVY, FULL_EDA) - gain(s, PREFIX_HEAVY, PREFIX_EDA), "higher"),
              smallest=0.01),
        Claim("the contrastive term raises a prefix's scatter ratio of edited sentences", higher("edited"),
              smallest=0.01)),
    plot=Bars("accuracy"))
