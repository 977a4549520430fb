"""Rows and columns of matrices as a choice of entries, and such a choice as indices."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from jaxft.leaves.row_delta import check_axis
from jaxft.signatures import explain_errors
from jaxft.tree.choice import Choice, as_choice, entries, matching_paths
from jaxft.tree.depth import layer_axes, layer_of
from jaxft.tree.paths import Tree, leaves_with_paths, map_with_path


@explain_errors
def choose_rows(
    params: Tree, indices: Mapping[str, Int[np.ndarray, "... _"] | Sequence[int]], *, axis: int = -2
) -> Tree:
  """The choice of rows (axis -2) or columns (axis -1) of matrices.

      {'down': W [m, n]}, {'**/down': [1, 4]}  ->  {'down': booleans [m, n], True in rows 1 and 4}

  >>> choose_rows({"w": np.ones((3, 2))}, {"w": np.array([1])})
  {'w': array([[False, False],
         [ True,  True],
         [False, False]])}

  Args:
    params: arrays or shapes; layers stacked, cut or unrolled.
    indices: by glob, `[k]` for all layers or `[L, k]` for each one, where -1 stands for none: from `unit_indices`.
      k may be 0.
    axis: -2 or -1.

  Raises:
    ValueError: a glob matches nothing or a leaf that another matches; indices that are no whole numbers, out of range
      or of another number of layers; an axis that is neither.
  """
  check_axis(axis)
  owner: dict[str, str] = {}
  for glob in indices:
    for path in matching_paths(glob, params, name="indices"):
      if owner.setdefault(path, glob) != glob:
        raise ValueError(f"indices has two globs for {path}: {owner[path]!r} and {glob!r}")

  numbers = {glob: _whole_numbers(glob, given) for glob, given in indices.items()}

  def choose(path: str, leaf: Any) -> Any:
    if path not in owner:
      return False
    given, layer, size = numbers[owner[path]], layer_of(path, leaf), leaf.shape[axis]
    if given.ndim == 2:
      if layer is None or np.max(layer) >= len(given):
        raise ValueError(f"indices for {path} must be [k] or have a row for its layer; got {given.shape}")
      given = given[layer]
    if given.size and not -1 <= given.min() <= given.max() < size:
      raise ValueError(f"indices for {path} must lie in 0..{size - 1}, or be -1; got {given.min()}..{given.max()}")
    rows = np.zeros((*given.shape[:-1], size + 1), bool)
    np.put_along_axis(rows, given, True, axis=-1)  # -1 is the place beyond the last
    rows = rows[..., :size]
    rows = rows.reshape(*rows.shape[:-1], *([1] * (leaf.ndim - layer_axes(path, leaf) - 2)), size)
    return np.broadcast_to(rows[..., None] if axis == -2 else rows[..., None, :], tuple(leaf.shape))

  return map_with_path(choose, params)


def _whole_numbers(glob: str, given: Any) -> Int[np.ndarray, "... _"]:
  found = np.asarray(given)
  if found.ndim not in (1, 2) or found.size and not np.issubdtype(found.dtype, np.integer):
    raise ValueError(f"indices of {glob!r} must be whole numbers, [k] or [L, k]; got {found.dtype}{list(found.shape)}")
  return found.astype(np.int64)  # NumPy's empty array is one of floats


@explain_errors
def chosen_rows(choice: Choice, params: Tree, *, axis: int = -2) -> dict[str, Int[np.ndarray, "*layers k"]]:
  """A choice as indices: for each path the rows (or columns) that are chosen whole.

  >>> chosen_rows(choose_rows({"w": np.ones((3, 2))}, {"w": np.array([1])}), {"w": np.ones((3, 2))})
  {'w': array([1], dtype=int32)}

  Args:
    choice: see `jaxft.tree.choice`; a leaf or layer that is chosen whole has all of its rows.
    params: arrays or shapes.
    axis: -2 for rows, -1 for columns.

  Raises:
    ValueError: some row is chosen in part: such a choice is for `sparse_delta`; a leaf is no matrix; nothing is chosen.
  """
  check_axis(axis)
  found = {}
  flags = jax.tree.leaves(as_choice(choice, params, name="choice"))
  for (path, leaf), flag in zip(leaves_with_paths(params), flags, strict=True):
    if not np.any(flag):
      continue
    if leaf.ndim - layer_axes(path, leaf) != 2:
      raise ValueError(f"choice must be of matrices [m, n] or stacks of them [L, m, n]; {path} is {tuple(leaf.shape)}")
    rows = whole_rows(flag, path, leaf, axis)
    if rows is None:
      raise ValueError(
          f"choice must have whole {'rows' if axis == -2 else 'columns'}; of {path} {tuple(leaf.shape)} it has some in "
          "part, which is for sparse_delta")
    layer = layer_of(path, leaf)
    if not isinstance(layer, np.ndarray):
      found[path] = np.flatnonzero(rows).astype(np.int32)
      continue
    packed = packed_indices(rows, -1)
    found[path] = np.full((int(np.max(layer)) + 1, packed.shape[-1]), -1, np.int32)
    found[path][layer] = packed
  if not found:
    raise ValueError("choice must choose at least one row; got none")
  return found


def whole_rows(flag: Any, path: str, leaf: Any, axis: int) -> Bool[np.ndarray, "*layers size"] | None:
  """Which rows (or columns) of a matrix a choice has, None where it has some in part.

  >>> flags = np.array([[True, True], [False, False]])
  >>> whole_rows(flags, "w", np.ones((2, 2)), -2), whole_rows(flags, "w", np.ones((2, 2)), -1)
  (array([ True, False]), None)
  """
  flags = np.moveaxis(np.asarray(entries(flag, path, leaf)), axis, -1)
  rows = np.asarray(flags.any(axis=-2))
  return rows if (rows == flags.all(axis=-2)).all() else None


def packed_indices(rows: Bool[np.ndarray, "*layers size"], fill: int) -> Int[np.ndarray, "*layers k"]:
  """The indices of what is True in each row, the shorter ones filled up.

  >>> packed_indices(np.array([[True, True, False], [False, False, True]]), fill=3)
  array([[0, 1],
         [2, 3]], dtype=int32)
  """
  found = [np.flatnonzero(row) for row in rows.reshape(-1, rows.shape[-1])]
  width = max(map(len, found))
  filled = np.stack([np.pad(row, (0, width - len(row)), constant_values=fill) for row in found])
  return filled.astype(np.int32).reshape(*rows.shape[:-1], width)


@explain_errors
def head_units(heads: Int[np.ndarray, "k 2"], num_layers: int) -> list[Int[np.ndarray, " chosen"]]:
  """Heads as pairs `(layer, head)`, from `top_heads`, as the units of each layer, for `unit_indices`.

  >>> head_units(np.array([[0, 1], [2, 0], [2, 3]]), 3)
  [array([1]), array([], dtype=int64), array([0, 3])]

  Raises:
    ValueError: a layer out of range.
  """
  heads = np.asarray(heads)
  pairs = heads.ndim == 2 and heads.shape[1] == 2
  if not pairs or ((heads[:, 0] < 0) | (heads[:, 0] >= num_layers)).any():
    raise ValueError(f"heads must be pairs (layer, head) with layers in 0..{num_layers - 1}; got {heads.tolist()}")
  return [np.sort(heads[heads[:, 0] == layer, 1]) for layer in range(num_layers)]
