"""HFT: does training a random half of the matrices, another half for each task, forget less than training them all?

    jaxft run hft            four to six minutes on two cores
    jaxft run hft --smoke    seconds

Five tasks in turn, each to tell two digits apart, learned by a transformer of four blocks on 8x8 images, of Llama's
parts so that HFT has its groups: of four matrices of attention, three of the gated MLP and two norms a half trains.

The paper presupposes a pretrained model. Here it is one that reads all ten digits turned by a quarter, from one half of
the training images; the tasks show the other half upright, so that no image is seen twice and the features transfer in
part. What is left of the reading of turned digits after all tasks is the control for knowledge of the base. A task is
told with its input, as TRACE's prompts tell it: logits of the other digits are masked, so that an arm forgets in the
weights that tasks share and not by a bias of the head.

A seed draws the base model, the pairs of digits, their order and the batches, the same for all arms. Every arm takes
its learning rate from the same grid, by OP on validation images, with tuning seeds of their own; the results are on
test images. As the paper gives all arms one recipe, they are also run at the rate that full tuning chose. Controls:
other fractions, the same half in every stage, and Half-Reset, which trains everything and after the last task puts a
random half of the matrices back to the base model.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from experiments.tasks.digits_views import Images, load_images
from jaxft.choices import chosen_fraction, random_module_mask
from jaxft.evaluation import PairedTest, backward_transfer, overall_performance, paired_test
from jaxft.merging import reset
from jaxft.models.attention import attend
from jaxft.models.linear import linear
from jaxft.models.norms import rms_norm
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.result import Arm, Result

STAGES = 5


@dataclasses.dataclass(frozen=True)
class Config:
  dim: int = 32
  num_layers: int = 4
  num_heads: int = 4
  mlp_dim: int = 64
  base_steps: int = 800
  base_rate: float = 3e-3
  steps: int = 50
  batch_size: int = 16
  learning_rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3)
  seeds: tuple[int, ...] = tuple(range(16))
  tuning_seeds: tuple[int, ...] = (100, 101, 102, 103, 104, 105)


SMOKE = Config(
    dim=8, num_layers=2, num_heads=2, mlp_dim=8, base_steps=2, steps=2, batch_size=4, learning_rates=(1e-3, 3e-3),
    seeds=(0, 1), tuning_seeds=(100,))

# What of the blocks trains: options of `random_module_mask`, and whether each stage draws anew.
ARMS = {
    "full": ({"fraction": 1.0}, True),
    "HFT, category-level": ({}, True),
    "layer-level": ({"level": "layer"}, True),
    "model-level": ({"level": "model"}, True),
    "category-level, the same half in all stages": ({}, False),
    "category-level, a quarter": ({"fraction": 0.25}, True),
    "category-level, three quarters": ({"fraction": 0.75}, True),
}
BASELINE, METHOD, *OTHERS = ARMS
RESET = "Half-Reset of full"


class Draw(NamedTuple):
  """What a seed draws, the same for every arm: the digits of each task, and the rows of each batch."""

  pairs: Int[np.ndarray, "stages 2"]
  base_rows: Int[np.ndarray, "base_steps batch"]
  rows: Int[np.ndarray, "stages steps batch"]


class Scores(NamedTuple):
  """Of one run on one split, after all tasks; higher is better."""

  op: float  # mean accuracy over the tasks
  bwt: float  # mean of that less the accuracy just after each task's own stage
  base: float  # accuracy on turned digits, all ten


def turned(images: Images) -> Images:
  """The base model's images: turned by a quarter."""
  return images._replace(pixels=jnp.rot90(images.pixels, axes=(1, 2)))


def draw(config: Config, images: Images, seed: int) -> Draw:
  """Even rows of the training images are the base model's, odd ones the tasks'."""
  rng, digits = np.random.default_rng(seed), np.asarray(images.digits)
  pairs = rng.permutation(2 * STAGES).reshape(STAGES, 2)
  odd = np.arange(1, len(digits), 2)
  of_task = [odd[np.isin(digits[odd], pair)] for pair in pairs]
  rows = np.stack([rng.choice(candidates, (config.steps, config.batch_size)) for candidates in of_task])
  base = 2 * rng.integers(0, (len(digits) + 1) // 2, (config.base_steps, config.batch_size))
  return Draw(pairs.astype(np.int32), base.astype(np.int32), rows.astype(np.int32))


def init(key: Array, config: Config) -> dict[str, Any]:
  """Random params, layers stacked; matrices normal with the variance 1 / inputs."""
  c, keys = config, iter(jax.random.split(key, 10))
  dense = lambda *shape: {"kernel": jax.random.normal(next(keys), shape) * shape[-2] ** -0.5}
  norm = lambda *lead: {"scale": jnp.ones((*lead, c.dim))}
  return {
      "embed": {"patches": dense(8, c.dim), "positions": {"embedding": 0.1 * dense(8, c.dim)["kernel"]}},
      "layers": {
          "attention_norm": norm(c.num_layers),
          "attention": {name: dense(c.num_layers, c.dim, c.dim) for name in ("query", "key", "value", "out")},
          "mlp_norm": norm(c.num_layers),
          "mlp": {
              "gate": dense(c.num_layers, c.dim, c.mlp_dim), "up": dense(c.num_layers, c.dim, c.mlp_dim),
              "down": dense(c.num_layers, c.mlp_dim, c.dim),
          },
      },
      "norm": norm(),
      "head": dense(c.dim, 2 * STAGES),
  }


def logits(params: dict[str, Any], config: Config, pixels: Float[Array, "batch 8 8"]) -> Float[Array, "batch 10"]:
  """A transformer with norms before the sublayers, over the eight patches of 2x4 pixels, pooled by the mean."""
  x = pixels.reshape(-1, 4, 2, 2, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 8, 8)
  x = linear(x, params["embed"]["patches"]) + params["embed"]["positions"]["embedding"]

  def layer(x: Array, params: dict[str, Any]) -> tuple[Array, None]:
    y, p = rms_norm(x, params["attention_norm"], eps=1e-6), params["attention"]
    heads = lambda name: linear(y, p[name]).reshape(*y.shape[:2], config.num_heads, -1)
    x = x + linear(attend(heads("query"), heads("key"), heads("value")).reshape(x.shape), p["out"])
    y, p = rms_norm(x, params["mlp_norm"], eps=1e-6), params["mlp"]
    return x + linear(jax.nn.silu(linear(y, p["gate"])) * linear(y, p["up"]), p["down"]), None

  x, _ = jax.lax.scan(layer, x, params["layers"], unroll=True)  # small layers: a loop costs a fifth of the time
  return linear(jnp.mean(rms_norm(x, params["norm"], eps=1e-6), axis=1), params["head"])


def loss(
    params: dict[str, Any], config: Config, images: Images, allowed: Bool[Array, "10"]
) -> Float[Array, " batch"]:
  """Cross-entropy among the digits that the task allows."""
  z = jnp.where(allowed, logits(params, config, images.pixels), -1e9)
  return optax.softmax_cross_entropy_with_integer_labels(z, images.digits)


def train(
    config: Config, params: Any, gates: Any, images: Images, allowed: Bool[Array, "10"],
    rows: Int[Array, "steps batch"], rate: Float[Array, ""],
) -> Any:
  """One stage: Adam from a fresh state, the learning rate decaying linearly to zero.

  What trains is here a 0/1 factor on the gradients, so that one compiled program serves all draws of all arms; `train`
  of the choice, which splits before the gradient, would compile one for each, and gives the same params (tested). Adam
  without decay leaves an entry exactly as it was whose gradients were all zero.
  """
  optimizer = optax.adam(optax.linear_schedule(rate, 0.0, len(rows)))

  def step(carry: Any, row: Int[Array, " batch"]) -> tuple[Any, None]:
    params, state = carry
    batch = jax.tree.map(lambda x: x[row], images)
    grads = jax.grad(lambda params: jnp.mean(loss(params, config, batch, allowed)))(params)
    updates, state = optimizer.update(jax.tree.map(jnp.multiply, grads, gates), state)
    return (optax.apply_updates(params, updates), state), None

  return jax.lax.scan(step, (params, optimizer.init(params)), rows)[0][0]


def pretrain(config: Config, images: Images, seed: Int[Array, ""], rows: Int[Array, "steps batch"]) -> Any:
  """The base model of a seed: all ten digits, turned."""
  params = init(jax.random.key(seed), config)
  everything = jnp.ones(2 * STAGES, bool)
  return train(config, params, jax.tree.map(jnp.ones_like, params), turned(images), everything, rows, config.base_rate)


def evaluate(config: Config, params: Any, images: Images, pairs: Int[Array, "stages 2"]) -> Float[Array, " stages"]:
  """The accuracy on each task, among its own two digits."""
  z = logits(params, config, images.pixels)

  def accuracy(pair: Int[Array, "2"]) -> Float[Array, ""]:
    asked = (images.digits[:, None] == pair).any(-1)
    right = pair[jnp.argmax(z[:, pair], axis=-1)] == images.digits
    return jnp.sum(asked & right) / jnp.sum(asked)

  return jax.vmap(accuracy)(pairs)


def evaluate_base(config: Config, params: Any, images: Images) -> Float[Array, ""]:
  """The accuracy on turned digits, among all ten."""
  return jnp.mean(jnp.argmax(logits(params, config, turned(images).pixels), axis=-1) == images.digits)


def learn(
    config: Config, images: Images, held_out: Images, base: Any, gates: Any, rate: Float[Array, ""],
    pairs: Int[Array, "stages 2"], rows: Int[Array, "stages steps batch"],
) -> tuple[Any, Float[Array, "stages stages"], Float[Array, ""]]:
  """All stages in turn: the final params, after each stage the accuracy on every task, and at last on turned digits."""

  def stage(params: Any, inputs: Any) -> tuple[Any, Any]:
    gates, pair, rows = inputs
    allowed = jnp.zeros(2 * STAGES, bool).at[pair].set(True)
    params = train(config, params, gates, images, allowed, rows, rate)
    return params, evaluate(config, params, held_out, pairs)

  final, tasks = jax.lax.scan(stage, base, (gates, pairs, rows))
  return final, tasks, evaluate_base(config, final, held_out)


def choose(arm: str, seed: int, params: Any) -> list[Any]:
  """What trains in each stage: a tree like the params of booleans, or of vectors over the layers."""
  options, anew = ARMS[arm]
  key = jax.random.key(seed)
  return [random_module_mask(jax.random.fold_in(key, t if anew else 0), params, **options) for t in range(STAGES)]


def as_gates(choices: list[Any], params: Any) -> Any:
  """Choices as factors for the gradients, stages stacked."""

  def gate(leaf: Array, *flags: Any) -> np.ndarray:
    # One number for each entry of the first axis, whatever was drawn, so that all draws have the same shapes.
    wide = [np.broadcast_to(on, leaf.shape[:1]).astype(np.float32) for on in flags]
    return np.stack(wide).reshape(len(flags), -1, *[1] * (leaf.ndim - 1))

  return jax.tree.map(gate, params, *choices)


def run(config: Config) -> Result:
  """Pretrains a base model for each seed, tunes every arm on validation images and runs it on test images."""
  images = {split: load_images(split) for split in ("train", "validation", "test")}
  compiled = {f: jax.jit(partial(f, config)) for f in (pretrain, learn, evaluate, evaluate_base)}
  draws = {seed: draw(config, images["train"], seed) for seed in (*config.tuning_seeds, *config.seeds)}
  bases = {seed: compiled[pretrain](images["train"], seed, d.base_rows) for seed, d in draws.items()}

  def sequence(arm: str, rate: float, seed: int, split: str) -> tuple[Scores, Any, np.ndarray]:
    gates, d = as_gates(choose(arm, seed, bases[seed]), bases[seed]), draws[seed]
    final, tasks, base = compiled[learn](images["train"], images[split], bases[seed], gates, rate, d.pairs, d.rows)
    tasks = np.asarray(tasks, np.float64)
    return Scores(overall_performance(tasks)[-1], backward_transfer(tasks)[-1], float(base)), final, np.diag(tasks)

  def held(params: Any, seed: int) -> tuple[np.ndarray, float]:
    tasks = compiled[evaluate](params, images["test"], draws[seed].pairs)
    return np.asarray(tasks, np.float64), float(compiled[evaluate_base](params, images["test"]))

  def half_reset(seed: int, final: Any, own: np.ndarray) -> Scores:
    keep = random_module_mask(jax.random.fold_in(jax.random.key(seed), STAGES), final)
    tasks, base = held(reset(bases[seed], final, keep), seed)
    return Scores(float(tasks.mean()), float((tasks - own).mean()), base)

  tuning, rates, scores = {}, {}, {}
  for arm in ARMS:
    runs = {rate: [sequence(arm, rate, seed, "validation")[0] for seed in config.tuning_seeds]
            for rate in config.learning_rates}
    tuning[arm] = {f"{rate:g}": mean_of(at_rate) for rate, at_rate in runs.items()}
    rates[arm] = max(runs, key=lambda rate: np.mean([s.op for s in runs[rate]]))
    full = [sequence(arm, rates[arm], seed, "test") for seed in config.seeds]
    scores[arm] = [s for s, _, _ in full]
    if arm == BASELINE:
      scores[RESET] = [
          half_reset(seed, final, own) for seed, (_, final, own) in zip(config.seeds, full, strict=True)]
      rates[RESET] = rates[arm]
  shared = {  # the paper's protocol: one recipe for all
      arm: scores[arm] if rates[arm] == rates[BASELINE]
      else [sequence(arm, rates[BASELINE], seed, "test")[0] for seed in config.seeds] for arm in ARMS
  }
  before = [held(bases[seed], seed) for seed in config.seeds]

  params = bases[config.seeds[0]]
  fraction = {arm: float(np.mean([chosen_fraction(params, c) for s in config.seeds for c in choose(arm, s, params)]))
              for arm in ARMS}
  arms = {arm: Arm(arm, tuple(s.op for s in runs), {"learning_rate": rates[arm]}) for arm, runs in scores.items()}
  supports, conclusion = conclude(scores, shared, rates)
  return Result(
      slug="hft", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric="OP: accuracy over five tasks after the last, test images", higher_is_better=True,
      baseline=arms[BASELINE], method=arms[METHOD], arms=tuple(arms[arm] for arm in (*OTHERS, RESET)),
      seeds=config.seeds, command="", supports_paper=supports, conclusion=conclusion,
      details={
          "before": {"tasks": float(np.mean([t for t, _ in before])), "base": float(np.mean([b for _, b in before]))},
          "mean": {arm: mean_of(runs) for arm, runs in scores.items()},
          "mean_at_the_rate_of_full": {arm: mean_of(runs) for arm, runs in shared.items()},
          "against_full": against_full(scores), "against_full_at_its_rate": against_full(shared),
          "against_the_same_half": compare(scores[METHOD], scores[OTHERS[2]]),
          "bwt": {arm: [s.bwt for s in runs] for arm, runs in scores.items()},
          "base": {arm: [s.base for s in runs] for arm, runs in scores.items()},
          "trained_fraction_of_all_params": fraction, "validation": tuning,
      })


def mean_of(runs: list[Scores]) -> dict[str, float]:
  """Each score's mean."""
  return dict(zip(Scores._fields, np.mean(runs, axis=0).tolist(), strict=True))


def compare(runs: list[Scores], others: list[Scores]) -> dict[str, PairedTest]:
  """A paired test of each score."""
  return {name: paired_test(*both) for name, *both in zip(
      Scores._fields, zip(*runs, strict=True), zip(*others, strict=True), strict=True)}


def against_full(scores: dict[str, list[Scores]]) -> dict[str, dict[str, PairedTest]]:
  """Paired tests of each arm against full tuning."""
  return {arm: compare(runs, scores[BASELINE]) for arm, runs in scores.items() if arm != BASELINE}


def conclude(
    tuned: dict[str, list[Scores]], shared: dict[str, list[Scores]], rates: dict[str, float]
) -> tuple[str, str]:
  """Whether the paper is supported, by a rule, and the sentence that says so.

  "true": at rates tuned for each arm OP and BWT are both higher than full tuning's (p < 0.05), and OP is the highest of
  the three granularities. "partly": at tuned rates or at full tuning's rate one of the two is higher (p < 0.05) and the
  other is not lower (p < 0.05). Else "false".
  """
  tests = {"tuned": compare(tuned[METHOD], tuned[BASELINE]), "shared": compare(shared[METHOD], shared[BASELINE])}

  signs = {rates: (test["op"].sign, test["bwt"].sign) for rates, test in tests.items()}
  op = {arm: mean_of(tuned[arm])["op"] for arm in (METHOD, *OTHERS[:2])}
  best = max(op, key=op.get)
  both = lambda test: f"OP by {test['op']}, BWT by {test['bwt']} and accuracy on the base task by {test['base']}"
  sentence = (
      f"At rates tuned for each arm category-level HFT changes {both(tests['tuned'])} over full tuning; at the rate "
      f"that full tuning chose, {both(tests['shared'])}. "
      f"Of the granularities {best.removeprefix('HFT, ')} has the highest OP.")
  if rates[METHOD] > rates[BASELINE] and tests["shared"]["base"].sign > 0 >= tests["tuned"]["base"].sign:
    sentence += (
        f" At one rate the frozen half keeps the base, as the paper says; to learn the tasks with half of the weights "
        f"HFT takes a larger rate, {rates[METHOD]:g} for {rates[BASELINE]:g}, which loses that again.")
  if signs["tuned"] == (1, 1) and best == METHOD:
    return "true", sentence
  return ("partly" if any(max(s) == 1 and min(s) >= 0 for s in signs.values()) else "false"), sentence


EXPERIMENT = Experiment(
    slug="hft", title="HFT: Half Fine-Tuning for Large Language Models", arxiv="2404.18466",
    areas=("transforms", "merging"), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
