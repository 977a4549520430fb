"""Yi's depth up-scaling: are the layers that hardly change their input the ones to repeat?

    jaxft run yi            ten minutes on one core
    jaxft run yi --smoke    seconds

SmolLM2-135M, 30 layers, gets 4 more by repetition and is not trained afterwards: a good start loses little. Which
layers are repeated is decided by the cosine of each layer's input and output on calibration sentences of news
editorials; the loss is measured on other ones. Arms:

- single layers, each repeated at once after itself: the 4 of the highest cosine, of the lowest, and 4 at random;
- one block of 4, repeated after itself, as Yi does: the block of the highest mean cosine, and one at random.

That the first layers and the last do much is known, and nobody would repeat them: random choices leave out the first
two and the last. A seed draws the calibration sentences and the random choices; test
sentences are the same for all. Nothing is tuned. A model is scored once, however many seeds choose its layers.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.reasoning_answers import Rows, Scorer, load_editorials
from jaxft.analysis import layer_cosines
from jaxft.formats import Pretrained, load
from jaxft.merging import repeated_block, take_layers
from jaxft.models import decoder
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, lower


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "smollm2-135m"
  repeated: int = 4
  first: int = 2  # layers at the start that a random choice leaves out
  last: int = 1  # and at the end
  calibration: int = 8  # sentences
  sentences: int = 16  # of each split for evaluation
  length: int = 32
  seeds: tuple[int, ...] = tuple(range(16))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    model="smollm2-135m:tiny", repeated=1, first=0, last=0, calibration=1, sentences=2, length=8, seeds=(0, 1),
    tuning_seeds=(100,))

START, RANDOM, METHOD, LOWEST, BLOCK, RANDOM_BLOCK = (
    "as it is", "random inner layers", "layers of highest cosine", "layers of lowest cosine",
    "block of highest cosine", "a random inner block")


def repeated(arm: str, config: Config, cosines: np.ndarray, seed: int) -> list[int]:
  """Which layers an arm has twice."""
  depth, k, rng = len(cosines), config.repeated, np.random.default_rng(seed)
  order = np.argsort(-cosines, kind="stable")
  means = np.convolve(cosines, np.ones(k) / k, mode="valid")
  end = depth - config.last
  block = int(np.argmax(means)) if arm == BLOCK else int(rng.integers(config.first, end - k + 1))
  of = {
      START: [], RANDOM: rng.permutation(np.arange(config.first, end))[:k],
      METHOD: order[:k], LOWEST: order[-k:], BLOCK: range(block, block + k), RANDOM_BLOCK: range(block, block + k)}
  return sorted(int(layer) for layer in of[arm])


def measure_cosines(model: Pretrained, params: Any, rows: Rows) -> jax.Array:
  """Of each layer's input and output, over the tokens of the rows; the first state is the embedding."""
  recorded = decoder.hidden_states(
      params, model.config, rows.ids, mask=rows.mask, record=("embed", "layers/out")).recorded
  return layer_cosines(jnp.concatenate([recorded["embed"][None], recorded["layers/out"]]), rows.mask)


class World:
  """The model, its cosines of each seed, and the loss of every model made of its layers."""

  def __init__(self, config: Config):
    self.config, self.model = config, load(config.model)
    self._pool = load_editorials(self.model, "train", limit=10_000, length=config.length)
    self._measure = jax.jit(partial(measure_cosines, self.model))
    self._scorers = {depth: self._scorer(depth) for depth in (0, config.repeated)}
    self.cosines, self.loss = cache(self._cosines), cache(self._loss)

  def _scorer(self, added: int) -> Scorer:
    depth = self.model.config.num_layers + added
    return Scorer(dataclasses.replace(
        self.model, config=dataclasses.replace(self.model.config, num_layers=depth)), batch_size=8)

  def _cosines(self, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).choice(len(self._pool), self.config.calibration, replace=False)
    return np.asarray(self._measure(self.model.params, self._pool[rows]), np.float64)

  def _loss(self, layers: tuple[int, ...], split: str) -> np.ndarray:
    """Nats a token, of each sentence."""
    rows = load_editorials(self.model, split, limit=self.config.sentences, length=self.config.length)
    scorer = self._scorers[len(layers) - self.model.config.num_layers]
    _, nats, tokens = scorer.per_row(take_layers(self.model.params, list(layers)), rows)
    return nats / tokens

  def run(self, arm: str, rate: None, seed: int, split: str) -> dict[str, Any]:
    """Repeats what the arm repeats."""
    cosines, depth = self.cosines(seed), self.model.config.num_layers
    twice = repeated(arm, self.config, cosines, seed)
    in_place = arm in (BLOCK, RANDOM_BLOCK)
    layers = repeated_block(depth, twice[0], twice[-1] + 1) if in_place else sorted([*range(depth), *twice])
    return {"nll": self.loss(tuple(layers), split), "cosine": float(np.mean(cosines[twice] if twice else cosines))}


def arms(config: Config) -> dict[str, Arm]:
  """The model as it is, and with layers repeated by each choice."""
  world = World(config)
  return {arm: Arm(partial(world.run, arm)) for arm in (START, RANDOM, METHOD, LOWEST, BLOCK, RANDOM_BLOCK)}


STUDY = Study(
    slug="yi", title="Yi: Open Foundation Models by 01.AI", arxiv="2403.04652",
    question="which layers", use_when="a model is to become deeper by repeating layers, before any training",
    setting="SmolLM2-135M gets 4 more layers by repetition, not trained; loss on sentences of editorials",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("nll", "nats per token of editorials", higher_is_better=False),
        Score("cosine", "mean cosine of input and output of the repeated layers, of all where none is",
              shared_items=False)),
    choose_by="nll", baseline=RANDOM, method=METHOD, start=START,
    premises=(
        Premise("repeating inner layers at random costs nats", lambda s: s[RANDOM].nll - s[START].nll, at_least=0.1),
        Premise("it matters which: those of the lowest cosine cost more nats",
                lambda s: s[LOWEST].nll - s[RANDOM].nll, at_least=0.1)),
    claims=(
        Claim("layers of the highest cosine cost fewer nats than random inner ones", lower("nll"), smallest=0.05),
        Claim("the block of the highest cosine costs fewer nats than a random inner one",
              lower("nll", BLOCK, RANDOM_BLOCK), smallest=0.05),
        Claim("a block costs fewer nats than as many single layers, both of the highest cosine",
              lower("nll", BLOCK, METHOD), smallest=0.05)),
    plot=Bars("nll"))
