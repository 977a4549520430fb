"""What adapters of matrices share: `adapt_matrices`, their loop over the chosen leaves, and the usual random start."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxft.checks import nearest
from jaxft.leaves.annotated import restore_notes, strip_notes
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice, mask
from jaxft.tree.depth import check_stacks, leaf_keys, over_stack
from jaxft.tree.matrices import check_oriented, is_matrix
from jaxft.tree.paths import Tree, is_float, is_leaf, leaves_with_paths, unzip_with_path


def adapt_matrices(
    select: Choice,
    init: Callable[[jax.Array, Any, Any], tuple[Any, Any]],
    apply: Callable[[Any, Any], Any],
    *,
    statistics: Tree | None = None,
    dtype: DTypeLike | None = None,
    oriented: bool = False,
) -> ParamTransform:
  """Adapts each matching matrix on its own, the layers of a stack one by one.

  Args:
    select: a choice; every leaf it takes must be a matrix `[m, n]`, or a stack of them `[L, m, n]`, of floating point;
      `matrices(select)` of `jaxft.tree` skips what is none.
    init: `(key, w [m, n], statistic) -> (frozen leaf, subtree that trains)`, for one matrix; under `vmap` for a stack.
      What other transforms have noted beside w is kept from it.
    apply: `(frozen leaf, subtree that trains) -> leaf`, with a leading axis L on all parts of a stack.
    statistics: what `init` needs to know of the data: a tree with the structure of the params or of a part of it, or a
      flat dict from paths. A matrix takes the entry at its path, or at the longest prefix of it; a stack `[L, m, n]`
      takes entries `[L, ...]`. None gives every matrix None.
    dtype: of what trains; None leaves it as `init` makes it.
    oriented: whether it matters which axis of w is the input's; a `weight` is refused then (`check_oriented`).

  Raises (the last from `split`):
    ValueError: dtype is none of floating point; the choice matches nothing, or a leaf that is not a matrix (all are
      named), or one without statistics, or of unknown orientation.
  """
  dtype = None if dtype is None else check_dtype(dtype)
  known = None if statistics is None else {p: s for p, s in leaves_with_paths(statistics) if s is not None}

  def split(key: jax.Array, params: Tree) -> tuple[Tree, Tree]:
    flags = mask(select, params)
    check_matrices(params, flags)
    if oriented:
      check_oriented(path for path, flag in leaves_with_paths(flags) if flag)

    def start(path: str, leaf: Any, chosen: bool) -> tuple[Any, Any]:
      if not chosen:
        return leaf, None
      keys = leaf_keys(key, path, leaf)
      statistic = None if known is None else _statistic(known, path, leaf if keys.ndim else None)
      w, notes = strip_notes(leaf)
      frozen, trained = over_stack(init, keys)(keys, w, statistic)
      trained = trained if dtype is None else jax.tree.map(lambda x: x.astype(dtype), trained)
      return restore_notes(frozen, notes), trained

    return unzip_with_path(start, params, flags)

  return ParamTransform(split, join_matrices(apply))


def join_matrices(apply: Callable[[Any, Any], Any]) -> Callable[[Tree, Tree], Tree]:
  """The `join` of `adapt_matrices`, for transforms with a `split` of their own."""

  def join(frozen: Tree, trainable: Tree) -> Tree:
    adapt = lambda w, t: w if t is None else apply(w, t)
    return jax.tree.map(adapt, frozen, trainable, is_leaf=is_leaf)

  return join


def _statistic(known: dict[str, Any], path: str, stack: Any | None) -> Any:
  parts = path.split("/")
  prefixes = ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]
  found = next((p for p in prefixes if p in known), None)
  if found is None:
    raise ValueError(f"statistics has no entry at {path} or at a prefix of it; {nearest(path, list(known))}")
  if stack is not None and known[found].shape[0] != stack.shape[0]:
    raise ValueError(
        f"statistics must have one entry a layer for {path} {tuple(stack.shape)}; {found} has shape "
        f"{tuple(known[found].shape)}"
    )
  return known[found]


def chosen_matrices(select: Choice, params: Tree) -> list[tuple[str, Any]]:
  """The `(path, leaf)` pairs of the matrices, or stacks of them, that a choice takes."""
  flags = mask(select, params)
  check_matrices(params, flags)
  return [pair for pair, chosen in zip(leaves_with_paths(params), jax.tree.leaves(flags), strict=True) if chosen]


def check_matrices(params: Tree, flags: Tree) -> None:
  """Raises ValueError naming each chosen leaf that is no matrix of floating point."""
  check_stacks(params)
  chosen = [pair for pair, flag in zip(leaves_with_paths(params), jax.tree.leaves(flags), strict=True) if flag]
  wrong = [f"{path} {tuple(leaf.shape)}" + ("" if is_float(leaf) else f" {leaf.dtype}")
           for path, leaf in chosen if not is_matrix(path, leaf)]
  if wrong:
    raise ValueError(
        "select must match matrices [m, n] or stacks of them [L, m, n], of floating point; it also matches "
        f"{len(wrong)} other leaves: " + ", ".join(wrong[:8]) + (", ..." if len(wrong) > 8 else "")
        + ". Of what a glob matches, `jaxft.tree.matrices(glob)` takes those alone; kernels of other ranks are "
        "matrices when arranged, `jaxft.tree.axes_of(apply, params, *inputs)`")


def kaiming_uniform(key: jax.Array, shape: tuple[int, ...], fan_in: int) -> Array:
  """Uniform in ±1/sqrt(fan_in): PyTorch's Kaiming-uniform with a = sqrt 5, the start of most adapters."""
  return jax.random.uniform(key, shape, jnp.float32, -(fan_in**-0.5), fan_in**-0.5)


def in_float32(trained: Tree) -> Tree:
  """What trains, in float32 or wider, for a `join` that computes from it: what is formed is rounded once."""
  return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), trained)


def check_dtype(dtype: Any) -> jnp.dtype:
  """The dtype of what trains, float32 for None.

  Raises:
    ValueError: it is none of floating point.
  """
  dtype = jnp.dtype(jnp.float32 if dtype is None else dtype)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f"dtype must be one of floating point, such as jnp.bfloat16; got {dtype}")
  return dtype


def check_rank(rank: Any) -> int:
  """The rank as an int; see `check_count`."""
  return check_count("rank", rank)


def check_count(name: str, value: Any) -> int:
  """An argument that counts something as an int, whatever kind of integer it is: NumPy's would promote dtypes.

  Raises:
    ValueError: it is no integer, or below 1.
  """
  try:
    count = operator.index(value)
  except TypeError:
    count = 0
  if count < 1:
    raise ValueError(f"{name} must be an integer >= 1; got {value!r}")
  return count


def check_dropout(dropout: float) -> None:
  if not 0.0 <= dropout < 1.0:
    raise ValueError(f"dropout must lie in [0, 1); got {dropout}")
