"""Fine-tuning in a random subspace: one short vector moves all weights through fixed random projections."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.checks import nearest
from jaxft.leaves.annotated import Annotated, map_weight
from jaxft.signatures import explain_errors
from jaxft.transforms.entries.fastfood import dense_projection, fastfood, sparse_projection
from jaxft.transforms.matrices import check_count
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice, mask, shapes_of, trainable_choice
from jaxft.tree.depth import leaf_keys
from jaxft.tree.paths import Tree, is_leaf, map_with_path

# (key, x [d], D) -> P x [D]
Projection = Callable[[jax.Array, jax.Array, int], jax.Array]


@explain_errors
def random_subspace(
    dim: int, *, select: Choice = True, projection: Projection = fastfood, structured: bool = False
) -> ParamTransform:
  """Trains `w_i = w_i0 + s_i P_i(v)`: the vector v is shared by all tensors, each has a random projection of its own.

      params {'up': W, 'down': V}  ->  frozen {'up': Annotated(W, seed), 'down': Annotated(V, seed)}
                                       trainable {'vector': [d], 'scales': {'up': [], 'down': []}}   (structured)
                                       trainable {'vector': [d]}                                     (otherwise)

  The projections are drawn from their keys in every step and again in its backward pass, so that nothing of the size of
  `D x d` is kept. v starts at zero and s at one, so that s has no gradient in the first step. Compute is that of full
  tuning and the projections' own; what is saved is the state: d numbers and a seed make the whole checkpoint.

  >>> _, trainable = random_subspace(8).split(jax.random.key(0), {"a": jnp.ones((4, 3)), "b": jnp.ones(5)})
  >>> jax.tree.map(jnp.shape, trainable)
  {'vector': (8,)}

  Args:
    dim: how many numbers train, the scales among them.
    select: what moves, of floating-point leaves; read again in `join`, as that of `on` is. A new head that stays
      outside trains by `chain(train(head), random_subspace(...))`, and is then not counted in dim.
    projection: `fastfood`, `dense_projection`, `sparse_projection`, or another function `(key, x [d], D) -> [D]`.
    structured: one scale for each tensor (SAID), of stacked layers one for each layer; else DID.

  Raises:
    TypeError: projection is no function, such as the name of one.
    ValueError: dim < 1; from `split`: nothing is selected, or there are at least as many scales as dim.

  Source: Aghajanyan et al. 2020 (arXiv 2012.13255), whose vector has `d - m` entries beside m scales. Its projections
  come from a table kept in memory.
  """
  dim = check_count("dim", dim)
  if not callable(projection):
    known = [f.__name__ for f in (fastfood, dense_projection, sparse_projection)]
    raise TypeError(
        f"projection must be a function (key, x [d], D) -> [D], such as those of jaxft.transforms; got {projection!r}; "
        f"{nearest(str(projection), known)}")

  def split(key: jax.Array, params: Tree):
    flags = mask(trainable_choice(select, shapes_of(params)), params)
    # Keys as numbers, so that checkpoints hold them like any other array.
    hold = lambda path, leaf, moves: (
        Annotated(leaf, {"seed": jax.random.key_data(leaf_keys(key, path, leaf))}) if moves else leaf)
    frozen = map_with_path(hold, params, flags)
    scales = map_with_path(lambda path, leaf, moves: jnp.ones(_lead(leaf)) if moves else None, frozen, flags)
    count = sum(x.size for x in jax.tree.leaves(scales))
    if not count:
      raise ValueError("select must match at least one leaf; got none")
    if not structured:
      return frozen, {"vector": jnp.zeros(dim)}
    if count >= dim:
      raise ValueError(f"dim must exceed the number of scales, one for each of {count} tensors; got {dim}")
    return frozen, {"vector": jnp.zeros(dim - count), "scales": scales}

  def join(frozen: Tree, trainable: Tree):
    scales = trainable["scales"] if structured else jax.tree.map(lambda _: None, frozen, is_leaf=is_leaf)

    def move(w: Any, moves: bool, scale: Any) -> Any:
      if not moves:
        return w
      lead = _lead(w)
      # Drawn again in the backward pass: what the projections of all tensors keep would be several copies of the model.
      project = jax.checkpoint(partial(_project, projection, math.prod(w.shape[len(lead):])))
      for _ in lead:
        project = jax.vmap(project, in_axes=(0, None))
      step = project(w.note["seed"], trainable["vector"]).reshape(w.shape)
      if scale is not None:
        step = step * scale.reshape(scale.shape + (1,) * (step.ndim - scale.ndim))
      return map_weight(w.w, lambda array: (array.astype(jnp.float32) + step).astype(array.dtype))

    # The choice is read again, for another subspace of a chain may have left seeds of its own elsewhere.
    flags = _moving(frozen, mask(select, shapes_of(frozen), allow_empty=True))
    return jax.tree.map(move, frozen, flags, scales, is_leaf=is_leaf)

  return ParamTransform(split, join)


def _moving(tree: Tree, chosen: Tree) -> Tree:
  """Whether each leaf moves, of those that are chosen: as booleans, where it is floating point."""
  return map_with_path(lambda path, leaf, flag: flag and bool(jnp.issubdtype(leaf.dtype, jnp.floating)), tree, chosen)


def _lead(held: Annotated) -> tuple[int, ...]:
  """The layer axis of a stacked leaf, which has a key for each layer."""
  return tuple(held.note["seed"].shape[:-1])


def _project(projection: Projection, size: int, key_data: jax.Array, vector: jax.Array) -> jax.Array:
  return projection(jax.random.wrap_key_data(key_data), vector, size)
