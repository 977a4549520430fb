"""LEVI: does a small model beside several depths of a frozen one carry over better where spurious features turn?

    jaxft run levi            six minutes on one core
    jaxft run levi --smoke    seconds

Pictures of clothes from Fashion-MNIST are to be told apart, dresses and coats from T-shirts and pullovers. Each can be
drawn on an orange or on a blue background, and with or without a white frame. The ConvNet is one pretrained on ImageNet
whose last block was then tuned on other pictures, where the frame agrees with the label in 95 of 100: the flaw of what
was learned before. Among the 240 pictures that it is tuned on now the frame agrees with the label in 70 of 100, and the
background in 80: the flaw of the data. Environments: as these; the background agrees in 20 of 100; the frame agrees in
5 of 100. A picture counts in an environment with all four looks, weighed by how often each is met there.

LEVI leaves the ConvNet as it is. Three linear layers read its states after blocks 5, 11 and 16, each beside the output
of a ConvNet of 3,200 params that learns from scratch; each has its own loss, and their probabilities are averaged. Full
tuning has the last block, 600,000 params, and a head. Controls: the head alone, the small model alone, the three layers
without the small model, and the ensemble of full tuning and the small model, whose probabilities are averaged as well.

A seed draws the pictures, their backgrounds and frames, the batches and the inits. Rates are chosen on the environment
of the tuning data, as nobody may look at the others; LEVI's layers and its small model have one each.
"""

import dataclasses
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from experiments.tasks.batches import shuffled_batches
from experiments.tasks.convnet import last_block
from experiments.tasks.convnet.frozen import ConvNet, Params, frozen_pass, load_convnet
from experiments.tasks.convnet.last_block import Pictures, Settings, fashion, features, init_head
from jaxft.adapters import SideModel, SideNetwork, average_views, side_network
from jaxft.evaluation import by_environment
from jaxft.losses import Mean, cross_entropy, deep_supervision
from jaxft.models import efficientnet
from jaxft.models.efficientnet import Block, EfficientNetConfig
from jaxft.models.linear import linear
from jaxft.models.pixels import standardize
from jaxft.seal import check_open
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, higher, not_lower

Rates = dict[str, Any]  # of each part of the params

LABEL_OF = {0: 0, 2: 0, 3: 1, 4: 1}  # T-shirts and pullovers, dresses and coats
BACKGROUNDS = ((40, 60, 140), (140, 70, 30))
# How often frame and background agree with the label.
BEFORE, NOW = (0.95, 0.5), (0.7, 0.8)
ENVIRONMENTS = {"id": NOW, "background": (0.7, 0.2), "frame": (0.05, 0.8)}


@dataclasses.dataclass(frozen=True)
class Config(Settings):
  taps: tuple[str, ...] = ("blocks/4/out", "blocks/10/out")  # and what the last block gives
  read: int = 1500  # pictures of the training split that are looked through
  before: int = 240
  before_steps: int = 150
  before_rate: float = 1e-3
  shots: int = 240  # in all
  validation: int = 500
  steps: int = 150
  rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
  layer_rates: tuple[float, ...] = (1e-2, 3e-2, 1e-1, 3e-1)


SMOKE = Config(
    **last_block.SMALL, taps=("blocks/0/out",), read=80, before=8, before_steps=2, shots=16, validation=40, test=40,
    steps=6, rates=(0.1,), head_rates=(0.1,), layer_rates=(0.1,))

HEAD, FULL, SMALL, PROBES, BOTH, METHOD = (
    "head alone", "full", "small model alone", "layers without the small model", "full and small, averaged", "LEVI")

SIDE_CONFIG = EfficientNetConfig(
    (Block(8, 16, kernel=3, stride=2, expand=2), Block(16, 24, kernel=3, stride=2, expand=2)), stem=8, dim=24,
    num_classes=1)
SIDE = SideModel(
    lambda key: {name: x for name, x in efficientnet.init(key, SIDE_CONFIG).items() if name != "classifier"},
    lambda params, pixels: efficientnet.embed(
        params, SIDE_CONFIG, standardize(pixels, mean=SIDE_CONFIG.mean, std=SIDE_CONFIG.std)),
    SIDE_CONFIG.dim)


class Looks(NamedTuple):
  """Pictures, in some leading axes, as all that trains sees them.

  Attributes:
    states: what enters the last block.
    taps: of the frozen model, the mean over places of each depth.
    pixels: what the small model reads.
    labels: 0 or 1.
  """

  states: Float[Array, "*n rows columns channels"]
  taps: tuple[Float[Array, "*n _"], ...]
  pixels: UInt8[Array, "*n height width 3"]
  labels: Int[Array, "*n"]


def drawn(gray: UInt8[np.ndarray, "n height width 3"]) -> UInt8[np.ndarray, "n looks height width 3"]:
  """Each picture without and with a frame, and each of them on either background."""
  looks = []
  for frame in (False, True):
    for color in BACKGROUNDS:
      x = np.where(gray < 10, np.asarray(color, np.uint8), gray)
      if frame:
        inside = x[:, 2:-2, 2:-2]
        x = np.full_like(x, 255)
        x[:, 2:-2, 2:-2] = inside
      looks.append(x)
  return np.stack(looks, axis=1)


def share_of_looks(labels: Int[np.ndarray, " n"], agree: tuple[float, float]) -> Float[np.ndarray, "n looks"]:
  """How often each picture is met in each look, where frame and background agree with the label as often as is said."""
  frame, background = (np.where(labels[:, None] == (0, 1), often, 1 - often) for often in agree)
  return (frame[:, :, None] * background[:, None]).reshape(len(labels), 4)


def chosen(pictures: Pictures) -> Pictures:
  """Those of the four kinds, with their label."""
  rows = np.isin(pictures.labels, list(LABEL_OF))
  return Pictures(pictures.pixels[rows], np.array([LABEL_OF[c] for c in pictures.labels[rows]], np.int32))


def frozen_looks(config: Config, net: ConvNet, pictures: Pictures) -> Looks:
  """All looks of pictures through the blocks before the last; `[n, looks, ...]`."""
  pixels = drawn(pictures.pixels)
  flat = pixels.reshape(-1, *pixels.shape[2:])
  states, taps = frozen_pass(net, flat, size=config.image_size, taps=config.taps)
  fold = lambda x: x.reshape(*pixels.shape[:2], *x.shape[1:])
  labels = np.repeat(pictures.labels[:, None], pixels.shape[1], axis=1)
  return Looks(fold(states), tuple(map(fold, taps)), jax.device_put(pixels), jax.device_put(labels))


def picked(looks: Looks, rows: Int[np.ndarray, " n"], agree: tuple[float, float], seed: int) -> Looks:
  """Of each of these pictures one look, as often as its share."""
  share = share_of_looks(np.asarray(looks.labels)[rows, 0], agree)
  rng = np.random.default_rng(seed)
  look = (rng.random((len(rows), 1)) > np.cumsum(share, axis=1)[:, :-1]).sum(axis=1)
  return jax.tree.map(lambda x: x[rows, look], looks)


def outputs(arm: str, net: ConvNet, method: SideNetwork, params: Params, looks: Looks) -> Float[Array, "views n 2"]:
  """The logits of an arm; of one view, but for LEVI's."""
  if arm in (PROBES, METHOD):
    return method.views(params, looks.taps, looks.pixels)
  if arm == SMALL:
    return linear(SIDE.apply(params["side"], looks.pixels), params["head"])[None]
  last = jax.lax.stop_gradient(params["last"]) if arm == HEAD else params["last"]
  return linear(features(net, last, looks.states), params["head"])[None]


def rates_of(rate: float | tuple[float, float]) -> Rates:
  """Of every part of the params: all alike, or one for LEVI's layers and one for its small model."""
  layers, small = rate if isinstance(rate, tuple) else (rate, rate)
  return {"last": layers, "head": layers, "views": layers, "side": small}


class World:
  """The ConvNet with its flaw, and the pictures in all their looks."""

  def __init__(self, config: Config):
    self.config, self.net = config, load_convnet(config.model)
    self._features = jax.jit(partial(features, self.net))
    self._fit = jax.jit(self._fitted, static_argnums=0)
    self._logits = jax.jit(
        lambda arm, params, looks: average_views(outputs(arm, self.net, self._method(arm), params, looks)),
        static_argnums=0)
    looks = frozen_looks(config, self.net, chosen(fashion("train", config.read)))
    before, now = (jax.tree.map(lambda x, at=at: x[at], looks) for at in (
        slice(None, config.before), slice(config.before, None)))
    flawed = picked(before, np.arange(len(before.labels)), BEFORE, seed=0)
    rows = shuffled_batches(
        np.random.default_rng(0), len(flawed.labels), steps=config.before_steps, batch_size=config.batch_size)
    self.last = self._fit(FULL, self.net.last, jax.random.key(0), flawed, rows, rates_of(config.before_rate))["last"]
    self.pool = self._with_last(now)
    self.held_out = cache(self._held_out)
    self.tuned = cache(self._tuned)

  def _with_last(self, looks: Looks) -> Looks:
    """The looks, their last tap what the flawed block makes of them."""
    flat = looks.states.reshape(-1, *looks.states.shape[2:])
    last = self._features(self.last, flat).reshape(*looks.labels.shape, -1)
    return looks._replace(taps=(*looks.taps, last))

  def _held_out(self, split: str) -> Looks:
    pictures = chosen(fashion(split, getattr(self.config, split)))
    return self._with_last(frozen_looks(self.config, self.net, pictures))

  def _method(self, arm: str) -> SideNetwork:
    config = self.net.config
    dims = [config.blocks[int(site.split("/")[1])].outputs for site in self.config.taps]
    return side_network([*dims, self.net.dim], 2, SIDE if arm == METHOD else None)

  def _init(self, arm: str, last: Params, key: Array) -> Params:
    of_head, of_side = jax.random.split(key)
    if arm in (PROBES, METHOD):
      return self._method(arm).init(of_side)
    if arm == SMALL:
      return {"side": SIDE.init(of_side), "head": init_head(of_head, SIDE.dim, 2)}
    return {"last": last, "head": init_head(of_head, self.net.dim, 2)}

  def _fitted(self, arm: str, last: Params, key: Array, looks: Looks, rows: Array, rates: Rates) -> Params:
    """Adam, each part of the params at a rate of its own that falls linearly to zero."""
    def loss(params: Params, batch: Looks) -> Float[Array, ""]:
      views = outputs(arm, self.net, self._method(arm), params, batch)
      return Mean.of(*deep_supervision(cross_entropy)(views, labels=batch.labels)).value

    def step(carry: Any, rows: Array) -> tuple[Any, None]:
      params, state = carry
      grads = jax.grad(loss)(params, jax.tree.map(lambda x: x[rows], looks))
      updates, state = update.update(grads, state, params)
      updates = {part: jax.tree.map(lambda x, part=part: rates[part] * x, of) for part, of in updates.items()}
      return (optax.apply_updates(params, updates), state), None

    params = self._init(arm, last, key)
    update: Any = optax.adam(optax.linear_schedule(1.0, 0.0, len(rows)))
    return jax.lax.scan(step, (params, update.init(params)), rows)[0][0]

  def _tuned(self, arm: str, rate: float | tuple[float, float], seed: int) -> Params:
    c = self.config
    some = np.random.default_rng(seed).permutation(len(self.pool.labels))[: c.shots]
    looks = picked(self.pool, some, NOW, seed)
    rows = shuffled_batches(np.random.default_rng(seed), len(some), steps=c.steps, batch_size=c.batch_size)
    return self._fit(arm, self.last, jax.random.key(seed), looks, rows, rates_of(rate))

  def run(self, arm: str, rate: Any, seed: int, split: str) -> dict[str, Any]:
    """One arm, in all environments."""
    check_open(split)
    looks = self.held_out(split)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), looks)
    of = {FULL: rate["full"], SMALL: rate["small"]} if arm == BOTH else {
        arm: (rate["layers"], rate["small"]) if arm == METHOD else rate}
    logits = [self._logits(name, self.tuned(name, r, seed), flat) for name, r in of.items()]
    right = np.asarray(np.argmax(np.logaddexp.reduce(np.stack(logits)), axis=-1) == flat.labels, np.float64)
    right, labels = right.reshape(looks.labels.shape), np.asarray(looks.labels)[:, 0]
    met = {name: np.sum(right * share_of_looks(labels, agree), axis=1) for name, agree in ENVIRONMENTS.items()}
    scores = by_environment(np.concatenate(list(met.values())), np.repeat(np.arange(len(met)), len(labels)))
    return {**met, "others": (met["background"] + met["frame"]) / 2, "worst": scores.worst}


def arms(config: Config) -> dict[str, Arm]:
  """The head alone, full tuning, the small model, both averaged, and LEVI with and without its small model."""
  world = World(config)
  rates = {HEAD: config.head_rates, FULL: config.rates, SMALL: config.head_rates,
           BOTH: {"full": config.rates, "small": config.head_rates}, PROBES: config.layer_rates,
           METHOD: {"layers": config.layer_rates, "small": config.head_rates}}
  return {arm: Arm(partial(world.run, arm), of) for arm, of in rates.items()}


STUDY = Study(
    slug="levi", arxiv="2402.04644",
    title="LEVI: Generalizable Fine-tuning via Layer-wise Ensemble of Different Views",
    question="keep old skills",
    use_when="both the tuning data and the pretrained model have spurious features, and both may turn",
    setting="EfficientNet-Lite0, its last block tuned where frames agree with labels, learns 240 pictures of clothes "
            "whose backgrounds do",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("id", "accuracy where frame and background are as in the tuning data"),
        Score("background", "accuracy where the background is reversed"),
        Score("frame", "accuracy where the frame is against the label"),
        Score("others", "the mean of the last two"),
        Score("worst", "accuracy in the worst of the three environments", shared_items=False)),
    choose_by="id", baseline=FULL, method=METHOD, start=HEAD,
    premises=(
        Premise("full tuning takes the background for the label", lambda s: s[FULL].id - s[FULL].background,
                at_least=0.05),
        Premise("the frozen features take the frame for it", lambda s: s[HEAD].id - s[HEAD].frame, at_least=0.03)),
    claims=(
        Claim("LEVI is more accurate than full tuning in the two other environments", higher("others"), smallest=0.01),
        Claim("its accuracy in that of the tuning data is not lower", not_lower("id"), smallest=0.01),
        Claim("it is more accurate than the head alone in the two others", higher("others", METHOD, HEAD),
              smallest=0.01),
        Claim("and more than full tuning and the small model, averaged", higher("others", METHOD, BOTH),
              smallest=0.01)),
    plot=Bars("worst"))
