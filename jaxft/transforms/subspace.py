"""Fine-tuning in a random subspace: one short vector moves all weights through fixed random projections."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.transforms.beside import Beside, through
from jaxft.transforms.depth import leaf_keys
from jaxft.transforms.fastfood import fastfood
from jaxft.transforms.filters import Filter, mask
from jaxft.transforms.paths import Tree, is_leaf, map_with_path
from jaxft.transforms.protocol import ParamTransform

# (key, x [d], D) -> P x [D]
Projection = Callable[[jax.Array, jax.Array, int], jax.Array]


def random_subspace(
    dim: int, *, select: Filter = True, projection: Projection = fastfood, structured: bool = False
) -> ParamTransform:
  """Trains `w_i = w_i0 + s_i P_i(v)`: the vector v is shared by all tensors, each has a random projection of its own.

      params {'up': W, 'down': V}  ->  frozen {'up': Beside(W, seed), 'down': Beside(V, seed)}
                                       trainable {'vector': [d], 'scales': {'up': [], 'down': []}}   (structured)
                                       trainable {'vector': [d]}                                     (otherwise)

  The projections are drawn from their keys in every step and again in its backward pass, so that nothing of the size of
  `D x d` is kept. v starts at zero and s at one, so that s has no gradient in the first step. Compute is that of full
  tuning and the projections' own; what is saved is the state: d numbers and a seed make the whole checkpoint.

  Args:
    dim: how many numbers train, the scales among them.
    select: what moves, of floating-point leaves. A new head that stays outside trains by
      `chain(train(head), random_subspace(...))`, and is then not counted in dim.
    projection: `fastfood`, `dense_projection`, `sparse_projection`, or another function `(key, x [d], D) -> [D]`.
    structured: one scale for each tensor (SAID), of stacked layers one for each layer; else DID.

  Raises:
    ValueError: dim < 1; from `split`: the filter matches nothing, or there are at least as many scales as dim.

  Source: Aghajanyan et al. 2020 (arXiv 2012.13255), whose vector has `d - m` entries beside m scales. Its projections
  come from a table kept in memory.
  """
  if not (isinstance(dim, int) and dim >= 1):
    raise ValueError(f"dim must be an integer >= 1; got {dim!r}")

  def split(key: jax.Array, params: Tree):
    # Keys as numbers, so that checkpoints hold them like any other array.
    moves = lambda leaf, chosen: chosen and jnp.issubdtype(leaf.dtype, jnp.floating)
    hold = lambda path, leaf, chosen: (
        Beside(leaf, {"seed": jax.random.key_data(leaf_keys(key, path, leaf))}) if moves(leaf, chosen) else leaf)
    frozen = map_with_path(hold, params, mask(select, params))
    scales = map_with_path(lambda path, leaf: jnp.ones(_lead(leaf)) if _moves(leaf) else None, frozen)
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

    def move(w: Any, scale: Any) -> Any:
      if not _moves(w):
        return w
      lead = _lead(w)
      # Drawn again in the backward pass: what the projections of all tensors keep would be several copies of the model.
      project = jax.checkpoint(partial(_project, projection, math.prod(w.shape[len(lead):])))
      for _ in lead:
        project = jax.vmap(project, in_axes=(0, None))
      step = project(w.note["seed"], trainable["vector"]).reshape(w.shape)
      if scale is not None:
        step = step * scale.reshape(scale.shape + (1,) * (step.ndim - scale.ndim))
      return through(w.w, lambda array: (array.astype(jnp.float32) + step).astype(array.dtype))

    return jax.tree.map(move, frozen, scales, is_leaf=is_leaf)

  return ParamTransform(split, join)


def _moves(leaf: Any) -> bool:
  return isinstance(leaf, Beside) and "seed" in leaf.note  # other transforms have notes of their own


def _lead(held: Beside) -> tuple[int, ...]:
  """The layer axis of a stacked leaf, which has a key for each layer."""
  return tuple(held.note["seed"].shape[:-1])


def _project(projection: Projection, size: int, key_data: jax.Array, vector: jax.Array) -> jax.Array:
  return projection(jax.random.wrap_key_data(key_data), vector, size)
