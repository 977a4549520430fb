"""Core-tuning: do contrast among hard mixed features and a classifier trained on them tune a ConvNet better?

    jaxft run core-tuning            six minutes on one core
    jaxft run core-tuning --smoke    seconds

The last block of a ConvNet pretrained on ImageNet, of 600,000 params, and a head learn the ten kinds of clothes of
Fashion-MNIST from 16 pictures of each, met as they are or mirrored. The blocks before are frozen. Core-tuning mixes the
features of a batch into a hard positive and a hard negative of each row, trains the head on all three and, through a
projection of two layers, adds a focal supervised contrast of weight 0.1, the paper's for CIFAR-10.

The paper presupposes that cross-entropy leaves the pictures of a class scattered: the share of the features' variance
within classes, on unseen pictures, is measured. Its encoder is pretrained by self-supervised contrast; this one is by
labels, which may leave less to win. Controls: the plain supervised contrast beside cross-entropy, and the mixed
features without contrast.

A seed draws the pictures, the batches and their mirroring, the mixing and the init of head and projection; rates are
chosen for each arm.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments.tasks.convnet.few_labels import CLASSES, SMALL, FewLabels, Settings
from experiments.tasks.convnet.frozen import ConvNet, Params
from experiments.tasks.convnet.last_block import Labelled, features, fit, init_head, judge, one_view
from jaxft.losses import (
  Mean,
  core_tuning,
  core_tuning_pairs,
  cosine_similarity,
  cross_entropy,
  soft_cross_entropy,
  supervised_contrastive,
)
from jaxft.models.linear import linear
from jaxft.seal import check_open
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, higher, lower


@dataclasses.dataclass(frozen=True)
class Config(Settings):
  weight: float = 0.1
  projection: int = 128


SMOKE = Config(**SMALL, steps=2, projection=8)

HEAD, PLAIN, CONTRAST, MIXED, METHOD = (
    "head alone", "cross-entropy", "cross-entropy + SupCon", "cross-entropy of mixed features", "Core-tuning")


def init(key: Array, net: ConvNet, width: int) -> Params:
  """The pretrained block, a head, and a projection for the contrast."""
  of_head, first, second = jax.random.split(key, 3)
  dense = lambda key, m, n, gain: {"kernel": (gain / m) ** 0.5 * jax.random.normal(key, (m, n)), "bias": jnp.zeros(n)}
  return {"last": net.last, "head": init_head(of_head, net.dim, CLASSES),
          "projection": [dense(first, net.dim, net.dim, 2), dense(second, net.dim, width, 1)]}


def projected(params: Params, x: Float[Array, "n dim"]) -> Float[Array, "n width"]:
  """What is contrasted."""
  first, second = params["projection"]
  return linear(jax.nn.relu(linear(x, first)), second)


def objective(arm: str, config: Config, net: ConvNet, params: Params, batch: Labelled, key: Array) -> Float[Array, ""]:
  """The loss of one arm."""
  of_views, of_mixing = jax.random.split(key)
  labels, last = batch.labels, params["last"]
  x = features(net, jax.lax.stop_gradient(last) if arm == HEAD else last, one_view(of_views, batch.states))
  if arm in (MIXED, METHOD):
    mixed, targets = core_tuning_pairs(of_mixing, x, jax.nn.one_hot(labels, CLASSES), labels)
    flat = mixed.reshape(-1, x.shape[1])
    task = Mean.of(*soft_cross_entropy(linear(flat, params["head"]), targets.reshape(-1, CLASSES))).value
    if arm == MIXED:
      return task
    z = projected(params, flat).reshape(*mixed.shape[:2], -1)
    return task + config.weight * Mean.of(*core_tuning(z[0], z[1], z[2], labels)).value
  task = Mean.of(*cross_entropy(linear(x, params["head"]), labels)).value
  if arm != CONTRAST:
    return task
  z = projected(params, x)
  own = jnp.eye(len(z), dtype=bool)
  contrast = supervised_contrastive(cosine_similarity(z, z), (labels[:, None] == labels) & ~own, drop=own)
  return task + config.weight * Mean.of(*contrast).value


class World(FewLabels):
  """The pictures, and what a ConvNet learns of them."""

  def __init__(self, config: Config):
    super().__init__(config)
    self.config = config
    self._tune = jax.jit(self._tuned, static_argnums=0)
    self._judge = jax.jit(lambda params, pictures: judge(self.net, params, pictures, classes=CLASSES))

  def _tuned(self, arm: str, key: Array, data: Labelled, rows: Array, rate: float | Float[Array, ""]) -> Params:
    of_init, of_steps = jax.random.split(key)
    params = init(of_init, self.net, self.config.projection)
    return fit(partial(objective, arm, self.config, self.net), params, data, rows,
               jax.random.split(of_steps, len(rows)), rate)

  def run(self, arm: str, rate: float, seed: int, split: str) -> dict[str, Any]:
    """One arm."""
    check_open(split)
    found = self._judge(self._tune(arm, jax.random.key(seed), *self.drawn(seed), rate), self.held_out(split))
    return {"accuracy": found.right, "within": float(found.within)}


def arms(config: Config) -> dict[str, Arm]:
  """The head alone, and four ways to tune the last block with it."""
  world = World(config)
  tuned = {arm: Arm(partial(world.run, arm), config.rates) for arm in (PLAIN, CONTRAST, MIXED, METHOD)}
  return {HEAD: Arm(partial(world.run, HEAD), config.head_rates), **tuned}


STUDY = Study(
    slug="core-tuning", arxiv="2102.06605",
    title="Unleashing the Power of Contrastive Self-Supervised Visual Models via Contrast-Regularized Fine-Tuning",
    question="few labels",
    use_when="a pretrained vision model is tuned on few labels and its classes stay scattered",
    setting="the last block of EfficientNet-Lite0 and a head learn Fashion-MNIST from 16 pictures of each class",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("accuracy", "accuracy on unseen pictures"),
        Score("within", "share of the variance of unseen pictures' features that lies within classes",
              higher_is_better=False, shared_items=False)),
    choose_by="accuracy", baseline=PLAIN, method=METHOD, start=HEAD,
    premises=(
        Premise("tuning the last block is better than the head alone", lambda s: s[PLAIN].accuracy - s[HEAD].accuracy,
                at_least=0.02),
        Premise("cross-entropy leaves classes scattered", lambda s: s[PLAIN].within, at_least=0.3)),
    claims=(
        Claim("Core-tuning is more accurate than cross-entropy", higher("accuracy"), smallest=0.005),
        Claim("and more than cross-entropy of mixed features, without contrast", higher("accuracy", METHOD, MIXED),
              smallest=0.005),
        Claim("plain contrast beside cross-entropy is more accurate than without", higher("accuracy", CONTRAST),
              smallest=0.005),
        Claim("Core-tuning leaves less of the variance within classes than cross-entropy", lower("within"),
              smallest=0.01)),
    plot=Bars("accuracy"))
