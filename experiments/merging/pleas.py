"""PLeaS: do permutations and least squares merge two networks that were trained apart?

    jaxft run pleas            four minutes on one core
    jaxft run pleas --smoke    seconds

Two MLPs read digits (`tasks/digits_views.py`), from starts of their own. In the first setting both learn upright images
and are asked for upright ones. In the second, of two domains, one learns upright images and a few transposed ones, the
other the reverse, and the merged network is asked for both. Of the size of one network:

- the plain mean; Git Re-Basin, by weights and by activations (the baseline);
- RegMean (least squares on the stacked features of both networks), as the units stand and after matching;
- PLeaS (matching, then least squares from merged features to merged features), and PLeaS-free, whose features come from
  images of neither setting, turned.

Then PLeaS with a quarter or a half of the units kept apart, each network alone (the mean of the two), and the ensemble.
Features are of the networks' training images, without their labels. The ridge is chosen, one for both settings; it ends
at 1e-10 of the mean squared feature, where it only keeps units that are never active from being divided by zero. A seed
draws the starts, batches and the few images; test images are the same for all.
"""

import dataclasses
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.digits_views import Params, load_images, logits, pretrain, seen
from jaxft.merging.matching.least_squares import GramState, least_squares_merge, merged_features
from jaxft.merging.matching.partial_merge import allowed, merge_flops, partial_merge
from jaxft.merging.matching.permutations import identity, mlp_spec
from jaxft.merging.matching.rebasin import Matching, match_activations, match_weights
from jaxft.studies.study import Arm, Bars, Claim, Grid, Premise, Score, Study, higher, not_lower


@dataclasses.dataclass(frozen=True)
class Config:
  widths: tuple[int, ...] = (64, 64)
  steps: int = 600
  batch_size: int = 32
  rate: float = 2e-3
  few: int = 100  # images of the other network's view
  ridges: tuple[float, ...] = (1e-10, 1e-6, 1e-4, 1e-2, 1.0)
  seeds: tuple[int, ...] = tuple(range(12))
  tuning_seeds: tuple[int, ...] = (100, 101, 102, 103)


SMOKE = Config(widths=(8, 8), steps=20, few=10, ridges=(1e-4,), seeds=(0, 1), tuning_seeds=(100,))

# setting -> the views that it asks for, of which the first network learns the first and the second the last
SETTINGS = {"one": ("upright",), "two": ("upright", "transposed")}
GENERIC = "turned"  # the view of PLeaS-free
REBASIN, METHOD, REGMEAN, FREE, ALONE, ENSEMBLE = (
    "re-basin, by activations", "PLeaS", "RegMean, matched", "PLeaS-free", "each alone", "ensemble")


class Way(NamedTuple):
  """A way to merge: the matching of units, the share kept apart, what is solved for, and on which images."""

  matching: str = "activations"
  ratio: float = 0.0
  solve: str | None = None  # "merged" or "stacked" features; None keeps the partial merge
  generic: bool = False


WAYS = {
    "plain mean": Way("none"), "re-basin, by weights": Way("weights"), REBASIN: Way(),
    "RegMean, as they stand": Way("none", solve="stacked"), REGMEAN: Way(solve="stacked"), METHOD: Way(solve="merged"),
    FREE: Way(solve="merged", generic=True), "PLeaS, a quarter apart": Way(ratio=0.25, solve="merged"),
    "PLeaS, half apart": Way(ratio=0.5, solve="merged"),
}

Layers = list[tuple[np.ndarray, np.ndarray]]


def names(params: Params) -> list[str]:
  """The layers from input to output."""
  return [f"hidden_{i}" for i in range(len(params) - 1)] + ["head"]


def layer_values(params: Params, pixels: jax.Array) -> Layers:
  """For each layer what it reads and what it gives before the rectifier."""
  x, out = pixels.reshape(-1, 64), []
  for name in names(params):
    y = x @ params[name]["kernel"] + params[name]["bias"]
    out.append((np.asarray(x, np.float64), np.asarray(y, np.float64)))
    x = jax.nn.relu(y)
  return out


class Pair:
  """Two networks, what they compute on some images, and the ways to merge them."""

  def __init__(self, a: Params, b: Params, images: jax.Array, key: jax.Array):
    self.a, self.b, self.names, self.key = a, b, names(a), key
    self.spec = mlp_spec(self.names)
    self.values = [layer_values(params, images) for params in (a, b)]
    self.matching, self.merge, self.sums = cache(self._matching), cache(self._merge), cache(self._sums)

  def _matching(self, by: str) -> Matching:
    """Which unit of b goes with which of a."""
    if by == "weights":
      return match_weights(self.spec, self.a, self.b, key=self.key)
    if by == "activations":
      units = [{name: jax.nn.relu(y) for name, (_, y) in zip(self.names[:-1], layers[:-1], strict=True)}
               for layers in self.values]
      return match_activations([tuple(units)])
    plain = identity(self.spec, self.a)
    return Matching(plain, {group: np.zeros(len(p)) for group, p in plain.items()})

  def _merge(self, matching: str, ratio: float) -> tuple[Params, Any]:
    """The partial merge, with no least squares."""
    return partial_merge(self.spec, self.a, self.b, self.matching(matching), ratio)

  def _sums(self, matching: str, ratio: float, solve: str) -> dict[str, tuple[GramState, np.ndarray]]:
    """Of each layer what is solved, on merged features or (RegMean) on both networks' own, stacked, and where."""
    merged, blocks = self.merge(matching, ratio)
    out = {}
    for i, name in enumerate(self.names):
      rows, columns = (blocks.get((f"{name}/kernel", axis)) for axis in (0, 1))
      shape = merged[name]["kernel"].shape
      (x_a, y_a), (x_b, y_b) = (layers[i] for layers in self.values)
      state = GramState.zero(*shape)
      if solve == "stacked":
        order = lambda block, x, which: x if block is None else x[:, block.entries(which)]
        state = state.add(order(rows, x_a, "a"), order(columns, y_a, "a"))
        state = state.add(order(rows, x_b, "b"), order(columns, y_b, "b"))
      else:
        state = state.add(merged_features(rows, x_a, x_b), merged_features(columns, y_a, y_b))
      out[name] = state, allowed(rows, columns, shape)
    return out

  def refit(self, way: Way, ridge: float) -> Params:
    """The partial merge with each layer solved anew."""
    out = {}
    for name, (state, mask) in self.sums(way.matching, way.ratio, way.solve).items():
      kernel, bias = least_squares_merge(state, mask=mask, ridge=ridge)
      out[name] = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    return out


class World:
  """The pairs of each seed, and how a merged network scores in both settings."""

  def __init__(self, config: Config):
    self.config, self.images = config, load_images("train")
    self._learn = jax.jit(partial(
        pretrain, widths=config.widths, steps=config.steps, batch_size=config.batch_size, rate=config.rate))
    self._logits, self.pairs = jax.jit(logits), cache(self._pairs)

  def _pairs(self, seed: int, setting: str) -> tuple[Pair, Pair]:
    """The networks with features of their training images, and of the generic ones."""
    key, views = jax.random.key(seed), SETTINGS[setting]
    rows = jax.random.permutation(jax.random.fold_in(key, 3), len(self.images.digits))[: self.config.few]
    few = jax.tree.map(lambda x: x[rows], self.images)

    def learned(i: int, view: str, other: str) -> Params:
      # Of one view, the few images are among those that it has: the same sizes, so that one program trains all.
      both = jax.tree.map(lambda *x: jnp.concatenate(x), seen(self.images, view), seen(few, other))
      return self._learn(jax.random.fold_in(key, i), both)

    a, b = learned(0, views[0], views[-1]), learned(1, views[-1], views[0])
    pair = lambda *views: Pair(a, b, seen(self.images, *views).pixels, jax.random.fold_in(key, 2))
    return pair(*views), pair(GENERIC)

  def right(self, networks: list[Params], split: str, setting: str) -> np.ndarray:
    """Of each image the share of the setting's views that the mean of the networks' logits tells right."""
    images = load_images(split)
    told = lambda view: np.argmax(sum(self._logits(p, seen(images, view).pixels) for p in networks), axis=-1)
    return np.mean([told(view) == np.asarray(images.digits) for view in SETTINGS[setting]], axis=0)

  def score(self, by_setting: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Both settings, and their mean."""
    return by_setting | {"both": np.mean([by_setting[setting] for setting in SETTINGS], axis=0)}

  def merged(self, way: Way, ridge: float | None, seed: int, split: str) -> dict[str, np.ndarray]:
    """Networks merged in one of the ways."""
    def network(setting: str) -> Params:
      pair = self.pairs(seed, setting)[way.generic]
      if ridge is None:
        return pair.merge(way.matching, way.ratio)[0]
      return pair.refit(way, ridge)

    return self.score({setting: self.right([network(setting)], split, setting) for setting in SETTINGS})

  def apart(self, together: bool, rate: None, seed: int, split: str) -> dict[str, np.ndarray]:
    """The two networks unmerged: their ensemble, or the mean of their scores."""
    def of(setting: str) -> np.ndarray:
      pair, _ = self.pairs(seed, setting)
      groups = [[pair.a, pair.b]] if together else [[pair.a], [pair.b]]
      return np.mean([self.right(networks, split, setting) for networks in groups], axis=0)

    return self.score({setting: of(setting) for setting in SETTINGS})

  def size(self, way: Way) -> dict[str, float]:
    """What an answer of the merged network costs."""
    pair, _ = self.pairs(self.config.tuning_seeds[0], "one")
    return {"operations of one network's": merge_flops(pair.spec, pair.a, way.ratio)}


def arms(config: Config) -> dict[str, Arm]:
  """The two networks apart, and merged in all ways."""
  world = World(config)
  ridges = Grid(config.ridges, low=1e-10)
  return {
      ALONE: Arm(partial(world.apart, False)), ENSEMBLE: Arm(partial(world.apart, True)),
      **{name: Arm(partial(world.merged, way), ridges if way.solve else (), partial(world.size, way))
         for name, way in WAYS.items()}}


STUDY = Study(
    slug="pleas", title="PLeaS: Merging Models with Permutations and Least Squares", arxiv="2407.02447",
    question="merge", use_when="two networks were trained from different starts, so that their mean is useless",
    setting="two MLPs of 64-64-64-10 that read 8x8 digits, of one domain (upright) or of two (upright, transposed)",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("two", "accuracy over two domains, one network from each"),
        Score("one", "accuracy on the one domain of both networks"),
        Score("both", "mean of the two settings, by which the ridge is chosen")),
    choose_by="both", baseline=REBASIN, method=METHOD,
    premises=(
        Premise("the plain mean fails: what it loses against one of two networks of one domain",
                lambda s: s[ALONE].one - s["plain mean"].one, at_least=0.1),
        Premise("two domains have something to merge: what the ensemble gains over one network",
                lambda s: s[ENSEMBLE].two - s[ALONE].two, at_least=0.02)),
    claims=(
        Claim("of two domains PLeaS is above re-basin", higher("two"), smallest=0.02),
        Claim("of one domain PLeaS is above re-basin", higher("one"), smallest=0.01),
        Claim("of two domains PLeaS is above RegMean after the same matching", higher("two", METHOD, REGMEAN),
              smallest=0.02),
        Claim("without any training images (PLeaS-free) it is not lower", not_lower("two", FREE, METHOD),
              smallest=0.02)),
    plot=Bars("two"))
