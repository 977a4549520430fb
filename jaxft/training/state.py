"""What a training step carries from one step to the next, and how it starts."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from jaxft.signatures import explain_errors
from jaxft.training.frozen import narrowed
from jaxft.training.mesh import put
from jaxft.training.recipe import Recipe, check_recipe
from jaxft.training.sharding import follows_of, inherit_specs, shardings_for, specs_for
from jaxft.tree.adapted import Followed
from jaxft.tree.boxes import set_aside

Tree = Any


class TrainState(NamedTuple):
  """Everything that changes during training, and nothing else: a checkpoint is this and the position in the data.

  Attributes:
    step: number of steps taken.
    trainable: the trained side of `transform.split`.
    opt_state: the optimizer's state for `trainable`.
    key: a typed key that never changes; step t draws from `fold_in(key, t)`.
  """

  step: Int[Array, ""]
  trainable: Tree
  opt_state: Tree
  key: jax.Array


@explain_errors
def init_state(key: jax.Array, params: Tree, recipe: Recipe) -> tuple[TrainState, Tree]:
  """Splits the params and starts the optimizer on the side that trains.

  >>> from jaxft.losses import Mean
  >>> from jaxft.transforms import train
  >>> objective = lambda params, batch, key: (Mean.of(params["bias"] - batch), {})
  >>> recipe = Recipe(objective, train("bias"), optax.adam(0.1))
  >>> state, frozen = init_state(jax.random.key(0), {"kernel": jnp.ones(2), "bias": jnp.ones(2)}, recipe)
  >>> state.trainable, frozen
  ({'bias': Array([1., 1.], dtype=float32), 'kernel': None}, {'bias': None, 'kernel': Array([1., 1.], dtype=float32)})

  Args:
    key: a typed key; one half goes to `split`, the other to the state.
    params: the checkpoint to start from, arrays on any device or on the host.
    recipe: its transform splits the params and its optimizer starts on what trains; everything is placed on its mesh by
      its rules, or left where it is without one.

  Returns:
    `(state, frozen)`. The trainable arrays are copies, so that a donated state never takes `params` along; the frozen
    ones are shared with `params` where they already lie on the right devices, in the dtype that the recipe wants.

  Raises:
    TypeError: `key` is no typed key, `recipe` no `Recipe`.
    ValueError: nothing trains, or a rule does not fit; see `specs_for`.
  """
  if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0):
    raise TypeError(f"key must be one typed key, as jax.random.key(0); got {key!r:.80}")
  check_recipe(recipe)
  transform, optimizer, mesh = recipe.transform, recipe.optimizer, recipe.mesh
  params = set_aside(params)
  specs = specs_for(params, recipe.rules, mesh)
  follows = ({}, {}) if mesh is None else follows_of(transform.split, params)
  if mesh is not None:
    params = jax.tree.map(put, params, shardings_for(specs, mesh))
  split_key, step_key = jax.random.split(key)
  frozen, trainable = transform.split(split_key, params)
  if not jax.tree.leaves(trainable):
    raise ValueError("transform trains nothing: the trainable side of its split has no array")

  place = lambda tree, side: tree if mesh is None else jax.tree.map(
      put, tree, _shardings(tree, params, specs, mesh, side))
  # On one device as one program; over several, arrays that `split` made may lie elsewhere than the others.
  trainable = place((jax.jit(_copied) if mesh is None else _copied)(trainable), follows[1])
  frozen = place(jax.tree.map(jnp.asarray, frozen), follows[0])
  frozen = narrowed(frozen, transform.split, params, recipe.frozen_dtype)
  out = None if mesh is None else _shardings(
      jax.eval_shape(optimizer.init, trainable), params, specs, mesh, follows[1])
  opt_state = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), jax.jit(optimizer.init, out_shardings=out)(trainable))
  step = jnp.zeros((), jnp.int32)
  if mesh is not None:
    replicated = NamedSharding(mesh, PartitionSpec())
    step, step_key = put(step, replicated), put(step_key, replicated)
  return TrainState(step, trainable, opt_state, step_key), frozen


def _copied(tree: Tree) -> Tree:
  """A copy of every array; an explicit dtype drops weak types, which would make the second step compile anew."""
  return jax.tree.map(lambda x: jnp.array(x, dtype=x.dtype, copy=True), tree)


@explain_errors
def abstract_state(params: Tree, recipe: Recipe) -> tuple[TrainState, Tree]:
  """`init_state` in shapes: what it would return as `jax.ShapeDtypeStruct` with shardings, nothing being allocated.

  `params` may be abstract. A transform whose split depends on the values of the params cannot be planned this way and
  raises what JAX raises for a concrete value of a traced array.

  >>> from jaxft.losses import Mean
  >>> from jaxft.transforms import lora
  >>> recipe = Recipe(lambda params, batch, key: (Mean.of(batch), {}), lora("kernel", rank=2), optax.adam(0.1))
  >>> state, _ = abstract_state({"kernel": jax.ShapeDtypeStruct((10**5, 10**5), jnp.float32)}, recipe)
  >>> jax.tree.map(lambda x: x.shape, state.trainable)  # nothing of these 40 GB was allocated
  {'kernel': {'a': (100000, 2), 'b': (2, 100000)}}

  Args:
    params: arrays or `jax.ShapeDtypeStruct`s.
    recipe: see `init_state`.

  Raises:
    TypeError: `recipe` is no `Recipe`.
  """
  check_recipe(recipe)
  transform, optimizer, mesh = recipe.transform, recipe.optimizer, recipe.mesh
  params = set_aside(params)
  specs = specs_for(params, recipe.rules, mesh)

  def start(key: jax.Array, params: Tree) -> tuple[TrainState, Tree]:
    split_key, step_key = jax.random.split(key)
    frozen, trainable = transform.split(split_key, params)
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable), step_key), frozen

  state, frozen = jax.eval_shape(start, jax.eval_shape(lambda: jax.random.key(0)), params)
  frozen = narrowed(frozen, transform.split, params, recipe.frozen_dtype)
  if mesh is None:
    return state, frozen

  def with_sharding(x: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  follows = follows_of(transform.split, params)
  place = lambda tree, side: jax.tree.map(with_sharding, tree, _shardings(tree, params, specs, mesh, side))
  whole = lambda x: with_sharding(x, NamedSharding(mesh, PartitionSpec()))
  trainable, opt_state = place(state.trainable, follows[1]), place(state.opt_state, follows[1])
  return TrainState(whole(state.step), trainable, opt_state, whole(state.key)), place(frozen, follows[0])


def _shardings(tree: Tree, params: Tree, specs: Tree, mesh: Mesh, follows: Mapping[str, Followed]) -> Tree:
  return shardings_for(inherit_specs(tree, params, specs, mesh, follows), mesh)
