"""CoPrompt: does staying near the frozen model's answers keep classes that few-shot tuning has not seen?

    jaxft run coprompt            a few minutes on one core, and once ten for the home-made dual encoder
    jaxft run coprompt --smoke    seconds

The dual encoder of `tasks/emoji_dual_encoder.py` is to tell the kinds of Fluent's emoji, a style that it has not seen:
41 subcategories of Unicode by their names, half of them base classes with four pictures each, the other half novel and
never shown. What trains are prompts in the place of the template's words before the last two layers of MiniLM, and an
adapter on each tower's output; a ConvNet has no positions for prompts. A view of a picture is its features with three
in ten at their mean, as in the dual encoder's own training, so that the ConvNet runs once. The frozen model sees
another view and a sentence that names members of the class, in place of one that a language model writes.

The rate is the one best on validation pictures of base classes: nobody has novel ones to choose by. A seed draws which
classes are base, the few pictures, the adapters and the batches. Prompts start at the mean of the template's states.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.tasks.emoji_dual_encoder import TINY, Recipe, alignment, embed, text_features
from experiments.tasks.picture_features import described, features
from jaxft.adapters import deep_prompt, init_output_adapter, output_adapter
from jaxft.data import base_to_novel, few_shot
from jaxft.evaluation import harmonic_mean
from jaxft.formats import load
from jaxft.losses import Mean, feature_consistency
from jaxft.models import encoder
from jaxft.models.cut import cut_model, entry
from jaxft.models.norms import unit_length
from jaxft.seal import check_open
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, higher, not_lower

Params = dict[str, Any]
NAME = "emoji/fluent"
TEMPLATE, SENTENCE = "a picture of {}", "a picture of {}, such as {}"
OF_IMAGE, OF_TEXT = 0.1, 0.2  # the source's shares of the adapters


@dataclasses.dataclass(frozen=True)
class Config:
  recipe: Recipe = Recipe()
  least: int = 12  # pictures of a class
  most: int = 24
  shots: int = 4
  sentences: int = 4
  boundary: int = 4  # layers of MiniLM below the prompts
  length: int = 3
  dropout: float = 0.3
  steps: int = 30
  batch_size: int = 32
  rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
  seeds: tuple[int, ...] = tuple(range(10))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    recipe=TINY, least=3, most=6, shots=1, sentences=2, boundary=1, steps=2, batch_size=4, rates=(1e-2, 3e-2),
    seeds=(0, 1), tuning_seeds=(100,))

FROZEN, PLAIN, WEAK = "frozen", "no consistency", "CoPrompt, lambda 1"
METHOD, SAME = "CoPrompt", "CoPrompt, the same view"
WEIGHTS = {PLAIN: 0.0, WEAK: 1.0, METHOD: 8.0, SAME: 8.0}


def kind(row: dict[str, Any]) -> str:
  """A subcategory in words."""
  return row["subcategory"].replace("-", " ")


def pictures(split: str, classes: list[str], config: Config) -> tuple[Int[np.ndarray, " n"], dict[str, np.ndarray]]:
  """Labels and rows by data split of a study's split: a third of the training data is each one's, in turn by class."""
  check_open(split)
  limit = config.recipe.vision.limit
  turn = ("train", "validation", "test").index(split)
  labels, rows = [], {}
  for of_data in dict.fromkeys(("train", split)):
    records = described(NAME, of_data, limit=limit)
    kept = []
    for i, one in enumerate(classes):
      own = [at for at, row in enumerate(records) if kind(row) == one][: config.most]
      own = own[turn::3] if of_data == "train" else own
      kept += own
      labels += [i] * len(own)
    rows[of_data] = np.array(kept, np.int32)
  return np.array(labels, np.int32), rows


class World:
  """Frozen embeddings of all pictures and sentences, and the states of the template below the prompts."""

  def __init__(self, config: Config):
    self.config, recipe = config, config.recipe
    self.aligned = alignment(recipe)
    records = described(NAME, "train", limit=recipe.vision.limit)
    kinds = [kind(row) for row in records]
    self.classes = [one for one in sorted(set(kinds)) if kinds.count(one) >= config.least]
    self.labels, self.rows = pictures("train", self.classes, config)
    self.shown = self._features("train")[self.rows["train"]]
    text = lambda texts: np.asarray(embed(self.aligned, "text", text_features(texts, recipe)))
    self.template = text([TEMPLATE.format(one) for one in self.classes])
    rng = np.random.default_rng(0)
    sentences = []
    for i, one in enumerate(self.classes):
      names = [records[at]["name"] for at in self.rows["train"][self.labels == i]]
      some = lambda names=names: ", ".join(rng.permutation(names)[:3])
      sentences += [SENTENCE.format(one, some()) for _ in range(config.sentences)]
    self.sentences = text(sentences).reshape(len(self.classes), config.sentences, -1).swapaxes(0, 1)
    self._states()
    self._learn, self._texts = jax.jit(self.learn), jax.jit(self.texts)
    self._held, self._embedded = cache(self._pictures), cache(self._embed)

  def _features(self, split: str) -> Float[np.ndarray, "n width"]:
    return features(NAME, split, vision=self.config.recipe.vision)

  def view(self, key: Array, rows: Int[Array, " n"]) -> Float[Array, "n dim"]:
    """Frozen embeddings of some pictures with some of their features at the mean."""
    shown = jnp.asarray(self.shown)
    mean, kept = shown.mean(0), 1 - self.config.dropout
    x = shown[rows] - mean
    return embed(self.aligned, "vision", mean + x * jax.random.bernoulli(key, kept, x.shape) / kept)

  def _states(self) -> None:
    """What leaves the lower layers for each class, and where prompts start."""
    config = self.config
    model = load(config.recipe.text)
    shape, tokenizer = model.text_encoder("text")
    encoded = [one.ids for one in tokenizer.encode_batch([TEMPLATE.format(one) for one in self.classes])]
    self.ids = np.zeros((len(encoded), max(map(len, encoded))), np.int32)
    for row, ids in zip(self.ids, encoded, strict=True):
      row[: len(ids)] = ids
    self.mask = np.arange(self.ids.shape[1]) < np.array([[len(ids)] for ids in encoded])
    run = jax.jit(lambda params: encoder.hidden_states(
        params, shape, self.ids, self.mask, record=("layers/out",))[1]["layers/out"])
    states = np.asarray(run(model.params))
    self.states = states[config.boundary - 1]
    _, self.upper = cut_model(model.params, shape, config.boundary)
    slots = slice(1, 1 + config.length)
    start = states[config.boundary - 1 : shape.num_layers - 1, :, slots].mean(1)
    self.start = {"prompt": start[0]} | ({"layers": {"prompt": start[1:]}} if len(start) > 1 else {})
    self.prompt = deep_prompt(self.upper.config, config.length, depth=len(start), site="embed/out")

  def texts(self, params: Params, rows: Int[Array, " classes"]) -> Float[Array, "classes dim"]:
    """The tuned text tower's vectors of some classes."""
    edits = dict(self.prompt.edits(params["prompts"]))
    edits["embed/out"] = [entry(self.upper.config, jnp.asarray(self.states)[rows])["embed/out"], edits["embed/out"]]
    ids, mask = jnp.asarray(self.ids)[rows], jnp.asarray(self.mask)[rows]
    pooled = encoder.embed(self.upper.params, self.upper.config, ids, mask, edits=edits)
    return unit_length(output_adapter(params["text"], embed(self.aligned, "text", pooled), ratio=OF_TEXT))

  def images(self, params: Params, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
    """The tuned image tower's vectors."""
    return unit_length(output_adapter(params["image"], x, ratio=OF_IMAGE))

  def learn(
      self, key: Array, base: Int[Array, " classes"], shots: Int[Array, " shots"], rate: Array, weight: Array,
      same: Array,
  ) -> Params:
    """What trains, after tuning on the base classes."""
    c = self.config
    of_image, of_text, of_steps = jax.random.split(key, 3)
    dim = self.template.shape[1]
    params = {"prompts": jax.tree.map(jnp.asarray, self.start), "image": init_output_adapter(of_image, dim),
              "text": init_output_adapter(of_text, dim)}
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, c.steps))
    template, sentences = jnp.asarray(self.template), jnp.asarray(self.sentences)
    label = jnp.argmax(jnp.asarray(self.labels)[shots][:, None] == base, axis=1)
    scale = jnp.exp(self.aligned["logit_scale"])

    def loss(params: Params, key: Array) -> Array:
      of_rows, of_view, of_other, of_sentence = jax.random.split(key, 4)
      rows = jax.random.randint(of_rows, (c.batch_size,), 0, len(shots))
      view = self.view(of_view, shots[rows])
      x, y = self.images(params, view), self.texts(params, base)
      task = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scale * x @ y.T, label[rows]))
      sentence = sentences[jax.random.randint(of_sentence, (), 0, c.sentences)]
      of_frozen = jnp.where(same, template, sentence)[base]
      near = Mean.of(*feature_consistency(y, of_frozen)).value
      near += Mean.of(*feature_consistency(x, jnp.where(same, view, self.view(of_other, shots[rows])))).value
      return task + weight * near

    def step(carry: Any, key: Array) -> tuple[Any, None]:
      params, state = carry
      updates, state = optimizer.update(jax.grad(loss)(params, key), state)
      return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(of_steps, c.steps))[0][0]

  def frozen(self, rate: None, seed: int, split: str) -> dict[str, float]:
    """The dual encoder as it is."""
    return self._scores(self._embedded(split), self.template, seed, split)

  def tuned(self, arm: str, rate: float, seed: int, split: str) -> dict[str, float]:
    """Tuned by one arm."""
    of_base = self._base(seed)
    rows = np.flatnonzero(np.isin(self.labels, of_base))
    shots = rows[few_shot(self.labels[rows], self.config.shots, seed=seed)]
    short = self.config.shots * len(of_base) - len(shots)  # a class of fewer pictures shows some twice
    shots = np.concatenate([shots, shots[:short]]).astype(np.int32)
    params = self._learn(jax.random.key(seed), of_base, shots, rate, WEIGHTS[arm], arm == SAME)
    texts = np.asarray(self._texts(params, np.arange(len(self.classes), dtype=np.int32)))
    x = jax.tree.map(np.asarray, params["image"])
    images = self._embedded(split)
    adapted = np.maximum(np.maximum(images @ x["down"]["kernel"], 0) @ x["up"]["kernel"], 0)
    return self._scores(OF_IMAGE * adapted + (1 - OF_IMAGE) * images, texts, seed, split)

  def _base(self, seed: int) -> Int[np.ndarray, " base"]:
    return base_to_novel(self.labels, seed=seed).base_classes.astype(np.int32)

  def _pictures(self, split: str) -> tuple[Int[np.ndarray, " n"], dict[str, np.ndarray]]:
    return pictures(split, self.classes, self.config)

  def _embed(self, split: str) -> Float[np.ndarray, "n dim"]:
    """Of the pictures of a split."""
    _, rows = self._held(split)
    x = np.concatenate([self._features(of_data)[at] for of_data, at in rows.items()])
    return np.asarray(embed(self.aligned, "vision", x))

  def _scores(self, x: np.ndarray, texts: np.ndarray, seed: int, split: str) -> dict[str, float]:
    """Accuracies among the base classes and among the novel ones."""
    labels, _ = self._held(split)
    is_base = np.isin(np.arange(len(self.classes)), self._base(seed))
    found = {}
    for name, side in (("base", is_base), ("novel", ~is_base)):
      own = side[labels]
      guessed = np.argmax(np.where(side, x[own] @ texts.T, -np.inf), axis=1)
      found[name] = float(np.mean(guessed == labels[own]))
    return found | {"hm": harmonic_mean(found["base"], found["novel"])}


def arms(config: Config) -> dict[str, Arm]:
  """The frozen model, and tuning with more or less consistency."""
  world = World(config)
  return {FROZEN: Arm(world.frozen), **{arm: Arm(partial(world.tuned, arm), config.rates) for arm in WEIGHTS}}


STUDY = Study(
    slug="coprompt", arxiv="2306.01195", title="Consistency-guided Prompt Learning for Vision-Language Models",
    question="vision and language",
    use_when="few pictures of some classes are there, and classes without any must still be told",
    setting="a home-made dual encoder (EfficientNet-Lite0, MiniLM) tells kinds of emoji in a new style, from 4 "
            "pictures of each of 21 kinds; prompts in the text tower, two adapters",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("hm", "harmonic mean of the accuracies on base and on novel classes", shared_items=False),
        Score("base", "accuracy among base classes", shared_items=False),
        Score("novel", "accuracy among novel classes", shared_items=False)),
    choose_by="base", baseline=PLAIN, method=METHOD, start=FROZEN, kept="novel",
    premises=(
        Premise("the frozen model tells novel classes, of which there are 20", lambda s: s[FROZEN].novel, at_least=0.2),
        Premise("tuning without consistency learns base classes", lambda s: s[PLAIN].base - s[FROZEN].base,
                at_least=0.05),
        Premise("and loses novel ones", lambda s: s[FROZEN].novel - s[PLAIN].novel, at_least=0.02)),
    claims=(
        Claim("the harmonic mean is higher with consistency", higher("hm"), smallest=0.01),
        Claim("novel classes are told better with it", higher("novel"), smallest=0.01),
        Claim("base classes are told no worse with it", not_lower("base"), smallest=0.02),
        Claim("the harmonic mean is higher where the frozen model sees another view and sentence",
              higher("hm", METHOD, SAME), smallest=0.005)),
    plot=Bars("hm"))
