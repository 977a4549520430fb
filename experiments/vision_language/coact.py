"""CoACT: classes come in sessions of a few pictures; do a teacher without LoRA and consistency keep the earlier ones?

    jaxft run coact            eight minutes on one core
    jaxft run coact --smoke    seconds

EfficientNet-Lite0 learns to tell 42 kinds of emoji, the subcategories of Unicode, in four sessions: 12 classes, then
ten and ten and ten, ten pictures of each from three vendors. What is learned is a low-rank update (LoRA) of the two 1 x
1 convolutions of the last block, and a linear head, in which a class starts as the mean feature of its pictures; after
each session, pictures of unseen emoji are told among all classes that have come. Features are centred, logits are
cosines times 16, and those of classes that have not come do not count.

CoACT adds to cross-entropy, in the first session, a supervised contrast between the student and a teacher which is the
moving average of its weights without LoRA, and after half of the steps lets the whole block train at a tenth of the
rate; later, contrast with the model after the first session and with the pretrained one, and consistency of the logits
with those of the former, here of the classes that it knows. Later sessions take a tenth of the rate and a twelfth of
the steps in every arm, about two passes. Controls: class means alone; the head alone; LoRA in the first session with
class means after it; and CoACT without consistency. A seed draws the classes' order, pictures, views, inits and
batches; rates are chosen for each arm.
"""

import dataclasses
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from experiments.tasks.batches import shuffled_batches
from experiments.tasks.convnet.frozen import Params, frozen_pass, load_convnet
from experiments.tasks.convnet.incremental import SMALL, Settings, brings, draw_sessions, told_by_session
from experiments.tasks.convnet.last_block import features
from experiments.tasks.picture_features import BACKGROUND
from jaxft.data import on_background, source
from jaxft.data.class_splits import Session
from jaxft.evaluation import transfer_metrics
from jaxft.losses import Mean, cosine_similarity, cross_entropy, feature_consistency, supervised_contrastive
from jaxft.models.norms import unit_length
from jaxft.seal import check_open
from jaxft.studies.study import Arm, Claim, Front, Premise, Score, Study, higher, lower
from jaxft.transforms import lora

VENDORS = ("google", "twitter", "fluent")
VIEWS = (("plain", False), ("plain", True), ("shaded", False), ("shaded", True))  # background, mirrored
SCALE = 16.0  # of the cosines that are logits


@dataclasses.dataclass(frozen=True)
class Config(Settings):
  limit: int | None = None  # records of a vendor's training split
  least: int = 12  # emoji of a class
  most: int = 24
  rank: int = 16
  later_steps: int = 5
  temperature: float = 0.07
  later_rate: float = 0.1
  whole_rate: float = 0.1
  decay: float = 0.999


SMOKE = Config(
    **SMALL, size=16, limit=400, least=9, most=12, first=3, each=3, shots=4, rank=2, later_steps=2, batch_size=8,
    rates=(1e-2,))


class Way(NamedTuple):
  """What an arm tunes, and by what."""

  block: bool = True
  later: bool = True
  contrast: bool = False
  whole: bool = False
  consistent: bool = False


MEANS, HEAD, PLAIN, FIRST, UNTIED, METHOD = (
    "class means", "head", "LoRA, cross-entropy", "LoRA in the first session", "CoACT without consistency", "CoACT")
WAYS = {
    HEAD: Way(block=False), PLAIN: Way(), FIRST: Way(later=False), UNTIED: Way(contrast=True, whole=True),
    METHOD: Way(contrast=True, whole=True, consistent=True)}


class Pictures(NamedTuple):
  """Emoji as the last block sees them, in each of their views, and their classes."""

  states: Float[Any, "n views rows columns channels"]
  labels: Int[Any, " n"]


class Lessons(NamedTuple):
  """The sessions of a seed: rows of their batches in the first and in later ones, and their classes, one row each."""

  first: Int[Any, "steps batch"]
  later: Int[Any, "sessions steps batch"]
  classes: Bool[Any, "sessions classes"]


@cache
def records_of(vendor: str, split: str, limit: int | None) -> list[dict[str, Any]]:
  """Emoji of a vendor without skin tones."""
  found = source(f"emoji/{vendor}", split)
  rows = found.__getitems__(range(len(found) if limit is None else min(limit, len(found))))
  return [row for row in rows if not np.any(row["tones"])]


@cache
def classes_of(config: Config) -> list[str]:
  """Subcategories of which the training split has emoji enough."""
  kinds = [row["subcategory"] for row in records_of(VENDORS[0], "train", config.limit)]
  return [one for one in sorted(set(kinds)) if kinds.count(one) >= config.least]


def drawings(config: Config, split: str) -> tuple[np.ndarray, Int[np.ndarray, " n"]]:
  """Pictures and classes of all vendors: of the training data's emoji each split has a third, in turn by class."""
  check_open(split)
  turn, classes = ("train", "validation", "test").index(split), classes_of(config)
  own: set[str] = set()
  for one in classes:
    codes = [row["code"] for row in records_of(VENDORS[0], "train", config.limit) if row["subcategory"] == one]
    own |= set(codes[: config.most][turn::3])
  kept = [row for vendor in VENDORS for of_data in dict.fromkeys(("train", split))
          for row in records_of(vendor, of_data, config.limit)
          if row["subcategory"] in classes and (row["code"] in own or of_data != "train")]
  labels = np.array([classes.index(row["subcategory"]) for row in kept], np.int32)
  return np.stack([row["image"] for row in kept]), labels


class World:
  """The pictures as the last block sees them, and what models tell after each session."""

  def __init__(self, config: Config):
    self.config, self.net = config, load_convnet(config.model)
    self.pictures = cache(self._pictures)
    self.count = len(classes_of(config))
    self.lora = lora("**/{expand,project}/kernel", rank=config.rank, alpha=float(config.rank))
    self.centre = jnp.mean(features(self.net, self.net.last, jnp.asarray(self.pictures("train").states[:, 0])), axis=0)
    self._learn = jax.jit(self._learned, static_argnums=0)
    self._tell = jax.jit(jax.vmap(self._told, in_axes=(0, None, 0)))

  def _pictures(self, split: str) -> Pictures:
    images, labels = drawings(self.config, split)
    views = VIEWS if split == "train" else VIEWS[:1]
    shown = lambda background, mirrored: on_background(images, BACKGROUND[background])[:, :, :: -1 if mirrored else 1]
    states = frozen_pass(self.net, np.concatenate([shown(*view) for view in views]), size=self.config.size).states
    return Pictures(states.reshape(len(views), len(images), *states.shape[1:]).swapaxes(0, 1), labels)

  def embed(self, last: Params, states: Float[Array, "n rows columns channels"]) -> Float[Array, "n dim"]:
    """Features, centred and of one length."""
    return unit_length(features(self.net, last, states) - self.centre)

  def logits(self, params: Params, x: Float[Array, "n dim"]) -> Float[Array, "n classes"]:
    """16 times the cosines with the head's rows: a class that is new has no other length than one that was trained."""
    return SCALE * x @ unit_length(params["head"]).T

  def student(self, params: Params) -> Params:
    """The block with its update."""
    return self.lora.join(params["last"], params["lora"])

  def _learned(
      self, way: Way, key: Array, data: Pictures, taught: Bool[Array, " n"], lessons: Lessons, rate: Array
  ) -> Params:
    """The models after each session, along the leading axis; `taught` are the rows that a session may show."""
    c, known = self.config, lessons.classes[0]
    of_lora, of_first, of_later = jax.random.split(key, 3)
    last, update = self.lora.split(of_lora, self.net.last)
    params = {"last": last, "lora": update, "head": jnp.zeros((self.count, self.net.dim))}
    start = {"params": self._welcome(params, data, taught, known), "teacher": last}
    first = self._session(way, of_first, data, lessons.first, known, rate, start, None)

    def lesson(carry: Any, at: tuple[Array, Array, Array]) -> tuple[Any, Params]:
      params, come = carry
      key, rows, new = at
      params, come = self._welcome(params, data, taught, new), come | new
      if way.later:
        start, base = {"params": params, "teacher": last}, first | {"classes": known}
        params = self._session(way, key, data, rows, come, rate * c.later_rate, start, base)["params"]
      return (params, come), params

    keys = jax.random.split(of_later, len(lessons.later))
    _, later = jax.lax.scan(lesson, (first["params"], known), (keys, lessons.later, lessons.classes[1:]))
    return jax.tree.map(lambda one, others: jnp.concatenate([one[None], others]), first["params"], later)

  def _welcome(self, params: Params, data: Pictures, taught: Array, classes: Bool[Array, " classes"]) -> Params:
    """New classes start as the mean features of their pictures."""
    member = jax.nn.one_hot(data.labels, self.count) * taught[:, None]
    x = self.embed(self.student(params), data.states[:, 0])
    means = member.T @ x / jnp.maximum(jnp.sum(member, axis=0), 1)[:, None]
    return params | {"head": jnp.where(classes[:, None], means, params["head"])}

  def _session(
      self, way: Way, key: Array, data: Pictures, rows: Array, come: Bool[Array, " classes"], rate: Array,
      start: Params, base: Params | None,
  ) -> Params:
    """Trains on the batches of one session; `base` is the model after the first one, None in that."""
    c, steps = self.config, len(rows)
    optimizer = optax.adam(1.0)
    masked = lambda z: jnp.where(come, z, -1e9)

    def loss(params: Params, teacher: Params, batch: Pictures, key: Array) -> Array:
      own, other = jax.random.randint(key, (2, len(batch.labels)), 0, batch.states.shape[1])
      view = lambda which: batch.states[jnp.arange(len(which)), which]
      student = self.student(params if way.block else params | {"lora": jax.lax.stop_gradient(params["lora"])})
      x = self.embed(student, view(own))
      value = Mean.of(*cross_entropy(masked(self.logits(params, x)), batch.labels)).value
      # The other views' features, by the teachers.
      others = []
      if way.contrast and base is None:
        others = [self.embed(teacher, view(other))]
      elif way.contrast and base is not None:
        others = [self.embed(base["teacher"], view(other)), self.embed(self.net.last, view(other))]
      if others:
        z = jnp.concatenate([x, *map(jax.lax.stop_gradient, others)])
        labels, itself = jnp.tile(batch.labels, 1 + len(others)), jnp.eye(len(z), dtype=bool)
        value += Mean.of(*supervised_contrastive(
            cosine_similarity(z, z), labels[:, None] == labels, drop=itself, temperature=c.temperature)).value
      if way.consistent and base is not None:
        before = self.logits(base["params"], self.embed(self.student(base["params"]), view(own)))
        classes = base["classes"]
        known = lambda z: jnp.where(classes, z, 0.0)
        value += Mean.of(*feature_consistency(
            known(self.logits(params, x)), known(before), metric="mse")).value
      return value

    def step(carry: Any, at: tuple[Array, Array, Array]) -> tuple[Any, None]:
      params, teacher, state = carry
      number, row, key = at
      grads = jax.grad(loss)(params, teacher, Pictures(data.states[row], data.labels[row]), key)
      moved: Any
      moved, state = optimizer.update(grads, state)
      whole = way.whole and base is None  # the block itself trains in the first session alone, and late
      share = {"head": 1.0, "lora": 1.0 * way.block, "last": whole * c.whole_rate * (number >= steps // 2)}
      now = rate * (1 - number / steps)
      updates = {name: jax.tree.map(lambda u, s=share[name]: u * s * now, moved[name]) for name in share}
      tuned: Any = optax.apply_updates(params, updates)
      teacher = optax.incremental_update(tuned["last"], teacher, step_size=1 - c.decay)
      return (tuned, teacher, state), None

    params, teacher = start["params"], start["teacher"]
    at = (jnp.arange(steps), rows, jax.random.split(key, steps))
    params, teacher, _ = jax.lax.scan(step, (params, teacher, optimizer.init(params)), at)[0]
    return {"params": params, "teacher": teacher}

  def lessons(self, seed: int) -> tuple[Bool[np.ndarray, " n"], Lessons, list[Session]]:
    """What a seed draws of the training pictures."""
    c, labels = self.config, self.pictures("train").labels
    rows, brought = draw_sessions(labels, c, seed)
    drawn = [one.records[shuffled_batches(
        np.random.default_rng(seed + i), len(one.records), steps=c.later_steps if i else c.steps,
        batch_size=c.batch_size)] for i, one in enumerate(brought)]
    lessons = Lessons(drawn[0], np.stack(drawn[1:]), brings(brought, self.count))
    return np.isin(np.arange(len(labels)), rows), lessons, brought

  def _told(self, params: Params, pictures: Pictures, come: Bool[Array, " classes"]) -> Bool[Array, " n"]:
    x = self.embed(self.student(params), pictures.states[:, 0])
    return jnp.argmax(jnp.where(come, self.logits(params, x), -jnp.inf), axis=-1) == pictures.labels

  def run(self, way: Way | None, rate: float | None, seed: int, split: str) -> dict[str, Any]:
    """One arm; without a way class means alone."""
    check_open(split)
    taught, lessons, brought = self.lessons(seed)
    data, held = self.pictures("train"), self.pictures(split)
    models = self._learn(way or Way(), jax.random.key(seed), data, taught, lessons, rate or 0.0)
    come = np.logical_or.accumulate(lessons.classes)
    right = np.asarray(self._tell(models, held, come), np.float64)
    told = told_by_session(right, held.labels, brought)
    known = [row[np.isin(held.labels, np.flatnonzero(seen))].mean() for row, seen in zip(right, come, strict=True)]
    return {
        "last": right[-1], "average": float(np.mean(known)), "first": float(told[0, 0]), "base": float(told[-1, 0]),
        "new": float(right[-1][np.isin(held.labels, np.flatnonzero(~come[0]))].mean()),
        "forgetting": transfer_metrics(told)["forgetting"]}


def arms(config: Config) -> dict[str, Arm]:
  """Class means, and five ways of tuning."""
  world = World(config)
  return {MEANS: Arm(partial(world.run, None)), **{
      arm: Arm(partial(world.run, way), config.rates) for arm, way in WAYS.items()}}


STUDY = Study(
    slug="coact", arxiv="2405.16625",
    title="Consistency-Guided Asynchronous Contrastive Tuning for Few-Shot Class-Incremental Tuning of Foundation "
          "Models",
    question="keep old skills",
    use_when="a pretrained vision model learns new classes again and again from a few pictures each",
    setting="the last block of EfficientNet-Lite0, by LoRA, and a head learn 42 kinds of emoji of three vendors in "
            "four sessions, from ten pictures of each",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("last", "accuracy on unseen emoji of all classes after the last session"),
        Score("average", "accuracy on the classes that have come, mean over sessions", shared_items=False),
        Score("first", "accuracy on the first session's classes right after it", shared_items=False),
        Score("base", "accuracy on the first session's classes after the last", shared_items=False),
        Score("new", "accuracy on later sessions' classes after the last", shared_items=False),
        Score("forgetting", "how far accuracy on a session's classes falls from its best, among more classes too",
              higher_is_better=False, shared_items=False)),
    choose_by="last", baseline=PLAIN, method=METHOD, start=MEANS, kept="base",
    premises=(
        Premise("LoRA learns the first session's classes better than their means tell them",
                lambda s: s[PLAIN].first - s[MEANS].first, at_least=0.03),
        Premise("and forgets of them what class means keep",
                lambda s: s[PLAIN].forgetting - s[MEANS].forgetting, at_least=0.02)),
    claims=(
        Claim("CoACT tells more after the last session than LoRA by cross-entropy", higher("last"), smallest=0.01),
        Claim("and more than class means", higher("last", METHOD, MEANS), smallest=0.01),
        Claim("it forgets less than LoRA by cross-entropy", lower("forgetting"), smallest=0.01),
        Claim("consistency adds to the rest of it", higher("last", METHOD, UNTIED), smallest=0.005)),
    plot=Front("base", "new"))
