"""PLeaS: do permutations and least squares merge two networks that were trained apart?

    jaxft run pleas            about two minutes on two cores
    jaxft run pleas --smoke    seconds

Two MLPs read digits (`tasks/digits_views.py`), from starts of their own. In the first setting both learn upright
images and are asked for upright ones; in the second one learns upright and the other transposed images, and the merged
network is asked for both. Networks of the size of one:

- the plain mean; Git Re-Basin, by weights and by activations;
- RegMean (least squares on the stacked features of both networks), as the units stand and after matching;
- PLeaS (matching, then least squares from merged features to merged features).

And PLeaS in other sizes, with a quarter, a half or all of the units kept apart, up to the ensemble in one network; and
PLeaS-free, whose features come from images of neither setting (turned, of another view). Features are of the networks'
training images, without their labels. Nothing is tuned but the ridge, on validation images with pairs of their own, the
same candidates for each arm that solves least squares. A seed draws both starts and all batches.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.digits_views import Params, accuracy, load_images, pretrain, seen
from jaxft.evaluation import paired_test
from jaxft.merging.matching.least_squares import GramState, least_squares_merge, merged_features
from jaxft.merging.matching.partial_merge import allowed, merge_flops, partial_merge
from jaxft.merging.matching.permutations import identity, mlp_spec
from jaxft.merging.matching.rebasin import Matching, match_activations, match_weights
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.result import Arm, Result


@dataclasses.dataclass(frozen=True)
class Config:
  widths: tuple[int, ...] = (64, 64)
  steps: int = 600
  batch_size: int = 32
  rate: float = 2e-3
  ratios: tuple[float, ...] = (0.25, 0.5, 1.0)
  ridges: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)
  generic: str = "turned"  # the view of PLeaS-free
  seeds: tuple[int, ...] = tuple(range(10))
  tuning_seeds: tuple[int, ...] = (100, 101, 102, 103)


SMOKE = Config(widths=(8, 8), steps=20, ratios=(0.5,), ridges=(1e-3,), seeds=(0, 1), tuning_seeds=(100,))

# setting -> the views that the two networks learn
SETTINGS = {"one domain": ("upright", "upright"), "two domains": ("upright", "transposed")}
FIRST, SECOND = SETTINGS
MEAN, WEIGHTS, BASELINE, REGMEAN, REGMEAN_MATCHED, METHOD, FREE = (
    "plain mean", "re-basin, by weights", "re-basin, by activations", "RegMean, as they stand", "RegMean, matched",
    "PLeaS", "PLeaS-free")
SOLVED = (REGMEAN, REGMEAN_MATCHED, METHOD, FREE)

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
    self.a, self.b, self.names = a, b, names(a)
    self.spec = mlp_spec(self.names)
    self.values = [layer_values(params, images) for params in (a, b)]
    units = [{name: jax.nn.relu(y) for name, (_, y) in zip(self.names[:-1], layers[:-1], strict=True)}
             for layers in self.values]
    plain = identity(self.spec, a)
    self.matchings = {
        "none": Matching(plain, {group: np.zeros(len(p)) for group, p in plain.items()}),
        "weights": match_weights(self.spec, a, b, key=key),
        "activations": match_activations([tuple(units)]),
    }

  def merge(self, matching: str, ratio: float = 0.0) -> tuple[Params, Any]:
    """The partial merge, with no least squares."""
    return partial_merge(self.spec, self.a, self.b, self.matchings[matching], ratio)

  def refit(self, matching: str, ratio: float, ridge: float, *, stacked: bool) -> Params:
    """The partial merge with each layer solved anew, on merged features or (RegMean) on both networks' own, stacked."""
    merged, blocks = self.merge(matching, ratio)
    out = {}
    for i, name in enumerate(self.names):
      rows, columns = (blocks.get((f"{name}/kernel", axis)) for axis in (0, 1))
      kernel = merged[name]["kernel"]
      (x_a, y_a), (x_b, y_b) = (layers[i] for layers in self.values)
      state = GramState.zero(*kernel.shape)
      if stacked:
        order = lambda block, x: x if block is None else x[:, block.entries("b")]
        state = state.add(x_a if rows is None else x_a[:, rows.entries("a")],
                          y_a if columns is None else y_a[:, columns.entries("a")])
        state = state.add(order(rows, x_b), order(columns, y_b))
      else:
        state = state.add(merged_features(rows, x_a, x_b), merged_features(columns, y_a, y_b))
      w, bias = least_squares_merge(state, mask=allowed(rows, columns, kernel.shape), ridge=ridge)
      out[name] = {"kernel": jnp.asarray(w, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    return out


def arms(config: Config, own: Pair, generic: Pair, ridges: dict[str, float]) -> dict[str, Params]:
  """All merged networks of a pair."""
  sized = {
      f"PLeaS, {ratio:.0%} of the units apart": own.refit("activations", ratio, ridges[METHOD], stacked=False)
      for ratio in config.ratios
  }
  return {
      MEAN: own.merge("none")[0], WEIGHTS: own.merge("weights")[0], BASELINE: own.merge("activations")[0],
      **{arm: solve(arm, own, generic, ridges[arm]) for arm in SOLVED}, **sized,
  }


def solve(arm: str, own: Pair, generic: Pair, ridge: float) -> Params:
  """A network of the size of one by one of the arms that solve least squares."""
  pair = generic if arm == FREE else own
  matching = "none" if arm == REGMEAN else "activations"
  return pair.refit(matching, 0.0, ridge, stacked=arm in (REGMEAN, REGMEAN_MATCHED))


def run(config: Config) -> Result:
  """Trains pairs, chooses the ridge of each arm on validation images, merges and asks for test images."""
  images = {split: load_images(split) for split in ("train", "validation", "test")}
  learn = jax.jit(partial(
      pretrain, widths=config.widths, steps=config.steps, batch_size=config.batch_size, rate=config.rate))
  ask = jax.jit(accuracy)

  def trained(setting: str, seed: int) -> tuple[Pair, Pair]:
    key = jax.random.key(seed)
    views = SETTINGS[setting]
    a, b = (learn(jax.random.fold_in(key, i), seen(images["train"], view)) for i, view in enumerate(views))
    own = seen(images["train"], *dict.fromkeys(views)).pixels
    pair = lambda pixels: Pair(a, b, pixels, jax.random.fold_in(key, 2))
    return pair(own), pair(seen(images["train"], config.generic).pixels)

  def score(setting: str, params: Params, split: str) -> float:
    views = dict.fromkeys(SETTINGS[setting])
    return float(np.mean([ask(params, seen(images[split], view)) for view in views]))

  def tune(setting: str) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    pairs = [trained(setting, seed) for seed in config.tuning_seeds]
    mean = lambda arm, ridge: float(np.mean(
        [score(setting, solve(arm, *pair, ridge), "validation") for pair in pairs]))
    table = {arm: {ridge: mean(arm, ridge) for ridge in config.ridges} for arm in SOLVED}
    chosen = {arm: max(by_ridge, key=by_ridge.get) for arm, by_ridge in table.items()}
    return chosen, {arm: {f"{ridge:g}": value for ridge, value in by_ridge.items()} for arm, by_ridge in table.items()}

  values: dict[str, dict[str, list[float]]] = {}
  alone: dict[str, list[list[float]]] = {}
  chosen, tuning = {}, {}
  for setting in SETTINGS:
    chosen[setting], tuning[setting] = tune(setting)
    values[setting], alone[setting] = {}, []
    for seed in config.seeds:
      own, generic = trained(setting, seed)
      for arm, params in arms(config, own, generic, chosen[setting]).items():
        values[setting].setdefault(arm, []).append(score(setting, params, "test"))
      alone[setting].append([score(setting, params, "test") for params in (own.a, own.b)])
  tests = {
      setting: {arm: paired_test(by_arm[METHOD], by_arm[arm])
                for arm in (MEAN, WEIGHTS, BASELINE, REGMEAN, REGMEAN_MATCHED, FREE)}
      for setting, by_arm in values.items()
  }
  supports, conclusion = conclude(values, tests)
  made = {
      (setting, arm): Arm(arm if setting == FIRST else f"{arm}, {setting}", tuple(v),
                          {"ridge": chosen[setting][arm]} if arm in SOLVED else {})
      for setting, by_arm in values.items() for arm, v in by_arm.items()
  }
  shapes = own.a
  return Result(
      slug="pleas", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric="accuracy of two networks of one domain merged to the size of one, test images", higher_is_better=True,
      baseline=made.pop((FIRST, BASELINE)), method=made.pop((FIRST, METHOD)), arms=tuple(made.values()),
      seeds=config.seeds, command="", supports_paper=supports, conclusion=conclusion,
      details={
          "alone": alone, "tests": tests, "validation": tuning,
          "mean": {s: {arm: float(np.mean(v)) for arm, v in by_arm.items()} for s, by_arm in values.items()},
          "size_over_one": {f"{r:g}": merge_flops(own.spec, shapes, r) for r in (0.0, *config.ratios)},
      })


def conclude(values: dict[str, Any], tests: dict[str, Any]) -> tuple[str, str]:
  """"true": PLeaS beats re-basin and both RegMeans (p < 0.05) in both settings; "partly": re-basin in one of them."""
  beats = lambda setting, arm: tests[setting][arm].sign > 0
  mean = lambda setting, arm: f"{np.mean(values[setting][arm]):.3f}"
  line = lambda setting: "; ".join(
      f"{arm} {mean(setting, arm)}" for arm in (MEAN, BASELINE, REGMEAN, REGMEAN_MATCHED, METHOD, FREE))
  sizes = [arm for arm in values[FIRST] if arm.startswith("PLeaS, ")]
  grown = "; ".join(f"{arm.removeprefix('PLeaS, ')} {mean(SECOND, arm)}" for arm in sizes)
  sentence = (
      f"One domain: {line(FIRST)}; PLeaS against re-basin {tests[FIRST][BASELINE]}. Two domains: {line(SECOND)}; "
      f"PLeaS against re-basin {tests[SECOND][BASELINE]}, against RegMean as the units stand "
      f"{tests[SECOND][REGMEAN]}. With more units kept apart, two domains: {grown}.")
  everything = all(beats(s, arm) for s in SETTINGS for arm in (BASELINE, REGMEAN, REGMEAN_MATCHED))
  some = any(beats(s, BASELINE) for s in SETTINGS)
  return ("true" if everything else "partly" if some else "false"), sentence


EXPERIMENT = Experiment(
    slug="pleas", title="PLeaS: Merging Models with Permutations and Least Squares", arxiv="2407.02447",
    areas=("merging",), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
