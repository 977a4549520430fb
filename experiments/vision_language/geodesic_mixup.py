"""Geodesic multi-modal mixup: do negatives between the two modalities make a better aligned dual encoder?

    jaxft run geodesic-mixup            a few minutes on one core, and ten for the home-made dual encoder
    jaxft run geodesic-mixup --smoke    seconds

The dual encoder of `tasks/emoji_dual_encoder.py` learns the style of Fluent's emoji, which it has not seen, from 740
pictures with their names: both projections train, on the frozen towers' features. Half of a batch's mass of pictures
and names lies in two caps of the sphere, and CLIP's loss has no reason to close the gap. m2-Mix adds a contrastive term
whose negatives lie on the arcs between the pairs. Control: the same extra term with ordinary negatives, at its
temperature, so that it is the mixing that is judged. Without m3-Mix, which adds terms of mixed pictures and names.

Measured on other pictures of Fluent: 556 on either side, two thirds of which show emoji whose names, in other styles,
were in the pretraining. Rates and weights are chosen for each arm; a seed draws the batches and what is mixed.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments.tasks.emoji_dual_encoder import TINY, Recipe, alignment, embed, names, text_features
from experiments.tasks.picture_features import features
from jaxft import evaluation
from jaxft.losses import Mean, clip, mixed_negative_contrastive
from jaxft.seal import check_open
from jaxft.studies.study import Arm, Bars, Claim, Grid, Premise, Score, Study, higher, lower

Params = dict[str, Any]
NAME = "emoji/fluent"
LEAST = 0.002  # the least weight of the source, whose script adds two halves and not their mean; less would be none


@dataclasses.dataclass(frozen=True)
class Config:
  recipe: Recipe = Recipe()
  steps: int = 100
  batch_size: int = 128
  mixing: float = 0.5  # both parameters of the Beta distribution
  temperature: float = 0.07  # of the added term
  rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
  weights: tuple[float, ...] = (0.002, 0.02, 0.2, 2.0)
  seeds: tuple[int, ...] = tuple(range(10))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(recipe=TINY, steps=3, batch_size=8, rates=(1e-3, 1e-2), weights=(0.2,), seeds=(0, 1),
               tuning_seeds=(100,))

START, PLAIN, CONTROL, METHOD = "start", "CLIP's loss", "ordinary negatives twice", "m2-Mix"


class World:
  """The towers' features of pictures and names, and the projections before tuning."""

  def __init__(self, config: Config):
    self.config, self.aligned = config, alignment(config.recipe)
    self.data = cache(self._data)
    self._learn, self._measure = jax.jit(self.learn), jax.jit(measure)

  def _data(self, split: str) -> tuple[Float[np.ndarray, "n width"], Float[np.ndarray, "n other"]]:
    """Half of the training data is trained on, a quarter is added to either held-out split."""
    check_open(split)
    recipe, pictures, texts = self.config.recipe, [], []
    for of_data in dict.fromkeys(("train", split)):
      x, y = features(NAME, of_data, vision=recipe.vision), names(NAME, of_data, limit=recipe.vision.limit)
      kept = np.ones(len(y), bool)
      if of_data == "train":
        kept = np.isin(np.arange(len(y)) % 4, {"train": (0, 1), "validation": (2,), "test": (3,)}[split])
      pictures.append(x[kept])
      texts += [text for text, own in zip(y, kept, strict=True) if own]
    return np.concatenate(pictures), text_features(texts, recipe)

  def learn(
      self, key: Array, pictures: Float[Array, "n width"], texts: Float[Array, "n other"], rate: Array,
      ordinary: Array, mixed: Array,
  ) -> Params:
    """The projections after tuning with so much of either added term; the scale stays."""
    c = self.config
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, c.steps))
    own = jnp.exp(-jnp.asarray(self.aligned["logit_scale"]))

    def loss(projection: Params, key: Array) -> Array:
      of_rows, of_mix = jax.random.split(key)
      rows = jax.random.choice(of_rows, len(pictures), (min(c.batch_size, len(pictures)),), replace=False)
      a = embed({"projection": projection}, "vision", pictures[rows])
      b = embed({"projection": projection}, "text", texts[rows])
      t = jax.random.beta(of_mix, c.mixing, c.mixing)
      again = Mean.of(*clip(a, b, temperature=c.temperature)).value
      between = Mean.of(*mixed_negative_contrastive(a, b, t, temperature=c.temperature)).value
      return Mean.of(*clip(a, b, temperature=own)).value + ordinary * again + mixed * between

    def step(carry: Any, key: Array) -> tuple[Any, None]:
      projection, state = carry
      updates, state = optimizer.update(jax.grad(loss)(projection, key), state)
      return (optax.apply_updates(projection, updates), state), None

    start = jax.tree.map(jnp.asarray, self.aligned["projection"])
    return jax.lax.scan(step, (start, optimizer.init(start)), jax.random.split(key, c.steps))[0][0]

  def start(self, rate: None, seed: int, split: str) -> dict[str, Any]:
    """The dual encoder as it is."""
    return self._scores(self.aligned["projection"], split)

  def tuned(self, arm: str, rate: Any, seed: int, split: str) -> dict[str, Any]:
    """Tuned by one arm."""
    chosen = {"rate": rate, "weight": 0.0} if arm == PLAIN else rate
    weights = (chosen["weight"] if arm == one else 0.0 for one in (CONTROL, METHOD))
    return self._scores(self._learn(jax.random.key(seed), *self.data("train"), chosen["rate"], *weights), split)

  def _scores(self, projection: Params, split: str) -> dict[str, Any]:
    return {name: np.asarray(x, np.float64) for name, x in self._measure(projection, *self.data(split)).items()}


def measure(
    projection: Params, pictures: Float[Array, "n width"], texts: Float[Array, "n other"]
) -> dict[str, Array]:
  """Retrieval both ways, and where the two modalities lie."""
  a, b = (embed({"projection": projection}, side, x) for side, x in (("vision", pictures), ("text", texts)))
  cosines, own = a @ b.T, jnp.eye(len(a), dtype=jnp.int32)
  ways = [evaluation.retrieval_metrics(scores, own, ks=(1, 10)) for scores in (cosines, cosines.T)]
  both = lambda name: (ways[0][name] + ways[1][name]) / 2
  return {
      "first": both("hit_rate@1"), "mrr": both("mrr@10"), "gap": evaluation.modality_gap(a, b),
      "relative": evaluation.alignment(b, a, kind="relative"),
      "uniformity": evaluation.uniformity(jnp.concatenate([a, b]))}


def arms(config: Config) -> dict[str, Arm]:
  """Before tuning, CLIP's loss, and what is added to it."""
  world = World(config)
  both = {"rate": config.rates, "weight": Grid(config.weights, low=LEAST)}
  return {START: Arm(world.start), PLAIN: Arm(partial(world.tuned, PLAIN), config.rates),
          **{arm: Arm(partial(world.tuned, arm), both) for arm in (CONTROL, METHOD)}}


STUDY = Study(
    slug="geodesic-mixup", arxiv="2203.03897", title="Geodesic Multi-Modal Mixup for Robust Fine-Tuning",
    question="vision and language",
    use_when="a dual encoder is tuned on pairs, and its pictures and texts lie in two places of the sphere",
    setting="a home-made dual encoder (EfficientNet-Lite0, MiniLM) learns emoji in a style that it has not seen from "
            "740 pictures and names; both projections train",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("first", "share of pictures and names that find their partner first, the mean of both ways"),
        Score("mrr", "mean reciprocal rank within the first ten"),
        Score("gap", "distance of the centres of pictures and of names", higher_is_better=False, shared_items=False),
        Score("relative", "squared distance to the own picture less that to the nearest other",
              higher_is_better=False),
        Score("uniformity", "log of the mean Gaussian of distances, of pictures and names together",
              higher_is_better=False, shared_items=False)),
    choose_by="mrr", baseline=PLAIN, method=METHOD, start=START, gain="first",
    premises=(
        Premise("CLIP's loss teaches the style", lambda s: s[PLAIN].first - s[START].first, at_least=0.03),
        Premise("it leaves a gap between pictures and names", lambda s: s[PLAIN].gap, at_least=0.1)),
    claims=(
        Claim("m2-Mix finds more partners first than CLIP's loss", higher("first"), smallest=0.005),
        Claim("more than ordinary negatives twice", higher("first", METHOD, CONTROL), smallest=0.005),
        Claim("m2-Mix leaves a smaller gap than CLIP's loss", lower("gap"), smallest=0.01),
        Claim("m2-Mix has the better relative alignment", lower("relative"), smallest=0.01)),
    plot=Bars("first"))
