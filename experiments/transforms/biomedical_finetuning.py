"""Fine-tuning on few examples: do frozen lower layers, layer-wise rates or a corrected Adam keep runs from failing?

    jaxft run biomedical-finetuning            ten minutes on one core
    jaxft run biomedical-finetuning --smoke    seconds

What the paper presupposes is that plain fine-tuning is unstable: of runs that differ in nothing but the seed some
learn nothing. all-MiniLM-L6-v2 is too well-behaved: of eight runs on 64 sentences none failed at its best rate. A
narrow BERT of twelve layers, whose norms come behind the sublayers as there, is not: it reads digits in three views
(`tasks/digit_encoder.py`) and learns from 32 labelled images, in eight passes, to tell odd digits from even ones.
(From 64 images in six passes none of ten runs failed at its best rate either.)

The baseline is BERT's own recipe: warm-up, clipping, Adam without bias correction; embeddings are frozen in all arms.
Each of the others changes one thing:

- the lower half of the layers is frozen;
- rates decay by 0.8 from layer to layer, from the head down;
- Adam's bias is corrected.

A seed draws the labelled images, the head and the batches; the pretrained encoder is one for all, as published ones
are.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int

from experiments.tasks.digit_encoder import Shape, base, fit, head, loss, pooled
from experiments.tasks.digits_views import Images, load_images, seen
from experiments.tasks.view_experts import rows
from jaxft.analysis import seed_stability
from jaxft.models.linear import linear
from jaxft.optimizers import layerwise_decay, scale_by_bert_adam, scale_updates
from jaxft.recipes.optimizers import adamw, warmed_up
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, higher, lower
from jaxft.transforms import ParamTransform, freeze_below
from jaxft.tree import cut_layers


@dataclasses.dataclass(frozen=True)
class Config:
  shape: Shape = Shape(layers=12, dim=32, rate=1e-3, steps=1600)
  view: str = "upright"
  examples: int = 32
  steps: int = 32
  batch_size: int = 8
  decay: float = 0.8
  rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
  seeds: tuple[int, ...] = tuple(range(40))
  tuning_seeds: tuple[int, ...] = tuple(range(100, 120))


SMOKE = Config(shape=Shape(layers=2, dim=32, steps=300), rates=(1e-3,), seeds=(0, 1), tuning_seeds=(100,))

BASELINE, METHOD, DECAYED, CORRECTED = "BERT's Adam", "frozen lower half", "layer-wise decay", "corrected Adam"


def bert_adam(rate: Any, steps: int) -> optax.GradientTransformation:
  """As `adamw`, without bias correction."""
  factor = warmed_up(steps)
  return optax.chain(
      optax.clip_by_global_norm(1.0), scale_by_bert_adam(), optax.scale_by_learning_rate(lambda t: rate * factor(t)))


class World:
  """The pretrained encoder, and its tunings to tell odd digits from even ones."""

  def __init__(self, config: Config):
    self.config, self.model = config, config.shape.config
    self.base = base(config.shape)
    self._pool = self._of_task(rows(load_images("train"), 1))
    self._held_out = cache(lambda split: self._of_task(load_images(split)))
    self._learn = jax.jit(self._tune, static_argnums=0)

  def _of_task(self, images: Images) -> Images:
    return Images(seen(images, self.config.view).pixels, images.digits % 2)

  def run(self, arm: str, rate: float, seed: int, split: str) -> dict[str, Any]:
    """Tunes and scores; a run has failed that is no better than chance, one-sided at 5%."""
    images = self._held_out(split)
    right = np.asarray(self._learn(
        arm, self.base, jax.random.key(seed), self._pool, self.batches(seed), rate, images))
    most = float(np.mean(images.digits))
    most = max(most, 1 - most)
    chance = most + 1.645 * (most * (1 - most) / len(right)) ** 0.5
    return {"right": right, "failed": seed_stability([right.mean()], chance=chance).failed}

  def batches(self, seed: int) -> Int[np.ndarray, "steps batch"]:
    """Rows of the images: those that the seed draws, in one order after another."""
    c, rng = self.config, np.random.default_rng(seed)
    drawn, size = rng.permutation(len(self._pool.digits))[: c.examples], c.steps * c.batch_size
    orders = [rng.permutation(drawn) for _ in range(-(-size // c.examples))]
    return np.concatenate(orders)[:size].reshape(c.steps, c.batch_size)

  def transform(self, arm: str) -> ParamTransform:
    """What trains: embeddings in no arm."""
    return freeze_below(self.config.shape.layers // 2 if arm == METHOD else 0)

  def optimizer(self, arm: str, rate: Any, trainable: Any) -> optax.GradientTransformation:
    """Each arm but the baseline has one change."""
    steps = self.config.steps
    if arm == CORRECTED:
      return adamw(rate, steps)
    if arm == DECAYED:
      return optax.chain(bert_adam(rate, steps), scale_updates(layerwise_decay(self.config.decay, trainable)))
    return bert_adam(rate, steps)

  def _tune(
      self, arm: str, params: Any, key: Array, images: Images, batches: Array, rate: Array, held_out: Images
  ) -> Bool[Array, " n"]:
    """Which held-out images are told right."""
    start = {"embed": params["embed"], "layers": params["layers"], "head": head(key, self.config.shape.dim)}
    transform, logits = self.transform(arm), lambda params, pixels: linear(
        pooled(params, self.model, pixels), params["head"])
    frozen, trainable = transform.split(key, cut_layers(start, [self.config.shape.layers // 2]))
    wrong = lambda trainable, batch: jnp.mean(
        loss(logits(transform.join(frozen, trainable), batch.pixels), batch.digits))
    tuned = transform.join(frozen, fit(wrong, trainable, self.optimizer(arm, rate, trainable), images, batches))
    return jnp.argmax(logits(tuned, held_out.pixels), axis=-1) == held_out.digits


def arms(config: Config) -> dict[str, Arm]:
  """BERT's recipe, and three that change one thing of it."""
  world = World(config)
  return {arm: Arm(partial(world.run, arm), config.rates) for arm in (BASELINE, METHOD, DECAYED, CORRECTED)}


STUDY = Study(
    slug="biomedical-finetuning", title="Fine-Tuning Large Neural Language Models for Biomedical NLP",
    arxiv="2112.07869", question="few labels",
    use_when="an encoder is tuned on some dozens of examples, and some runs learn nothing",
    setting="a BERT of 12 layers that reads digits in three views learns their parity from 32 images",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("right", "accuracy of parity"),
        Score("failed", "share of runs no better than chance", higher_is_better=False, shared_items=False)),
    choose_by="right", baseline=BASELINE, method=METHOD,
    premises=(
        Premise("runs fail at the best rate of BERT's Adam, a share of", lambda s: s[BASELINE].failed, at_least=0.1),),
    claims=(
        Claim("frozen lower layers tell more right", higher("right"), smallest=0.02),
        Claim("fewer of their runs fail, a share of", lower("failed"), smallest=0.05),
        Claim("layer-wise decay tells more right", higher("right", DECAYED), smallest=0.02),
        Claim("a corrected Adam tells more right", higher("right", CORRECTED), smallest=0.02)),
    plot=Bars("right"))
