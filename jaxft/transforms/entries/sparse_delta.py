"""Sparse differences: some entries of the weights train, stored as flat values and their indices."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxft.leaves.annotated import Annotated, map_weight
from jaxft.signatures import explain_errors
from jaxft.transforms.matrices import check_matrices
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.boxes import unboxed, weights
from jaxft.tree.choice import Choice, entries, is_function, mask, trainable_choice
from jaxft.tree.depth import leaf_keys, over_stack
from jaxft.tree.paths import Tree, is_float, is_leaf, leaves_with_paths, map_with_path, unzip_with_path

# (key, params) -> a tree of flat indices
Draw = Callable[[jax.Array, Tree], Tree]


@explain_errors
def sparse_delta(
    select: Choice | None = None, *, indices: Tree | Draw | None = None, dtype: DTypeLike = jnp.float32
) -> ParamTransform:
  """Trains chosen entries: `w + scatter(indices, values)`, values zero at the start.

      {'up': W [m, n], 'down': V}  ->  frozen {'up': Annotated(W, indices [K]), 'down': V}
                                       trainable {'up': values [K], 'down': None}

  What trains and the optimizer's state are O(K). Compute is not saved: the gradient of the whole matrix is formed and
  K entries of it are read, 6 FLOPs per parameter and token as in full tuning. A stacked leaf is one flat space.

  >>> mask = {"w": jnp.array([[True, False], [False, True]])}
  >>> _, trainable = sparse_delta(mask).split(jax.random.key(0), {"w": jnp.ones((2, 2))})
  >>> trainable
  {'w': Array([0., 0.], dtype=float32)}

  Args:
    select: a choice of leaves, layers or entries (`jaxft.tree.choice`). It is read on the host, one leaf after the
      other: how many entries it has decides the shape of what trains.
    indices: in place of it a tree like the params of flat int32 indices, None where a leaf stays frozen; or a function
      `(key, params) -> ` such a tree, which `split` calls with its key: `random_indices`.
    dtype: of the values, also where the params are of fewer bits.

  Raises:
    TypeError: both select and indices are given, or neither.
    ValueError: from `split`: a choice that does not fit; an index that is repeated or out of range; a leaf of 2**31
      entries or more (cut its stack), or not of floating point; nothing is chosen.

  Sources: Ansell et al. 2022, LT-SFT (arXiv 2110.07560): `sparse_delta(lottery_ticket_mask(base, tuned, k))` from the
  rewound params; Bhardwaj et al. 2024, SHiRA (arXiv 2406.13175), see `shira`. LT-SFT masks gradients, under which
  weight decay still moves what is frozen; here nothing but the values exists to be moved.
  """

  if (select is None) == (indices is None):
    raise TypeError(f"sparse_delta takes select or indices; got {'neither' if select is None else 'both'}")
  name, find = ("indices", _checked) if select is None else ("select", _chosen)

  def split(key: jax.Array, params: Tree):
    if select is None:
      given = unboxed(indices(key, params) if is_function(indices) else indices)
    else:
      given = trainable_choice(select, params)
    problems: list[str] = []

    def hold(path: str, leaf: Any, here: Any) -> tuple[Any, Any]:
      if leaf is None or here is None or here is False:
        return leaf, None
      large = f"has {math.prod(leaf.shape)} entries, beyond int32: cut its stack with cut_layers"
      if not is_float(leaf):
        found, problem = np.zeros(0), f"is {leaf.dtype}, and no weight of floating point"
      else:
        found, problem = (np.zeros(0), large) if math.prod(leaf.shape) >= 1 << 31 else find(path, leaf, here)
      if problem:
        problems.append(f"{path} {problem}")
      if problem or not found.size:
        return leaf, None
      return Annotated(leaf, jnp.asarray(found, jnp.int32)), jnp.zeros(found.shape, dtype)

    frozen, trainable = unzip_with_path(hold, params, given)
    if problems:
      raise ValueError(f"{name} must fit the leaves; {len(problems)} differ: " + "; ".join(problems[:8]))
    if not jax.tree.leaves(trainable):
      raise ValueError(f"{name} must have at least one entry; got none")
    return frozen, trainable

  def join(frozen: Tree, trainable: Tree):
    def add(w: Any, values: Any) -> Any:
      return w if values is None else map_weight(w.w, lambda array: add_entries(array, w.note, values))

    return jax.tree.map(add, frozen, trainable, is_leaf=is_leaf)

  return ParamTransform(split, join)


@explain_errors
def add_entries(w: Array, indices: Int[Array, " K"], values: Float[Array, " K"]) -> Array:
  """`w` with `values` added at flat `indices`, summed in float32 and rounded once.

  >>> add_entries(jnp.zeros((2, 2)), jnp.array([0, 3]), jnp.array([5.0, 7.0]))
  Array([[5., 0.],
         [0., 7.]], dtype=float32)
  """
  flat = w.reshape(-1)
  new = flat[indices].astype(jnp.float32) + values.astype(jnp.float32)
  return flat.at[indices].set(new.astype(w.dtype), unique_indices=True).reshape(w.shape)


@explain_errors
def random_indices(select: Choice, count: Callable[[str, tuple[int, int]], int]) -> Draw:
  """Entries drawn uniformly, without repetition, in each selected matrix: `indices` for `sparse_delta`.

  >>> draw = random_indices("kernel", lambda path, shape: 2)
  >>> transform = sparse_delta(indices=draw)
  >>> _, trainable = transform.split(jax.random.key(0), {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)})
  >>> trainable
  {'bias': None, 'kernel': Array([0., 0.], dtype=float32)}

  Args:
    select: a choice of matrices `[m, n]` or stacks of them.
    count: `(path, (m, n)) -> K`, how many of one matrix.
  """

  def draw(key: jax.Array, params: Tree) -> Tree:
    def indices(path: str, leaf: Any, chosen: bool) -> Any:
      if not chosen:
        return None
      size, k = math.prod(leaf.shape[-2:]), count(path, tuple(leaf.shape[-2:]))
      if not 0 < k <= size:
        raise ValueError(f"count must lie in 1..{size} for {path} {tuple(leaf.shape)}; got {k}")
      one = lambda key: jax.random.permutation(key, size)[:k].astype(jnp.int32)
      keys = leaf_keys(key, path, leaf)
      drawn = over_stack(one, keys)(keys).reshape(-1, k)
      return (drawn + size * jnp.arange(len(drawn), dtype=jnp.int32)[:, None]).reshape(-1)

    flags = mask(select, params)
    check_matrices(params, flags)
    return map_with_path(indices, params, flags)

  return draw


@explain_errors
def shira(select: Choice = "**/kernel", *, rank: int = 32, dtype: DTypeLike = jnp.float32) -> ParamTransform:
  """SHiRA with a random mask: `rank * (m + n)` entries of each matrix, as many as LoRA of that rank would train.

  >>> _, trainable = shira(rank=1).split(jax.random.key(0), {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)})
  >>> jax.tree.map(jnp.shape, trainable)
  {'bias': None, 'kernel': (7,)}

  Args:
    select: a choice of matrices.
    rank: sets the number of entries.
    dtype: of the values.

  Raises (from `split`):
    ValueError: nothing is selected, or a matrix has fewer entries than that.

  Source: Bhardwaj et al. 2024 (arXiv 2406.13175). Its other masks are `sparse_delta(top_k_mask(scores, k))`.
  """
  return sparse_delta(indices=random_indices(select, lambda path, shape: rank * sum(shape)), dtype=dtype)


@explain_errors
def chosen_entries(frozen: Tree, trainable: Tree) -> dict[str, tuple[Array, Array]]:
  """`{path: (indices, values)}` of the two sides of a `sparse_delta`: what to store, add and subtract.

  >>> mask = {"w": jnp.array([[True, False], [False, True]])}
  >>> chosen_entries(*sparse_delta(mask).split(jax.random.key(0), {"w": jnp.ones((2, 2))}))
  {'w': (Array([0, 3], dtype=int32), Array([0., 0.], dtype=float32))}

  Raises:
    ValueError: the sides are of another transform; `submatrix_delta` is for `submatrix`.
  """
  frozen, trainable = weights(frozen), unboxed(trainable)
  sides = jax.tree.structure(frozen, is_leaf=is_leaf).flatten_up_to(trainable)
  pairs = zip(leaves_with_paths(frozen), sides, strict=True)
  found: dict[str, Any] = {
      path: (getattr(leaf, "note", None), values) for (path, leaf), values in pairs if values is not None}
  for path, (indices, values) in found.items():
    if not isinstance(indices, (np.ndarray, jax.Array)) or np.shape(values) != indices.shape:
      raise ValueError(
          f"frozen and trainable must be the sides of a sparse_delta; at {path} they are not. For a submatrix: "
          "submatrix_delta")
  return found


def _chosen(path: str, leaf: Any, flag: Any) -> tuple[Any, str]:
  """Flat indices of the chosen entries of a leaf, and what is wrong with the choice."""
  if isinstance(flag, Tracer):
    return None, "has a traced mask: how many entries train must be known; pass indices"
  return np.flatnonzero(np.asarray(entries(flag, path, leaf))), ""


def _checked(path: str, leaf: Any, indices: Any) -> tuple[Any, str]:
  """Flat indices of a leaf as they are given, and what is wrong with them."""
  del path
  if np.ndim(indices) != 1 or not jnp.issubdtype(jnp.result_type(indices), jnp.integer):
    return None, (f"takes flat int32 indices [K]; got {jnp.result_type(indices)} {np.shape(indices)}"
                  + ": a mask is a choice, sparse_delta(mask)" * (jnp.result_type(indices) == bool))
  if not isinstance(indices, Tracer):
    sure, size = np.asarray(indices), math.prod(leaf.shape)
    if sure.size and (sure.min() < 0 or sure.max() >= size):
      return None, f"takes indices in 0..{size - 1}; got {sure.min()}..{sure.max()}"
    if len(np.unique(sure)) < len(sure):
      return None, "has an index twice"
  return indices, ""
