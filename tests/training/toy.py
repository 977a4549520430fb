"""A two-layer residual network on numbered rows: small enough that a test trains it for many steps."""

import functools

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from jaxft.leaves import dot
from jaxft.losses.reduction import Mean
from jaxft.training import Recipe, TrainState, init_state, make_train_step
from jaxft.transforms import chain, lora, on, train

DIM, HIDDEN, LAYERS, ROWS = 8, 32, 2, 8
RULES = (("**/up/kernel", P("fsdp", "tensor")), ("**/down/kernel", P("tensor", "fsdp")))


def params(seed: int = 0):
  keys = jax.random.split(jax.random.key(seed), 2)
  return {"layers": {"up": {"kernel": 0.3 * jax.random.normal(keys[0], (LAYERS, DIM, HIDDEN))},
                     "down": {"kernel": 0.3 * jax.random.normal(keys[1], (LAYERS, HIDDEN, DIM))}}}


@functools.cache
def transform():
  """Low-rank factors with dropout beside whole trained leaves: two kinds of trainable side in one."""
  return chain(on("**/up/kernel", lora(rank=2, dropout=0.1)), train("**/down/kernel"))


@functools.cache
def optimizer():
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))


def outputs(params, x):
  def layer(x, p):
    return x + dot(jax.nn.relu(dot(x, p["up"]["kernel"])), p["down"]["kernel"]), None

  return jax.lax.scan(layer, x, params["layers"])[0]


def objective(params, batch, key):
  """The loss of each row counts by its weight; the metric betrays which rows were seen in which order."""
  del key
  y = outputs(params, batch["x"])
  rows = Mean.of(jnp.mean(jnp.square(y - batch["target"]), axis=-1), batch["weight"])
  return rows, {"order": jnp.sum(batch["id"] * jnp.arange(1, batch["id"].shape[0] + 1))}


def example(i: int):
  rng = np.random.default_rng(int(i))
  x = rng.normal(size=DIM).astype(np.float32)
  return {"x": x, "target": np.roll(x, 1), "weight": np.float32(rng.integers(1, 9)), "id": np.float32(i)}


def dataset(examples: int = 36, rows: int = ROWS):
  """Shuffled anew in each epoch of 4.5 batches, so that a resumed run can only be right by knowing its place."""
  data = grain.MapDataset.range(examples).seed(7).shuffle().repeat().map(example)
  return data.batch(rows, drop_remainder=True)


def start(mesh=None, *, change=None, seed: int = 1, **options):
  """`(state, frozen, train_step)` of the toy."""
  t = change or transform()
  state, frozen = init_state(jax.random.key(seed), params(), recipe(t, mesh=mesh))
  return state, frozen, _step(t, mesh, **options)


def recipe(change=None, *, minimize=None, mesh=None, **options) -> Recipe:
  """The toy's recipe; by its rules where there is a mesh."""
  rules = RULES if mesh else ()
  return Recipe(minimize or objective, change or transform(), optimizer(), mesh=mesh, rules=rules, **options)


@functools.cache  # compiled once for all tests that use it
def _step(change, mesh, *, donate=True, **options):
  return make_train_step(recipe(change, mesh=mesh, **options), donate=donate)


def arrays(state: TrainState) -> list[np.ndarray]:
  """The state's arrays on the host, the key as its words."""
  return [np.asarray(x) for x in jax.tree.leaves(state._replace(key=jax.random.key_data(state.key)))]
