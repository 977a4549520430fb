"""Stationary representations: can a gallery that an old model filled be searched by the new one?

    jaxft run stationary-representations            five minutes on one core, the ConvNet's features half of them
    jaxft run stationary-representations --smoke    seconds

Pictures of clothes (Fashion-MNIST) come in four sessions, first four classes and then two at a time. A network on the
frozen features of a ConvNet pretrained on ImageNet learns each session from 200 pictures of each new class and replays
20 of each old one, half of every batch. All ten classes have a gallery by each of the four models, also those that a
model has not seen yet: a template each, the mean of the features of the training pictures. A query, by the model of
session t, looks for its class in the gallery by the model of session k <= t.

The classifier is learned and grows, or is fixed: vertices of a regular simplex with room for 16 classes, so that
features have 15 dimensions in every arm. HOC, an example's old feature near its new one and far from new ones of other
classes, joins from the second session on; the task's share of the loss, a tenth in the paper, is chosen with the rate.
Controls: HOC with the learned classifier, and models that start anew in each session and have never seen each other, as
replacements from elsewhere: what they share can come from the classifier alone. A seed draws the pictures, the order of
the classes, the batches and the inits; what is chosen is chosen for each arm by the mean accuracy over all pairs of
models.
"""

import dataclasses
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from experiments.tasks.convnet.frozen import load_convnet, pooled
from experiments.tasks.convnet.incremental import SMALL, Settings, brings, draw_sessions, told_by_session
from jaxft.data import few_shot, source
from jaxft.data.class_splits import Session
from jaxft.evaluation import (
  average_compatibility,
  class_templates,
  identification_hits,
  transfer_metrics,
)
from jaxft.losses import Mean, cross_model_contrastive
from jaxft.models.heads.simplex import simplex_weights
from jaxft.models.linear import linear
from jaxft.recipes.optimizers import adamw
from jaxft.signatures import AnyArray
from jaxft.studies.study import Arm, Bars, Claim, Grid, Premise, Score, Study, higher

CLASSES = 10
Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Config(Settings):
  size: int = 56
  pictures: tuple[int, int] = (4000, 1500)  # for training, and held out
  components: int = 128
  width: int = 128
  slots: int = 16
  shots: int = 200
  memory: int = 20
  steps: int = 150
  batch_size: int = 64
  first: int = 4
  each: int = 2
  shares: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75)
  seeds: tuple[int, ...] = tuple(range(24))


SMOKE = Config(
    **SMALL, size=32, pictures=(60, 30), components=8, width=8, shots=3, memory=1, batch_size=4, rates=(1e-3, 1e-2),
    shares=(0.1,))


class Way(NamedTuple):
  """How an arm learns."""

  simplex: bool
  anew: bool


REPLAY, HOC, SIMPLEX, METHOD, ANEW, SIMPLEX_ANEW = (
    "learned classifier", "learned classifier, HOC", "simplex", "simplex, HOC", "learned classifier, anew",
    "simplex, anew")
WAYS = {
    REPLAY: Way(simplex=False, anew=False), HOC: Way(simplex=False, anew=False),
    SIMPLEX: Way(simplex=True, anew=False), METHOD: Way(simplex=True, anew=False),
    ANEW: Way(simplex=False, anew=True), SIMPLEX_ANEW: Way(simplex=True, anew=True)}


class Pictures(NamedTuple):
  """Features of the ConvNet and classes."""

  features: Float[AnyArray, "n dim"]
  labels: Int[AnyArray, " n"]


class Lesson(NamedTuple):
  """One session: the rows of its batches, and the classes that have come."""

  rows: Int[Array, "steps batch"]
  come: Bool[Array, " slots"]
  first: Bool[Array, ""]
  key: Array


def init(key: Array, config: Config) -> Params:
  """A hidden layer, a map to the features, and a classifier of them."""
  keys = jax.random.split(key, 3)
  dim = config.slots - 1
  dense = lambda key, m, n: {"kernel": jax.random.normal(key, (m, n)) * m**-0.5}
  return {
      "hidden": dense(keys[0], config.components, config.width) | {"bias": jnp.zeros(config.width)},
      "out": dense(keys[1], config.width, dim), "head": dense(keys[2], dim, config.slots)}


def features(params: Params, x: Float[AnyArray, "n components"]) -> Float[Array, "n dim"]:
  return linear(jax.nn.relu(linear(jnp.asarray(x), params["hidden"])), params["out"])


def learn(
    config: Config, way: Way, data: Pictures, lessons: Lesson, rate: float | Float[Array, ""],
    share: float | Float[Array, ""],
) -> Params:
  """The models after each session, along the leading axis; `share` is the task's of the loss where HOC is in it."""
  optimizer = adamw(rate, config.steps, schedule="cosine")
  vertices = simplex_weights(config.slots).T

  def lesson(before: Params, lesson: Lesson) -> tuple[Params, Params]:
    start = jax.tree.map(partial(jnp.where, lesson.first | way.anew), init(lesson.key, config), before)
    weight = jnp.where(lesson.first, 1.0, share)

    def loss(params: Params, batch: Pictures) -> Array:
      z = features(params, batch.features)
      logits = jnp.where(way.simplex, z @ vertices, jnp.where(lesson.come, linear(z, params["head"]), -1e9))
      task = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels))
      old = features(start, batch.features)
      return weight * task + (1 - weight) * Mean.of(*cross_model_contrastive(old, z, batch.labels)).value

    def step(carry: Any, rows: Int[Array, " batch"]) -> tuple[Any, None]:
      params, state = carry
      grads = jax.grad(loss)(params, jax.tree.map(lambda x: x[rows], data))
      updates, state = optimizer.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), lesson.rows)
    return params, params

  return jax.lax.scan(lesson, init(lessons.key[0], config), lessons)[1]


class Course(NamedTuple):
  """What a seed draws: its pictures, which of their rows come when, and the sessions."""

  gallery: Int[np.ndarray, " pictures"]
  lessons: Lesson
  sessions: tuple[Session, ...]


def course(config: Config, labels: Int[np.ndarray, " n"], seed: int) -> Course:
  """The sessions of a seed; rows are of all training pictures."""
  rng = np.random.default_rng(seed)
  gallery, brought = draw_sessions(labels, config, seed)
  rows, memory = [], np.zeros(0, np.int64)
  for session in brought:
    new = session.records
    batch = rng.choice(new, (config.steps, config.batch_size))
    if len(memory):
      half = config.batch_size // 2
      batch[:, :half] = rng.choice(memory, (config.steps, half))
    memory = np.concatenate([memory, new[few_shot(labels[new], config.memory, seed=seed)]])
    rows.append(batch)
  come = np.logical_or.accumulate(brings(brought, config.slots))
  lessons = Lesson(
      jnp.asarray(np.stack(rows), jnp.int32), jnp.asarray(come), jnp.asarray(np.arange(len(brought)) == 0, bool),
      jax.random.split(jax.random.key(seed), len(brought)))
  return Course(gallery, lessons, tuple(brought))


class World:
  """The ConvNet's features of the pictures, and what models of them find."""

  def __init__(self, config: Config):
    self.config = config
    images, labels = self._pictures("train", config.pictures[0])
    seen = self._seen(images)
    self._mean = seen.mean(axis=0)
    _, scale, axes = np.linalg.svd(seen - self._mean, full_matrices=False)
    # Principal components, each of variance 1.
    self._components = (axes / scale[:, None] * len(seen) ** 0.5)[: config.components].T
    self.train = Pictures(self._reduced(seen), labels)
    self.held = cache(self._held)
    self.course = cache(partial(course, config, labels))
    self._learn = jax.jit(partial(learn, config))
    self._embed = jax.jit(jax.vmap(features, in_axes=(0, None)))

  def _pictures(self, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    records = source("fashion-mnist", split).__getitems__(range(count))
    return np.stack([r["image"] for r in records]), np.array([r["label"] for r in records], np.int32)

  def _seen(self, images: np.ndarray) -> np.ndarray:
    return pooled(load_convnet(self.config.model), images, size=self.config.size)

  def _reduced(self, seen: np.ndarray) -> np.ndarray:
    return ((seen - self._mean) @ self._components).astype(np.float32)

  def _held(self, split: str) -> Pictures:
    images, labels = self._pictures(split, self.config.pictures[1])
    return Pictures(self._reduced(self._seen(images)), labels)

  def run(self, arm: str, chosen: Any, seed: int, split: str) -> dict[str, Any]:
    """The models of one arm, and what each finds in its own gallery and in those of the models before it."""
    made, held = self.course(seed), self.held(split)
    rate, share = (chosen["rate"], chosen["task's share"]) if arm in (HOC, METHOD) else (chosen, 1.0)
    models = self._learn(WAYS[arm], self.train, made.lessons, rate, share)
    labels = self.train.labels[made.gallery]
    # Where a model diverged there is nothing to look for: all is missed.
    stored, queries = (np.nan_to_num(np.asarray(self._embed(models, x)))
                       for x in (self.train.features[made.gallery], held.features))
    templates = np.stack([class_templates(one, labels, CLASSES) for one in stored])
    hits = identification_hits(queries, templates, held.labels).astype(np.float64)
    steps = np.arange(len(hits))
    earlier = np.tril_indices(len(hits), -1)
    by_session = told_by_session(hits[steps, steps], held.labels, made.sessions)
    return {
        "multi": hits[np.tril_indices(len(hits))].mean(axis=0), "own": hits[steps, steps].mean(axis=0),
        "cross": hits[earlier].mean(axis=0), "last": hits[-1, -1], "first_gallery": hits[-1, 0],
        "ac": average_compatibility(hits.mean(axis=-1)), "forgetting": transfer_metrics(by_session)["forgetting"]}


def arms(config: Config) -> dict[str, Arm]:
  """Each way to learn the sessions."""
  world = World(config)
  both = {"rate": config.rates, "task's share": Grid(config.shares, high=1.0)}
  return {arm: Arm(partial(world.run, arm), both if arm in (HOC, METHOD) else config.rates) for arm in WAYS}


STUDY = Study(
    slug="stationary-representations", arxiv="2405.02581",
    title="Stationary Representations: Optimally Approximating Compatibility and Implications for Improved Model "
    "Replacements",
    question="embeddings",
    use_when="a model is updated or replaced and the stored embeddings must stay searchable",
    setting="an MLP of 128-128-15 on frozen ConvNet features of Fashion-MNIST learns four sessions of classes",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("multi", "accuracy over all pairs of a model and its own or an older gallery, AM"),
        Score("cross", "accuracy in older models' galleries"),
        Score("own", "accuracy in the models' own galleries"),
        Score("last", "accuracy of the last model in its own gallery"),
        Score("first_gallery", "accuracy of the last model in the first model's gallery"),
        Score("ac", "share of pairs in which the newer model's queries do better than the older's own, AC",
              shared_items=False),
        Score("forgetting", "how far accuracy on a session's classes falls from its best, own galleries",
              higher_is_better=False, shared_items=False)),
    choose_by="multi", baseline=REPLAY, method=METHOD,
    premises=(
        Premise("the last model with a learned classifier knows the classes", lambda s: s[REPLAY].last, at_least=0.6),
        Premise("a new model with a learned classifier does worse in old galleries than in its own",
                lambda s: s[REPLAY].own - s[REPLAY].cross, at_least=0.05),
        Premise("models that start anew with a learned classifier share no space",
                lambda s: s[ANEW].own - s[ANEW].cross, at_least=0.3)),
    claims=(
        Claim("simplex and HOC have the higher accuracy over all pairs of models", higher("multi"), smallest=0.02),
        Claim("models that have never seen each other find more in each other's galleries with the simplex",
              higher("cross", SIMPLEX_ANEW, ANEW), smallest=0.05),
        Claim("HOC adds accuracy over all pairs to the simplex", higher("multi", METHOD, SIMPLEX), smallest=0.01),
        Claim("the simplex adds accuracy over all pairs to HOC", higher("multi", METHOD, HOC), smallest=0.01)),
    plot=Bars("multi"))
