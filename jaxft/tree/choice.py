"""A choice: what a selection found, in the one form that everything which adapts a part of a model takes.

A choice is a filter, or a tree like the params or a prefix of it; what it says of a leaf is one of

    True, False             all of the leaf, or nothing of it     filters, `tree_search`, `random_module_mask`
    booleans [L]            layers of a stacked leaf              `random_module_mask`, `within_layers`
    booleans of its shape   single entries                        `top_k_mask`, `lottery_ticket_mask`, `choose_rows`

and whichever selection made it, it may

    freeze or train         `freeze(choice)`, `train(choice)`                   whole leaves and layers
    become a sparse delta   `sparse_delta(choice)`                              anything
    become a sub-matrix     `submatrix(chosen_rows(choice, params))`            whole rows or columns
    scale learning rates    `scale_updates(choice_scales(choice, trainable))`   anything; a soft mask is a scale too

Units are rows or columns of matrices: `choose_rows(params, {glob: unit_indices(units, size)})` for those that
`select_units` chose, and with `head_units(heads, num_layers)` for the heads of `top_heads`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxft.checks import nearest
from jaxft.tree.depth import layer_of
from jaxft.tree.globs import glob_to_regex
from jaxft.tree.paths import Tree, is_leaf, leaves_with_paths, map_with_path

Choice = str | Callable[[str, Any], bool] | Sequence[Any] | Tree


def as_choice(choice: Choice, tree: Tree, *, name: str = "choice") -> Tree:
  """The choice as a tree like `tree`: of each leaf True, False, booleans over its layers, or booleans of its shape.

  Args:
    choice: see the module's docstring.
    tree: arrays or shapes.
    name: of the argument, for errors.

  Raises:
    ValueError: booleans that fit their leaf in neither way (all are named), or a glob that matches nothing.
    TypeError: neither a filter nor a tree of booleans.
  """
  filters = isinstance(choice, (list, tuple)) and choice and all(isinstance(f, str) or callable(f) for f in choice)
  if isinstance(choice, (str, bool)) or is_function(choice) or filters:
    return mask(choice, tree)
  kinds = (bool, np.ndarray, np.generic, jax.Array)
  is_flag = lambda x: x is None or isinstance(x, kinds)
  try:
    spread = jax.tree.map(
        lambda flag, part: jax.tree.map(lambda leaf: flag, part, is_leaf=is_leaf), choice, tree, is_leaf=is_flag)
  except (ValueError, TypeError) as e:
    raise TypeError(
        f"{name} must be a filter or a tree of booleans that is a prefix of the params; got "
        f"{type(choice).__name__}: {e}") from None
  problems: list[str] = []

  def fit(path: str, leaf: Any, flag: Any) -> Any:
    if leaf is None or flag is None:
      return False
    if not isinstance(flag, kinds):
      raise TypeError(f"{name} must be a filter or a tree of booleans; got {flag!r} for {path}")
    if isinstance(flag, bool) or (flag.dtype == bool and not flag.shape):
      return bool(flag)
    if flag.dtype != bool or (flag.shape != tuple(leaf.shape) and not over_layers(flag, path, leaf)):
      problems.append(f"{path} {tuple(leaf.shape)} got {flag.dtype} {flag.shape}")
      return False
    return flag

  fitted = map_with_path(fit, tree, spread)
  if problems:
    raise ValueError(
        f"{name} must have, for each leaf, True, False, booleans over the layers of a stack or booleans of the leaf's "
        f"shape; {len(problems)} differ: " + "; ".join(problems[:8]))
  return fitted


def over_layers(flag: Any, path: str, leaf: Any) -> bool:
  """Whether what a choice says of a leaf is a vector over the layers of its stack."""
  return np.shape(flag) == tuple(leaf.shape[:1]) and bool(np.ndim(layer_of(path, leaf)))


def entries(flag: Any, path: str, leaf: Any) -> Bool[Array, "..."]:
  """What a choice says of a leaf, entry by entry, in the leaf's shape."""
  library = jnp if isinstance(flag, jax.Array) else np
  return library.broadcast_to(_along_layers(flag, path, leaf), tuple(leaf.shape))


def _along_layers(flag: Any, path: str, leaf: Any) -> Any:
  """What a choice says of a leaf, with the axes that a vector over layers lacks: it broadcasts against the leaf."""
  layers = np.ndim(flag) and over_layers(flag, path, leaf)
  return flag.reshape(-1, *[1] * (leaf.ndim - 1)) if layers else flag


def modules(flag: Any, path: str, leaf: Any) -> Any:
  """What a choice says of a leaf as a bool or as host booleans over its layers; None where it divides a layer."""
  if isinstance(flag, bool):
    return flag
  flag = np.asarray(flag)
  if not over_layers(flag, path, leaf):
    by_layer = flag.reshape(len(flag), -1) if np.ndim(layer_of(path, leaf)) else flag.reshape(1, -1)
    if (by_layer != by_layer[:, :1]).any():
      return None
    flag = by_layer[:, 0]
  return bool(flag[0]) if flag.all() or not flag.any() else flag


def choice_scales(choice: Choice, trainable: Tree, *, chosen: float = 1.0, others: float = 0.0) -> Tree:
  """A choice as scales for `scale_updates`: another learning rate for what is chosen, or a soft mask.

  Args:
    choice: of what trains.
    trainable: what trains, arrays or shapes, holes allowed; plain leaves (`full`, `train`, `freeze`).
    chosen, others: the scales.

  Returns:
    A tree like `trainable` of numbers and of arrays that broadcast against its leaves.

  Raises:
    ValueError: the choice does not fit, or a scale is negative.
  """
  for name, scale in (("chosen", chosen), ("others", others)):
    if not scale >= 0:
      raise ValueError(f"{name} must be >= 0; got {scale}")

  def scale(path: str, leaf: Any, flag: Any) -> Any:
    if leaf is None:
      return None
    if isinstance(flag, bool):
      return chosen if flag else others
    return jnp.where(_along_layers(flag, path, leaf), jnp.float32(chosen), jnp.float32(others))

  return map_with_path(scale, trainable, as_choice(choice, trainable))


def is_function(x: Any) -> bool:
  """True for a callable that is no tree: an Equinox model, and a tree of booleans like it, can be called as well."""
  return callable(x) and jax.tree_util.all_leaves([x])


def mask(filter: Choice, tree: Tree, *, allow_empty: bool = False) -> Tree:
  """The filter as a tree of Python booleans, one for each leaf of `tree`; holes never match.

  Args:
    filter: see the module's docstring.
    tree: a params tree.
    allow_empty: accept a glob that matches no leaf.

  Raises:
    ValueError: a glob matches no leaf (the nearest paths are named), or a boolean tree does not fit `tree`.
    TypeError: the filter is none of the kinds above.
  """
  if isinstance(filter, str):
    pattern = glob_to_regex(filter)
    out = map_with_path(lambda path, leaf: leaf is not None and pattern.fullmatch(path) is not None, tree)
    if not allow_empty and not any(jax.tree.leaves(out)):
      paths = [path for path, leaf in leaves_with_paths(tree) if leaf is not None]
      raise ValueError(f"filter {filter!r} matches none of the {len(paths)} leaves; {nearest(filter, paths)}")
    return out
  if isinstance(filter, bool):
    return map_with_path(lambda path, leaf: leaf is not None and filter, tree)
  if is_function(filter):
    return map_with_path(lambda path, leaf: leaf is not None and bool(filter(path, leaf)), tree)
  if isinstance(filter, (list, tuple)) and filter and all(isinstance(f, str) or callable(f) for f in filter):
    masks = [mask(f, tree, allow_empty=allow_empty) for f in filter]
    return jax.tree.map(lambda *flags: any(flags), *masks)
  try:
    is_flag = lambda x: isinstance(x, bool)
    out = jax.tree.map(lambda flag, below: mask(_as_bool(flag), below), filter, tree, is_leaf=is_flag)
  except (ValueError, TypeError) as e:
    raise TypeError(
        f"filter must be a glob, a predicate (path, leaf) -> bool, a list of these, or a tree of booleans that is a "
        f"prefix of the params; got {type(filter).__name__}: {e}"
    ) from None
  return out


def _as_bool(flag: Any) -> bool:
  if not isinstance(flag, bool):
    shape = f" of shape {flag.shape}: layers and entries are for what takes a choice, not a filter" if getattr(
        flag, "shape", ()) else ""
    raise TypeError(f"a leaf is {type(flag).__name__}{shape}, not True or False")
  return flag


def matching_paths(filter: Choice, tree: Tree) -> list[str]:
  """The paths of the leaves that a filter matches, in the tree's order."""
  flags = jax.tree.leaves(mask(filter, tree))
  return [path for (path, _), flag in zip(leaves_with_paths(tree), flags, strict=True) if flag]
