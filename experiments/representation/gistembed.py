"""GISTEmbed: does a frozen guide that removes false negatives from the batch make a better retriever?

    jaxft run gistembed            a quarter of an hour on one core
    jaxft run gistembed --smoke    seconds

A student learns to embed 8x8 images of digits without labels: a pair is one image shifted, scaled, under noise and with
pixels missing, twice. One candidate in ten is of the row's own digit, a false negative. The guide is a classifier from
1,000 labels of these images, trained on the same distortions; its embedding is its probabilities. It drops what it
finds closer than the positive. What is measured is retrieval among held-out images, where those of the query's digit
are relevant.

The paper presupposes a guide that is better than its student would become, and that most of what it drops are false
negatives. A guide from 300 labels, its hidden layer the embedding, lacked the second: an eighth of what it dropped had
the row's digit, little more than by chance. Controls: no guide, with the same four blocks of candidates; a guide that
judges other images of the batch, which drops as much and knows nothing; and the labels as the guide, which drop all
false negatives and nothing else.

A seed draws the labels, the guide, the student's init, the batches and the distortions. The temperature is the one that
was best without a guide; rates are chosen for each arm.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments.tasks.digits_views import Images, Params, few_shot, finetune, init, load_images, logits, loss
from jaxft.evaluation import retrieval_metrics
from jaxft.losses import Mean, contrastive_blocks, cosine_similarity, false_negative_mask, guided_info_nce
from jaxft.models.linear import linear
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, higher


@dataclasses.dataclass(frozen=True)
class Config:
  widths: tuple[int, int] = (64, 16)
  guide_widths: tuple[int, int] = (128, 64)
  guide_shots: int = 100
  guide_steps: int = 2000
  guide_rate: float = 3e-3
  steps: int = 400
  batch_size: int = 128
  temperature: float = 0.2
  rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2, 1e-1)
  seeds: tuple[int, ...] = tuple(range(16))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    widths=(8, 4), guide_widths=(8, 4), guide_shots=2, guide_steps=5, steps=3, batch_size=8, rates=(1e-3, 1e-2),
    seeds=(0, 1), tuning_seeds=(100,))

UNGUIDED, METHOD, OTHER, LABELS = (
    "InfoNCE, unguided", "GIST", "GIST, a guide of other images", "GIST, labels as the guide")
# Above a cosine by more than 2 lies nothing: no candidate is dropped.
MARGINS = {UNGUIDED: -2.0, METHOD: 0.0, OTHER: 0.0, LABELS: 0.0}


def distorted(key: Array, pixels: Float[Array, "n 8 8"]) -> Float[Array, "n 8 8"]:
  """Shifted by up to a pixel, brighter or darker, under noise, a tenth of the pixels missing."""
  moves, gains, noise, holes = jax.random.split(key, 4)
  by = jax.random.randint(moves, (len(pixels), 2), -1, 2)
  pixels = jax.vmap(lambda x, by: jnp.roll(x, by, axis=(0, 1)))(pixels, by)
  pixels = pixels * jax.random.uniform(gains, (len(pixels), 1, 1), minval=0.7, maxval=1.3)
  return (pixels + 0.1 * jax.random.normal(noise, pixels.shape)) * jax.random.bernoulli(holes, 0.9, pixels.shape)


def embed(params: Params, pixels: Float[Array, "n 8 8"]) -> Float[Array, "n dim"]:
  """The student's embedding: the last hidden layer, before the rectifier."""
  x = jax.nn.relu(linear(pixels.reshape(-1, 64), params["hidden_0"]))
  return linear(x, params["hidden_1"])


def believed(guide: Params, pixels: Float[Array, "n 8 8"]) -> Float[Array, "n 10"]:
  """The guide's embedding: the probabilities of the digits."""
  return jax.nn.softmax(logits(guide, pixels))


def guide_gradient(join: Any, trainable: Any, batch: Images, key: Array) -> Any:
  """Of the cross-entropy on distorted images."""
  batch = batch._replace(pixels=distorted(key, batch.pixels))
  return jax.grad(lambda t: jnp.mean(loss(join(t), batch)))(trainable)


def judged(arm: str, guide: Params, batch: Images, query: Array, positive: Array, key: Array) -> tuple[Array, Array]:
  """The embeddings by which an arm's guide judges a batch."""
  if arm == LABELS:
    digits = jax.nn.one_hot(batch.digits, 10)
    return digits, digits
  order = jax.random.permutation(key, len(query)) if arm == OTHER else jnp.arange(len(query))
  return believed(guide, query)[order], believed(guide, positive)[order]


def views(key: Array, batch: Images) -> tuple[Array, Array, Array]:
  """Both views of a batch, and a key for what comes after."""
  of_query, of_positive, rest = jax.random.split(key, 3)
  return distorted(of_query, batch.pixels), distorted(of_positive, batch.pixels), rest


def learn(
    arm: str, config: Config, key: Array, guide: Params, images: Images, rate: float | Float[Array, ""],
    temperature: float | Float[Array, ""],
) -> Params:
  """The student of one arm."""
  of_init, of_fit = jax.random.split(key)

  def gradient(join: Any, trainable: Any, batch: Images, key: Array) -> Any:
    query, positive, key = views(key, batch)
    of_guide = judged(arm, guide, batch, query, positive, key)

    def objective(trainable: Any) -> Array:
      student = join(trainable)
      # By labels those of the same digit are as close as the positive.
      return Mean.of(*guided_info_nce(
          embed(student, query), embed(student, positive), None, *of_guide, None, temperature=temperature,
          margin=MARGINS[arm], inclusive=arm == LABELS)).value

    return jax.grad(objective)(trainable)

  return finetune(of_fit, init(of_init, config.widths), images, steps=config.steps, rate=rate,
                  batch_size=config.batch_size, gradient=gradient)


def drops(arm: str, config: Config, key: Array, guide: Params, images: Images) -> Float[Array, "4"]:
  """Over some batches: how many candidates are dropped, how many of these have the row's digit; the same of kept."""

  def batch(key: Array) -> Array:
    of_rows, key = jax.random.split(key)
    rows = jax.random.randint(of_rows, (config.batch_size,), 0, len(images.digits))
    batch = jax.tree.map(lambda x: x[rows], images)
    query, positive, key = views(key, batch)
    similarity, index, own = contrastive_blocks(*judged(arm, guide, batch, query, positive, key))
    of_row = jnp.arange(len(rows))
    own = own.at[of_row, index].set(True)
    drop = false_negative_mask(
        similarity, similarity[of_row, index], margin=MARGINS[arm], inclusive=arm == LABELS, protect=own)
    same = jnp.tile(batch.digits[:, None] == batch.digits[None], (1, similarity.shape[1] // len(rows)))
    kept = ~drop & ~own
    return jnp.array([drop.sum(), (drop & same).sum(), kept.sum(), (kept & same).sum()])

  return jnp.sum(jax.lax.map(batch, jax.random.split(key, 8)), axis=0)


def retrieve(x: Float[Array, "n dim"], images: Images) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
  """Average precision, and whether the nearest is relevant: each image a query for the others of its digit."""
  n = len(images.digits)
  relevance = (images.digits[:, None] == images.digits[None]).astype(jnp.int32)
  metrics = retrieval_metrics(cosine_similarity(x, x), relevance, ks=(1, n), exclude=jnp.eye(n, dtype=bool))
  return metrics[f"map@{n}"], metrics["hit_rate@1"]


class World:
  """Images without labels, and for each seed a guide."""

  def __init__(self, config: Config):
    self.config, self.images = config, load_images("train")
    self.guide = cache(jax.jit(self._guide))
    self._learn, self._drops = (jax.jit(f, static_argnums=(0, 1)) for f in (learn, drops))
    self._retrieve = jax.jit(retrieve)

  def _guide(self, seed: int) -> Params:
    c = self.config
    of_shots, of_init, of_fit = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), 3)
    return finetune(of_fit, init(of_init, c.guide_widths), few_shot(of_shots, self.images, c.guide_shots),
                    steps=c.guide_steps, rate=c.guide_rate, gradient=guide_gradient)

  def guided(self, rate: None, seed: int, split: str) -> dict[str, Any]:
    """The guide itself."""
    return self._scores(METHOD, believed(self.guide(seed), load_images(split).pixels), seed, split)

  def student(self, arm: str, rate: float, seed: int, split: str) -> dict[str, Any]:
    """A student of one arm."""
    params = self._learn(
        arm, self.config, jax.random.key(seed), self.guide(seed), self.images, rate, self.config.temperature)
    return self._scores(arm, embed(params, load_images(split).pixels), seed, split)

  def _scores(self, arm: str, embedded: Array, seed: int, split: str) -> dict[str, Any]:
    precision, first = self._retrieve(embedded, load_images(split))
    counts = self._drops(arm, self.config, jax.random.fold_in(jax.random.key(seed), 2), self.guide(seed), self.images)
    dropped, dropped_same, kept, kept_same = map(float, counts)
    return {
        "map": precision, "first": first, "dropped": dropped / (dropped + kept),
        "sound": dropped_same / max(dropped, 1.0), "left": kept_same / kept}


def arms(config: Config) -> dict[str, Arm]:
  """The guide, and students."""
  world = World(config)
  students = {arm: Arm(partial(world.student, arm), config.rates) for arm in MARGINS}
  return {"the guide": Arm(world.guided), **students}


STUDY = Study(
    slug="gistembed", arxiv="2402.16829",
    title="GISTEmbed: Guided In-sample Selection of Training Negatives for Text Embedding Fine-tuning",
    question="embeddings",
    use_when="batches hold false negatives, and a better model than the student can tell them",
    setting="an MLP of 64-64-16 embeds distorted digits without labels; its guide is a classifier from 1,000 labels",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("map", "mean average precision of images of the query's digit"),
        Score("first", "share of queries whose nearest image has their digit"),
        Score("dropped", "share of the candidates that is dropped", higher_is_better=False),
        Score("sound", "share of the dropped that has the row's digit, 0 where nothing is dropped"),
        Score("left", "share of the kept that has the row's digit", higher_is_better=False)),
    choose_by="map", baseline=UNGUIDED, method=METHOD,
    premises=(
        Premise("the guide is better than the unguided student", lambda s: s["the guide"].map - s[UNGUIDED].map,
                at_least=0.05),
        Premise("most of what the guide drops has the row's digit", lambda s: s[METHOD].sound, at_least=0.5)),
    claims=(
        Claim("the guide's student retrieves better than the unguided one, in mAP", higher("map"), smallest=0.01),
        Claim("better than the student of a guide of other images", higher("map", METHOD, OTHER), smallest=0.01),
        Claim("labels as the guide retrieve better than the guide", higher("map", LABELS, METHOD), smallest=0.01)),
    plot=Bars("map"))
