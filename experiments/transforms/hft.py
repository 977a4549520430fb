"""HFT: does training a random half of the matrices, another half for each task, forget less than training them all?

    jaxft run hft            ten minutes on one core
    jaxft run hft --smoke    seconds

Five tasks in turn, each to tell two digits apart in a view of its own, learned by a transformer of four blocks on 8x8
images, of Llama's parts so that HFT has its groups: of four matrices of attention, three of the gated MLP and two norms
a half trains. (All upright, the tasks leave each other alone: at its best rate full tuning forgot 4% of them.)

The paper presupposes a pretrained model. Here it is one that reads all ten digits turned by a quarter, from one half of
the training images; the tasks show the other half, so that no image is seen twice and the features transfer in part.
What is left of the reading of turned digits after all tasks is the control for knowledge of the base. A task is
told with its input, as TRACE's prompts tell it: logits of the other digits are masked, so that an arm forgets in the
weights that tasks share and not by a bias of the head.

A seed draws the base model, the pairs of digits, their order and the batches, the same for all arms; the test images
are the same for all seeds. As the paper gives all arms one recipe, two arms run at one rate that nobody chose.
Controls: the same half in every stage, and Half-Reset, which trains everything and after the last task puts a random
half of the matrices back to the base model.
"""

import dataclasses
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from experiments.tasks.digits_views import VIEWS, Images, load_images
from jaxft.choices import chosen_fraction, random_module_mask
from jaxft.merging import reset
from jaxft.models.attention import attend
from jaxft.models.linear import linear
from jaxft.models.norms import rms_norm
from jaxft.studies.study import Arm, Claim, Front, Premise, Score, Study, higher

TASK_VIEWS = ("upright", "mirrored", "flipped", "transposed", "inverted")
STAGES = len(TASK_VIEWS)


@dataclasses.dataclass(frozen=True)
class Config:
  dim: int = 16
  num_layers: int = 4
  num_heads: int = 4
  mlp_dim: int = 32
  base_steps: int = 800
  base_rate: float = 3e-3
  steps: int = 50
  batch_size: int = 16
  learning_rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3)
  shared_rate: float = 1e-3
  seeds: tuple[int, ...] = tuple(range(32))
  tuning_seeds: tuple[int, ...] = (100, 101, 102, 103)


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
}
METHOD = "HFT, category-level"


class Draw(NamedTuple):
  """What a seed draws, the same for every arm: the digits of each task, and the rows of each batch."""

  pairs: Int[np.ndarray, "stages 2"]
  base_rows: Int[np.ndarray, "base_steps batch"]
  rows: Int[np.ndarray, "stages steps batch"]


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


def in_view(images: Images, task: Int[Array, "..."]) -> Images:
  """The images as a task shows them, or each as its own task does."""
  views = jnp.stack([VIEWS[name](images.pixels) for name in TASK_VIEWS])
  return images._replace(pixels=views[task] if task.ndim == 0 else views[task, jnp.arange(len(task))])


def right(config: Config, params: Any, images: Images, pairs: Int[Array, "stages 2"]) -> Bool[Array, " n"]:
  """Which images are told right, each in the view and among the two digits of its own task."""
  task = task_of(pairs, images.digits)
  z, pair = logits(params, config, in_view(images, task).pixels), pairs[task]
  chosen = jnp.take_along_axis(pair, jnp.argmax(jnp.take_along_axis(z, pair, axis=1), axis=1)[:, None], axis=1)
  return chosen[:, 0] == images.digits


def right_turned(config: Config, params: Any, images: Images) -> Bool[Array, " n"]:
  """Which turned images are told right, among all ten digits."""
  return jnp.argmax(logits(params, config, turned(images).pixels), axis=-1) == images.digits


def task_of(pairs: Int[Array, "stages 2"], digits: Int[Array, " n"]) -> Int[Array, " n"]:
  """The task that each digit belongs to."""
  return jnp.argmax((pairs[None] == digits[:, None, None]).any(-1), axis=1)


def learn(
    config: Config, images: Images, held_out: Images, base: Any, gates: Any, rate: Float[Array, ""],
    pairs: Int[Array, "stages 2"], rows: Int[Array, "stages steps batch"],
) -> tuple[Any, Bool[Array, " n"]]:
  """All stages in turn: the final params, and which images were told right just after their own task's stage."""
  own = task_of(pairs, held_out.digits)

  def stage(carry: Any, inputs: Any) -> tuple[Any, None]:
    params, then = carry
    t, gates, pair, rows = inputs
    allowed = jnp.zeros(2 * STAGES, bool).at[pair].set(True)
    params = train(config, params, gates, in_view(images, t), allowed, rows, rate)
    return (params, jnp.where(own == t, right(config, params, held_out, pairs), then)), None

  start = base, jnp.zeros(len(held_out.digits), bool)
  return jax.lax.scan(stage, start, (jnp.arange(STAGES), gates, pairs, rows))[0]


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


class World:
  """Images, and for each seed its draws and its base model."""

  def __init__(self, config: Config):
    self.config, self.images = config, load_images("train")
    self._pretrain, self._learn, self._right, self._turned = (
        jax.jit(partial(f, config)) for f in (pretrain, learn, right, right_turned))
    self.seed = cache(self._of_seed)

  def _of_seed(self, seed: int) -> tuple[Draw, Any]:
    d = draw(self.config, self.images, seed)
    return d, self._pretrain(self.images, seed, d.base_rows)

  def start(self, rate: None, seed: int, split: str) -> dict[str, np.ndarray]:
    """The base model, before all tasks."""
    d, base = self.seed(seed)
    held = load_images(split)
    return self._scores(base, self._right(base, held, d.pairs), seed, held)

  def tuned(self, arm: str, rate: float, seed: int, split: str, *, reset_half: bool = False) -> dict[str, np.ndarray]:
    """All tasks in turn by one arm."""
    d, base = self.seed(seed)
    held, gates = load_images(split), as_gates(choose(arm, seed, base), base)
    final, then = self._learn(self.images, held, base, gates, rate, d.pairs, d.rows)
    if reset_half:
      final = reset(base, final, random_module_mask(jax.random.fold_in(jax.random.key(seed), STAGES), final))
    return self._scores(final, then, seed, held)

  def _scores(self, params: Any, then: Any, seed: int, held: Images) -> dict[str, np.ndarray]:
    d, _ = self.seed(seed)
    now, then = (np.asarray(x, np.float64) for x in (self._right(params, held, d.pairs), then))
    # Tasks count alike, however many images they have.
    task = np.asarray(task_of(jnp.asarray(d.pairs), held.digits))
    weight = len(task) / (STAGES * np.bincount(task, minlength=STAGES)[task])
    return {"op": now * weight, "bwt": (now - then) * weight, "base": np.asarray(self._turned(params, held))}

  def trained_share(self, arm: str) -> dict[str, float]:
    """Of all numbers, those that train in a stage, in the mean of some draws."""
    _, params = self.seed(self.config.tuning_seeds[0])
    shares = [chosen_fraction(params, choice) for seed in range(4) for choice in choose(arm, seed, params)]
    return {"trained share": float(np.mean(shares))}


def arms(config: Config) -> dict[str, Arm]:
  """Arms at rates of their own, and two at one rate."""
  world, rates = World(config), config.learning_rates
  tuned = {arm: Arm(partial(world.tuned, arm), rates, partial(world.trained_share, arm)) for arm in ARMS}
  at_one_rate = {
      f"{name}, one recipe": Arm(lambda rate, seed, split, arm=arm: world.tuned(arm, config.shared_rate, seed, split))
      for name, arm in (("full", "full"), ("HFT", METHOD))}
  return {
      "start": Arm(world.start), **tuned,
      "Half-Reset of full": Arm(partial(world.tuned, "full", reset_half=True), rates), **at_one_rate}


STUDY = Study(
    slug="hft", title="HFT: Half Fine-Tuning for Large Language Models", arxiv="2404.18466",
    question="keep old skills", use_when="tasks come one after the other, and each forgets what was before",
    setting="a 4-block transformer that reads turned digits learns five tasks in turn: two digits each in a view",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("op", "accuracy over five tasks after the last (OP)"),
        Score("bwt", "that less the accuracy just after each task's own stage (BWT)"),
        Score("base", "accuracy on turned digits, which the base model read")),
    choose_by="op", baseline="full", method=METHOD, start="start", best="full", kept="base",
    premises=(
        Premise("full tuning learns the tasks", lambda s: s["full"].op - s["start"].op, at_least=0.05),
        Premise("full tuning forgets tasks", lambda s: -s["full"].bwt, at_least=0.05),
        Premise("full tuning forgets the base", lambda s: s["start"].base - s["full"].base, at_least=0.1)),
    claims=(
        Claim("HFT ends higher than full tuning over the tasks", higher("op"), smallest=0.01),
        Claim("HFT forgets less of the tasks", higher("bwt"), smallest=0.01),
        Claim("HFT keeps more of the base", higher("base"), smallest=0.01),
        Claim("at one recipe HFT keeps more of the base",
              higher("base", "HFT, one recipe", "full, one recipe"), smallest=0.01)),
    plot=Front("base", "op"))
