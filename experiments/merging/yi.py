"""Yi's depth up-scaling: are the layers that hardly change their input the ones to repeat?

    jaxft run yi            about three minutes on two cores
    jaxft run yi --smoke    seconds

SmolLM2-135M, 30 layers, gets 4 more by repetition and is not trained afterwards: a good start loses little. Which
layers are repeated is decided by the cosine of each layer's input and output on calibration sentences; the loss is
measured on other sentences, all of news editorials. Arms:

- single layers, each repeated at once after itself: the 4 of the highest cosine, 4 at random, the 4 of the lowest;
- one block of 4, repeated after itself, as Yi does: the block of the highest mean cosine, a block at random.

A seed draws the calibration and test sentences and the random choices, the same sentences for all arms. Nothing is
tuned. Beside it, another base of the rotary frequencies, also without training, which Yi raises before it trains long
contexts: what that costs in a short one.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.reasoning_answers import Rows, Scorer, load_editorials
from jaxft.analysis import layer_cosines
from jaxft.evaluation import paired_test
from jaxft.formats import Pretrained, load
from jaxft.merging import repeated_block, take_layers
from jaxft.models import decoder
from jaxft.models.rope import with_rope_base
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "smollm2-135m"
  repeated: int = 4
  calibration: int = 16  # sentences
  sentences: int = 24  # of the test split, for each seed
  length: int = 32
  bases: tuple[float, ...] = (1e6, 5e6)  # of the rotary frequencies
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


SMOKE = Config(model="smollm2-135m:tiny", repeated=1, calibration=1, sentences=1, length=8, bases=(), seeds=(0, 1))

RANDOM, METHOD, LOWEST, BLOCK, RANDOM_BLOCK = (
    "4 random layers", "4 layers of highest cosine", "4 layers of lowest cosine", "block of highest cosine",
    "a random block")


def choices(config: Config, cosines: np.ndarray, rng: np.random.Generator) -> dict[str, list[int]]:
  """The layers of each arm's model."""
  depth, k = len(cosines), config.repeated
  order = np.argsort(-cosines, kind="stable")
  repeat = lambda which: sorted([*range(depth), *map(int, which)])
  means = np.convolve(cosines, np.ones(k) / k, mode="valid")
  block = lambda start: repeated_block(depth, int(start), int(start) + k)
  return {
      RANDOM: repeat(rng.choice(depth, k, replace=False)), METHOD: repeat(order[:k]), LOWEST: repeat(order[-k:]),
      BLOCK: block(np.argmax(means)), RANDOM_BLOCK: block(rng.integers(0, depth - k + 1)),
  }


def measure_cosines(model: Pretrained, rows: Rows) -> np.ndarray:
  """Of each layer's input and output, over the tokens of the rows; the first state is the embedding."""

  @jax.jit
  def measure(params: Any, rows: Rows) -> jax.Array:
    recorded = decoder.hidden_states(
        params, model.config, rows.ids, mask=rows.mask, record=("embed", "layers/out")).recorded
    return layer_cosines(jnp.concatenate([recorded["embed"][None], recorded["layers/out"]]), rows.mask)

  return np.asarray(measure(model.params, rows), np.float64)


def run(config: Config) -> Result:
  """For each seed, measures the cosines, repeats layers by every choice and measures the loss."""
  ledger = Ledger("yi", config)
  model = load(config.model)
  deeper = dataclasses.replace(model, config=dataclasses.replace(
      model.config, num_layers=model.config.num_layers + config.repeated))
  pools = {split: load_editorials(model, split, limit=10_000, length=config.length) for split in ("validation", "test")}
  scorers = {"as it is": Scorer(model, batch_size=8), "deeper": Scorer(deeper, batch_size=8)}
  for base in config.bases:
    turned = dataclasses.replace(model, config=with_rope_base(model.config, base))
    scorers[f"{base:g}"] = Scorer(turned, batch_size=8)

  def one(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    draw = lambda split, n: pools[split][rng.choice(len(pools[split]), n, replace=False)]
    calibration, test = draw("validation", config.calibration), draw("test", config.sentences)
    cosines = measure_cosines(model, calibration)
    chosen = choices(config, cosines, rng)
    return {
        "cosines": cosines.tolist(), "layers": chosen,
        "nll": {arm: scorers["deeper"](take_layers(model.params, layers), test).nll for arm, layers in chosen.items()},
        "before": scorers["as it is"](model.params, test).nll,
        "rope": {f"{base:g}": scorers[f"{base:g}"](model.params, test).nll for base in config.bases},
    }

  runs = [ledger(f"seed {seed}", lambda: one(seed)) for seed in config.seeds]
  nll = {arm: np.array([r["nll"][arm] for r in runs]) for arm in (RANDOM, METHOD, LOWEST, BLOCK, RANDOM_BLOCK)}
  before = np.array([r["before"] for r in runs])
  tests = {
      "single": paired_test(nll[METHOD], nll[RANDOM]),
      "block": paired_test(nll[BLOCK], nll[RANDOM_BLOCK]),
      "highest_against_lowest": paired_test(nll[METHOD], nll[LOWEST]),
      "block_against_singles": paired_test(nll[BLOCK], nll[METHOD]),
  }
  supports, conclusion = conclude(nll, before, tests)
  arm = lambda name: Arm(name, tuple(nll[name].tolist()))
  result = Result(
      slug="yi", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric=f"nats per token of editorials with {config.repeated} layers repeated, no training, test",
      higher_is_better=False, baseline=arm(RANDOM), method=arm(METHOD),
      arms=(arm(LOWEST), arm(BLOCK), arm(RANDOM_BLOCK)), seeds=config.seeds, command="",
      supports_paper=supports, conclusion=conclusion,
      details={
          "before": before.tolist(), "cosines": np.mean([r["cosines"] for r in runs], axis=0).tolist(),
          "layers": [r["layers"] for r in runs], "tests": tests,
          "rope_base": {f"{b:g}": [r["rope"][f"{b:g}"] for r in runs] for b in config.bases},
          "rope_base_of_the_model": model.config.rope_theta,
      })
  ledger.clear()
  return result


def conclude(nll: dict[str, np.ndarray], before: np.ndarray, tests: dict[str, Any]) -> tuple[str, str]:
  """"true": the highest cosines beat random choices (p < 0.05), as single layers and as blocks; "partly": in one."""
  better = {name: t.sign < 0 for name, t in tests.items()}
  say = lambda t: f"{t.mean_difference:+.3f} nats (p = {t.p_value:.2g})"
  lost = {arm: float(np.mean(values - before)) for arm, values in nll.items()}
  sentence = (
      f"Without training the loss of {before.mean():.3f} nats rises by {lost[METHOD]:.3f} where the layers of the "
      f"highest cosine are repeated, by {lost[RANDOM]:.3f} at random and by {lost[LOWEST]:.3f} for the lowest: "
      f"{say(tests['single'])} against random. As blocks: {lost[BLOCK]:.3f} for the highest mean cosine, "
      f"{lost[RANDOM_BLOCK]:.3f} for a random one: {say(tests['block'])}.")
  both = better["single"] + better["block"]
  return {2: "true", 1: "partly", 0: "false"}[both], sentence


EXPERIMENT = Experiment(
    slug="yi", title="Yi: Open Foundation Models by 01.AI", arxiv="2403.04652", areas=("merging", "models", "analysis"),
    config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
