"""Model soups: is the average of a sweep's checkpoints better than the best of them, on its domain and beyond?

    jaxft run model-soups            two minutes on one core
    jaxft run model-soups --smoke    seconds

An MLP pretrained on five views of digits without noise (`tasks/digits_views.py`) is fine-tuned on 100 upright images
under noise: eight runs for each seed, as a random search makes them, each with a learning rate drawn log-uniformly over
a decade, a strength of the noise that augments its images, and an order of the data of its own. Another 200 noisy
images of the training split rank the runs and decide what enters the greedy soups. Scores are of test images under
noise, and under a shift: less contrast and more noise.

Averages presuppose runs that all have converged, and to different weights. On tuning seeds, rates from 2e-4 on left
runs that had not, so that their ensemble was .05 below the best; with rates from 8e-4 on and the same images for all
runs it was level.

    best on held-out     the run that a sweep would keep: the baseline
    uniform, greedy      averages of weights; "random order" is greedy without the ranking
    ensemble             the mean of the eight runs' logits: eight times the compute of an answer
    one long run         as many steps and noisy copies as all eight, its rate chosen on validation images
    one run              the first of the eight, whatever its rate

A seed draws the base model, the images and their noise, rates and orders. Noisy test images are the same for all.
"""

import dataclasses
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.tasks.digits_views import Images, Params, accuracy, finetune, load_images, logits, pretrain, seen
from jaxft.merging import average, greedy_soup
from jaxft.studies.study import Arm, Claim, Front, Premise, Score, Study, higher, not_lower

VIEWS = ("mirrored", "flipped", "turned", "turned twice", "turned back")


@dataclasses.dataclass(frozen=True)
class Config:
  widths: tuple[int, ...] = (128, 128)
  base_steps: int = 600
  images: int = 100
  copies: int = 4  # of each image, with noise of its own
  held_out: int = 200
  runs: int = 8
  steps: int = 300
  rates: tuple[float, float] = (1e-3, 1e-2)  # the ends of the search
  augmentation: tuple[float, float] = (0.2, 0.5)  # noise of the training images, likewise
  long_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
  noise: float = 0.35  # standard deviation, of pixels in [0, 1]
  shifted_noise: float = 0.45
  shifted_contrast: float = 0.7
  seeds: tuple[int, ...] = tuple(range(20))
  tuning_seeds: tuple[int, ...] = (100, 101, 102, 103)


SMOKE = Config(
    widths=(16, 16), base_steps=20, images=20, copies=2, held_out=20, runs=3, steps=10, long_rates=(1e-3,),
    seeds=(0, 1), tuning_seeds=(100,))

BEST, GREEDY, ENSEMBLE, LONG, ONE = "best on held-out", "greedy", "ensemble", "one long run", "one run"


def noisy(key: Array, images: Images, noise: float, contrast: float = 1.0) -> Images:
  """Images with their contrast changed about the middle grey, and then noise on every pixel."""
  pixels = 0.5 + contrast * (images.pixels - 0.5)
  return images._replace(pixels=pixels + noise * jax.random.normal(key, pixels.shape))


class Sweep(NamedTuple):
  """The base model of a seed, the images, and the runs, stacked."""

  base: Params
  images: Images
  held_out: Images
  runs: list[Params]


class World:
  """The sweep of each seed, and what is made of its runs."""

  def __init__(self, config: Config):
    self.config, self.train = config, load_images("train")
    c = config
    self._pretrain = jax.jit(partial(pretrain, widths=c.widths, steps=c.base_steps))
    tune = lambda key, base, images, rate: finetune(key, base, images, steps=c.steps, rate=rate)
    self._tune = jax.jit(jax.vmap(tune, in_axes=(0, None, 0, 0)))
    self._augmented = jax.jit(self._augment, static_argnums=3)
    self._long = jax.jit(partial(finetune, steps=c.runs * c.steps))
    self._accuracy, self._logits = jax.jit(accuracy), jax.jit(logits)
    self.sweep, self.taken, self.held = cache(self._sweep), cache(self._taken), cache(self._held)

  def _augment(self, key: Array, images: Images, noise: Float[Array, ""], copies: int) -> Images:
    """Each image several times, with noise of its own."""
    return noisy(key, jax.tree.map(lambda x: jnp.concatenate([x] * copies), images), noise)

  def _sweep(self, seed: int) -> Sweep:
    """A random search over learning rates, augmentation and orders."""
    c, keys, rng = self.config, jax.random.split(jax.random.key(seed), 5), np.random.default_rng(seed)
    base = self._pretrain(keys[0], seen(self.train, *VIEWS))
    rows = jax.random.permutation(keys[1], len(self.train.digits))[: c.images + c.held_out]
    images, held_out = (
        jax.tree.map(lambda x: x[part], self.train) for part in (rows[: c.images], rows[c.images :]))
    rates = np.exp(rng.uniform(*np.log(c.rates), c.runs)).astype(np.float32)
    noises = rng.uniform(*c.augmentation, c.runs).astype(np.float32)
    each = zip(jax.random.split(keys[2], c.runs), noises, strict=True)
    data = [self._augmented(key, images, noise, c.copies) for key, noise in each]
    data = jax.tree.map(lambda *x: jnp.stack(x), *data)
    runs = jax.device_get(self._tune(jax.random.split(keys[3], c.runs), base, data, rates))
    runs = [jax.tree.map(lambda x: x[i], runs) for i in range(c.runs)]
    return Sweep(base, images, noisy(keys[4], held_out, c.noise), runs)

  def _held(self, split: str) -> tuple[Images, Images]:
    """Images of a split with noise, and under the shift: the same for all seeds."""
    c, (own, beyond) = self.config, jax.random.split(jax.random.key(1_000_000))
    images = load_images(split)
    return noisy(own, images, c.noise), noisy(beyond, images, c.shifted_noise, c.shifted_contrast)

  def _taken(self, seed: int) -> dict[str, Any]:
    """The networks of each arm, the mean of whose logits answers."""
    sweep = self.sweep(seed)
    score = lambda params: float(self._accuracy(params, sweep.held_out))
    best = int(np.argmax([score(run) for run in sweep.runs]))
    at_random = np.random.default_rng(seed).permutation(self.config.runs).tolist()
    return {
        "start": [sweep.base], ONE: sweep.runs[:1], BEST: [sweep.runs[best]], "uniform": [average(sweep.runs)],
        GREEDY: [greedy_soup(sweep.runs, score)[0]],
        "greedy, random order": [greedy_soup(sweep.runs, score, order=at_random)[0]], ENSEMBLE: sweep.runs}

  def score(self, networks: list[Params], split: str) -> dict[str, Float[np.ndarray, " images"]]:
    def right(images: Images) -> np.ndarray:
      told = np.argmax(sum(self._logits(params, images.pixels) for params in networks), axis=-1)
      return told == np.asarray(images.digits)

    own, beyond = self.held(split)
    return {"own": right(own), "shift": right(beyond)}

  def run(self, arm: str, rate: None, seed: int, split: str) -> dict[str, np.ndarray]:
    """What is made of the sweep."""
    return self.score(self.taken(seed)[arm], split)

  def long(self, rate: float, seed: int, split: str) -> dict[str, np.ndarray]:
    """One run with the steps of all, and as many noisy copies."""
    c, sweep, (of_noise, of_order) = self.config, self.sweep(seed), jax.random.split(jax.random.key(seed))
    images = self._augmented(of_noise, sweep.images, c.noise, c.runs * c.copies)
    return self.score([self._long(of_order, sweep.base, images, rate=rate)], split)


def arms(config: Config) -> dict[str, Arm]:
  """What is made of one sweep, and the long run; the cost is that of an answer."""
  world = World(config)
  names = ("start", ONE, BEST, "uniform", GREEDY, "greedy, random order", ENSEMBLE)
  cost = lambda arm: {"networks to ask": float(config.runs if arm == ENSEMBLE else 1)}
  return {
      **{name: Arm(partial(world.run, name), cost=partial(cost, name)) for name in names},
      LONG: Arm(world.long, config.long_rates, partial(cost, LONG))}


STUDY = Study(
    slug="model-soups",
    title="Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference "
          "time",
    arxiv="2203.05482", question="merge", use_when="a sweep over hyper-parameters left runs of one start",
    setting="an MLP pretrained on views of digits learns 100 upright ones under noise, eight runs of a random search",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("own", "accuracy under the noise that it was tuned for"),
        Score("shift", "accuracy under more noise and less contrast")),
    choose_by="own", baseline=BEST, method=GREEDY, start="start", best=LONG,
    premises=(
        Premise("fine-tuning gains", lambda s: s[BEST].own - s["start"].own, at_least=0.1),
        Premise("the runs differ: what their ensemble gains over the best", lambda s: s[ENSEMBLE].own - s[BEST].own,
                at_least=0.01)),
    claims=(
        Claim("the greedy soup is above the best run", higher("own"), smallest=0.005),
        Claim("so it is under shift", higher("shift"), smallest=0.005),
        Claim("it is above one run of as much compute", higher("own", GREEDY, LONG), smallest=0.005),
        Claim("the uniform soup is not below the ensemble", not_lower("own", "uniform", ENSEMBLE), smallest=0.01)),
    plot=Front("own", "shift"))
