"""DR-Tune: does a head that must also tell the pretrained features tune a ConvNet better, once these are calibrated?

    jaxft run dr-tune            seven minutes on one core
    jaxft run dr-tune --smoke    seconds

The last block of a ConvNet pretrained on ImageNet and a head learn the ten kinds of clothes of Fashion-MNIST from 16
pictures of each, met as they are or mirrored; the blocks before are frozen. A bank holds what the tuned and the
pretrained block made of the last pictures. The head's cross-entropy on the pretrained features is added with weight 1;
before, these are turned as a whole and moved class by class onto the tuned ones. The encoder gets no gradient from it.

The paper presupposes that the tuned features drift from the pretrained ones and that full tuning fits the training
pictures far better than others. Its code weighs the two terms by the numbers of their rows and turns the features at
every tenth step only, in between not at all; here a rotation is kept for ten steps, which is what it costs there.
Controls: the bank without calibration, the bank moved but not turned, and cosine distance to the pretrained features
with weight 1, which binds the encoder where DR-Tune binds the head.

A seed draws the pictures, the batches, their mirroring and the init of the head; rates are chosen for each arm.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from experiments.tasks.convnet.few_labels import CLASSES, SMALL, FewLabels, Settings
from experiments.tasks.convnet.frozen import ConvNet, Params
from experiments.tasks.convnet.last_block import Labelled, features, init_head, judge, one_view
from jaxft.losses import Mean, calibrate_features, cross_entropy, feature_consistency, rotation
from jaxft.models.linear import linear
from jaxft.seal import check_open
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, higher
from jaxft.training import FeatureBank, empty_bank, push


@dataclasses.dataclass(frozen=True)
class Config(Settings):
  bank: int = 256
  rotate_every: int = 10
  weight: float = 1.0


SMOKE = Config(**SMALL, steps=3, bank=16, rotate_every=2)

HEAD, FULL, NEAR, RAW, MOVED, METHOD = (
    "head alone", "full", "full, near the pretrained features", "head on the bank as it is", "bank moved by class",
    "DR-Tune")
BANKED = (RAW, MOVED, METHOD)


class Seen(NamedTuple):
  """Of pictures, the features by the tuned and by the pretrained block, and their classes."""

  tuned: Float[Array, "n dim"]
  pretrained: Float[Array, "n dim"]
  labels: Int[Array, " n"]


def calibrated(
    arm: str, bank: FeatureBank, turn: Float[Array, "dim dim"], head: Params, norm: Float[Array, ""]
) -> Float[Array, "capacity dim"]:
  """The bank's pretrained features as an arm shows them to the head."""
  if arm == RAW:
    return bank.rows.pretrained
  return calibrate_features(
      bank.rows.pretrained, bank.rows.tuned, bank.rows.labels, head["kernel"].T, norm=norm,
      rotate=turn if arm == METHOD else False, where=bank.filled)


def objective(
    arm: str, config: Config, net: ConvNet, params: Params, states: Float[Array, "n rows columns channels"],
    labels: Int[Array, " n"], bank: FeatureBank, turn: Float[Array, "dim dim"],
) -> tuple[Float[Array, ""], Seen]:
  """The loss of one arm, and what it saw."""
  last = params["last"]
  x = features(net, jax.lax.stop_gradient(last) if arm == HEAD else last, states)
  before = features(net, net.last, states) if arm in (NEAR, *BANKED) else x
  task = Mean.of(*cross_entropy(linear(x, params["head"]), labels)).value
  if arm == NEAR:
    task += config.weight * Mean.of(*feature_consistency(x, before, metric="cosine")).value
  if arm in BANKED:
    norm = jnp.mean(jnp.linalg.norm(x, axis=1))
    shown = calibrated(arm, bank, turn, params["head"], norm)
    on_bank = cross_entropy(linear(shown, params["head"]), bank.rows.labels, where=bank.filled)
    task += config.weight * Mean.of(*on_bank).value
  return task, Seen(x, before, labels)


def tune(
    arm: str, config: Config, net: ConvNet, key: Array, data: Labelled, rows: Int[Array, "steps batch"],
    rate: float | Float[Array, ""],
) -> Params:
  """The block and the head after training by one arm."""
  of_head, of_fill, of_steps = jax.random.split(key, 3)
  params = {"last": net.last, "head": init_head(of_head, net.dim, CLASSES)}
  update = optax.adam(optax.linear_schedule(rate, 0.0, len(rows)))
  gradient = jax.grad(partial(objective, arm, config, net), has_aux=True)

  # Before training both blocks are the same.
  first = rows.reshape(-1)[: config.bank]
  filled = features(net, net.last, one_view(of_fill, data.states[first]))
  seen = Seen(filled, filled, data.labels[first])
  bank = push(empty_bank(config.bank, seen), seen)

  def step(carry: Any, at: tuple[Array, Array, Array]) -> tuple[Any, None]:
    params, state, bank, turn = carry
    number, picked, key = at
    if arm == METHOD:
      renewed = lambda: rotation(_unit(bank.rows.pretrained), _unit(bank.rows.tuned), where=bank.filled)
      turn = jax.lax.cond(number % config.rotate_every == 0, renewed, lambda: turn)
    grads, seen = gradient(params, one_view(key, data.states[picked]), data.labels[picked], bank, turn)
    updates, state = update.update(grads, state, params)
    return (optax.apply_updates(params, updates), state, push(bank, seen), turn), None

  steps = jnp.arange(len(rows)), rows, jax.random.split(of_steps, len(rows))
  return jax.lax.scan(step, (params, update.init(params), bank, jnp.eye(net.dim)), steps)[0][0]


def _unit(x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
  return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-8)


class World(FewLabels):
  """The pictures, and what a ConvNet learns of them."""

  def __init__(self, config: Config):
    super().__init__(config)
    self._tune = jax.jit(partial(_tuned, config, self.net), static_argnums=0)
    self._judge = jax.jit(lambda params, pictures: judge(self.net, params, pictures, classes=CLASSES))

  def run(self, arm: str, rate: float, seed: int, split: str) -> dict[str, Any]:
    """One arm."""
    check_open(split)
    params, trained = self._tune(arm, jax.random.key(seed), *self.drawn(seed), rate)
    found = self._judge(params, self.held_out(split))
    return {"accuracy": found.right, "drift": float(found.drift), "trained": float(trained)}


def _tuned(
    config: Config, net: ConvNet, arm: str, key: Array, data: Labelled, rows: Array, rate: float | Float[Array, ""]
) -> tuple[Params, Float[Array, ""]]:
  """The tuned params, and the accuracy on the pictures that they learned from."""
  params = tune(arm, config, net, key, data, rows, rate)
  return params, jnp.mean(judge(net, params, data, classes=CLASSES).right)


def arms(config: Config) -> dict[str, Arm]:
  """The head alone, full tuning, two ways to bind it, and two parts of DR-Tune beside the whole."""
  world = World(config)
  tuned = {arm: Arm(partial(world.run, arm), config.rates) for arm in (FULL, NEAR, *BANKED)}
  return {HEAD: Arm(partial(world.run, HEAD), config.head_rates), **tuned}


STUDY = Study(
    slug="dr-tune", arxiv="2308.12058",
    title="DR-Tune: Improving Fine-tuning of Pretrained Visual Models by Distribution Regularization with Semantic "
          "Calibration",
    question="few labels",
    use_when="full tuning on few labels overfits and its features drift far from the pretrained ones",
    setting="the last block of EfficientNet-Lite0 and a head learn Fashion-MNIST from 16 pictures of each class",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("accuracy", "accuracy on unseen pictures"),
        Score("drift", "one minus the cosine of unseen pictures' features with the pretrained ones",
              higher_is_better=False, shared_items=False),
        Score("trained", "accuracy on the pictures of training", shared_items=False)),
    choose_by="accuracy", baseline=FULL, method=METHOD, start=HEAD,
    premises=(
        Premise("full tuning is better than the head alone", lambda s: s[FULL].accuracy - s[HEAD].accuracy,
                at_least=0.02),
        Premise("its features drift from the pretrained ones", lambda s: s[FULL].drift, at_least=0.1),
        Premise("it fits the pictures of training better than others", lambda s: s[FULL].trained - s[FULL].accuracy,
                at_least=0.1)),
    claims=(
        Claim("DR-Tune is more accurate than full tuning", higher("accuracy"), smallest=0.005),
        Claim("and more than full tuning near the pretrained features", higher("accuracy", METHOD, NEAR),
              smallest=0.005),
        Claim("and more than a head on the bank as it is, without calibration", higher("accuracy", METHOD, RAW),
              smallest=0.005),
        Claim("turning the bank adds to moving it by class", higher("accuracy", METHOD, MOVED), smallest=0.005)),
    plot=Bars("accuracy"))
