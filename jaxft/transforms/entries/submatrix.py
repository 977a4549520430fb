"""Training some rows or columns of a matrix, at the cost of those alone: `submatrix`, its leaf, and its delta.

    frozen, trainable = transform.split(key, params)
    ...                                                      # some steps
    delta = submatrix_delta(frozen, trainable)               # by path: indices, values, axis
    fused, old = fuse(params, delta)                         # `jaxft.merging`; unfuse(fused, old) is params, bit by bit
    served = serve(params, [delta, other], adapter)          # many of them in one batch
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxft.choices.rows import packed_indices, whole_rows
from jaxft.leaves.annotated import Annotated
from jaxft.leaves.cuts import Cut, Places, Span, cut
from jaxft.leaves.leaf_class import leaf_class
from jaxft.leaves.materialize import unrounded
from jaxft.leaves.products import dot, dot_transposed, lookup
from jaxft.leaves.row_delta import RowDelta, change_row_delta, check_axis, delta_product, delta_rows
from jaxft.signatures import AnyArray, explain_errors
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.boxes import unboxed, weights
from jaxft.tree.choice import Choice, matching_paths, trainable_choice
from jaxft.tree.depth import layer_axes, layer_of, stack_axes
from jaxft.tree.matrices import is_matrix
from jaxft.tree.paths import Tree, is_float, is_leaf, is_structured, leaves_with_paths, map_with_path, unzip_with_path


@leaf_class(meta=("axis",))
class Submatrix:
  """`w` with `d` added to the rows (axis -2) or columns (axis -1) at `indices`.

  w `[..., m, n]`; d `[..., k, n]` or `[..., m, k]`; indices `[..., k]`, where one beyond the matrix stands for none.

  A product multiplies by the sum, which costs nothing to form beside it, and takes the derivative in `d` as a product
  of its own: forward 2, input gradient 2, and 2 k/m for d, in FLOPs per parameter and token. Differentiated as it
  stands, the sum would cost the gradient of the whole matrix. Of a structured `w` the sum cannot be formed, and the
  product with d is taken beside it: 4 + 6 k/m. The sum is a copy of the matrix in every pass: for few tokens, as in
  decoding, materialize once.
  """

  w: Any
  d: Any
  indices: Any
  axis: int = -2

  def materialize(self) -> Array:
    w = unrounded(self.w) if is_structured(self.w) else self.w
    return change_row_delta(w, RowDelta(self.indices, self.d, self.axis), _add).astype(self.w.dtype)

  def dot(self, x: Array) -> Array:
    return self._contract(x, dot, contracted=self.axis == -2)

  def dot_transposed(self, x: Array) -> Array:
    return self._contract(x, dot_transposed, contracted=self.axis == -1)

  def lookup(self, ids: AnyArray) -> Array:
    rows = lookup(self.w, ids)
    return rows + delta_rows(ids, self.d, self.indices, axis=self.axis, shape=self.w.shape).astype(rows.dtype)

  def cut(self, axis: int, take: Span | Places) -> Any:
    if axis == self.axis:
      return Cut(self, take, axis)
    return Submatrix(cut(self.w, axis, take), take(self.d, axis), self.indices, self.axis)

  def _contract(self, x: Array, product: Any, contracted: bool) -> Array:
    n_out = self.w.shape[-1 if product is dot else -2]
    if is_structured(self.w):
      return product(x, self.w) + delta_product(x, self.d, self.indices, product, contracted, n_out)
    # Formed again for the backward pass: kept from the forward pass, the sums of all layers are a copy of the model.
    formed = jax.checkpoint(lambda x, w, d: product(x, change_row_delta(w, RowDelta(self.indices, d, self.axis), _add)))
    y = formed(x, self.w, jax.lax.stop_gradient(self.d))
    return y + _derivative_alone(x, self.d, self.indices, product, contracted, n_out)


def _add(w: Array, d: Array) -> Array:
  return (w.astype(jnp.float32) + d.astype(jnp.float32)).astype(w.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def _derivative_alone(x: Array, d: Array, indices: Array, product: Any, contracted: bool, n_out: int) -> Array:
  """Zeros, with the derivative in d of `delta_product`."""
  return _zeros(x, d, indices, n_out)


@_derivative_alone.defjvp
def _(product, contracted, n_out, primals, tangents):
  x, d, indices = primals
  return _zeros(x, d, indices, n_out), delta_product(x, tangents[1], indices, product, contracted, n_out)


def _zeros(x: Array, d: Array, indices: Any, n_out: int) -> Array:
  """Zeros that `vmap` batches wherever it batches the derivative: inside a scan JAX does not do so by itself."""
  some = x[..., :1] + (d[(0,) * d.ndim] + indices[0]).astype(x.dtype)
  return jnp.where(jnp.zeros((*x.shape[:-1], n_out), bool), some, jnp.zeros((), x.dtype))


@explain_errors
def submatrix(
    select: Choice | None = None, *, indices: Mapping[str, np.ndarray | Sequence[int]] | None = None,
    axis: int | Mapping[str, int] | None = None, dtype: DTypeLike = jnp.float32,
) -> ParamTransform:
  """Trains chosen rows or columns of matrices; they start where they are.

      {'down': {'kernel': W [m, n]}}, indices={'**/down/*': [k]}  ->  trainable {'down': {'kernel': D [k, n]}}

  One step costs `4 + 2 q` FLOPs per parameter and token, q the fraction of rows or columns that trains.

  >>> params = {"down": jnp.ones((4, 3))}
  >>> _, trainable = submatrix(indices={"down": np.array([0, 2])}).split(jax.random.key(0), params)
  >>> jax.tree.map(jnp.shape, trainable)
  {'down': (2, 3)}

  Args:
    select: a choice of whole rows or columns (`jaxft.tree.choice`): `choose_rows`, `s2ft_units`, or whole matrices.
    indices: in place of it, for each glob the rows or columns of the matrices it matches: `[k]`, the same in every
      layer, or `[L, k]`, a row for each layer of the model, where -1 stands for none (layers with fewer, see
      `unit_indices`). Of experts, all in a layer have the same.
    axis: -2 for rows, the input side of `x @ w`; -1 for columns; for indices, also one for each glob. None takes of
      each leaf that a choice has the rows if these are whole, and else the columns; of indices the rows.
    dtype: of what trains.

  Raises:
    TypeError: both select and indices are given, or neither.
    ValueError: indices names no glob; axis is neither -2 nor -1, or lacks one of the globs; from `split`: a glob
      matches nothing, or a leaf that is no matrix, or that another glob matches; a choice of some rows in part, or of
      nothing; indices that are not integers, or one that is repeated or out of range.

  Source: the trained blocks of Yang et al. 2024, S2FT (arXiv 2412.06289). There, weights are permuted so that a block
  is contiguous; here it is gathered, which is the same mathematics and leaves the weights in place. Rows of an
  embedding are tuned the same way (`lookup`).
  """
  if (select is None) == (indices is None):
    raise TypeError(f"submatrix takes select or indices; got {'neither' if select is None else 'both'}")
  if select is None:
    if not indices:
      raise ValueError("indices must have at least one glob, for otherwise nothing trains; got {}")
    if isinstance(axis, Mapping) and (missing := [glob for glob in indices if glob not in axis]):
      raise ValueError(f"axis must have an entry for each glob of indices; it lacks {', '.join(map(repr, missing))}")
    name, find = "indices", partial(_by_glob, indices, axis)
  else:
    if isinstance(axis, Mapping):
      raise ValueError(f"axis must be -2, -1 or None beside select, which names no globs of indices; got {axis}")
    name, find = "select", partial(_by_choice, select, axis)
  for a in axis.values() if isinstance(axis, Mapping) else () if axis is None else (axis,):
    check_axis(a)

  def split(key: jax.Array, params: Tree):
    del key
    found = find(params)
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves_with_paths(params) if leaf is not None}
    if wrong := [f"{path} {shapes[path]} {problem}" for path, (_, _, problem) in found.items() if problem]:
      raise ValueError(f"{name} must fit the leaves; {len(wrong)} differ: " + "; ".join(wrong[:8]))
    if not found:
      raise ValueError(f"{name} must have at least one row or column; got none")

    def hold(path: str, leaf: Any) -> tuple[Any, Any]:
      if path not in found:
        return leaf, None
      here, a, _ = found[path]
      shape = list(leaf.shape)
      shape[a] = here.shape[-1]
      return Annotated(leaf, {_NOTES[a]: jnp.asarray(here)}), jnp.zeros(shape, dtype)

    return unzip_with_path(hold, params)

  def join(frozen: Tree, trainable: Tree):
    def take(path: str, w: Any, d: Any) -> Any:
      if d is None:
        return w
      chosen, a = _noted(path, w)
      return Submatrix(w.w, d, chosen, axis=a)

    return map_with_path(take, frozen, trainable)

  return ParamTransform(split, join)


# The name under which the frozen side notes the indices, by axis: names are static where the sides are traced.
_NOTES = {-2: "row_indices", -1: "column_indices"}


def _noted(path: str, held: Any) -> tuple[Any, int]:
  """The indices and the axis that `split` noted beside a leaf."""
  note = held.note if isinstance(held, Annotated) else None
  found = [(note[name], axis) for axis, name in _NOTES.items() if isinstance(note, dict) and name in note]
  if not found:
    raise ValueError(f"frozen and trainable must be the two sides of a submatrix; {path} is of another transform")
  return found[0]


@explain_errors
def submatrix_delta(frozen: Tree, trainable: Tree) -> dict[str, RowDelta]:
  """`{path: RowDelta(indices, values, axis)}` of the two sides of a `submatrix`: what to store, add, fuse and serve.

  Exact, whatever the size of the moves: `apply_delta(params, delta)` has the bits of `materialize(join(...))`.

  >>> sides = submatrix(indices={"w": np.array([1])}).split(jax.random.key(0), {"w": jnp.ones((2, 3))})
  >>> submatrix_delta(*sides)["w"]
  RowDelta(indices=Array([1], dtype=int32), values=Array([[0., 0., 0.]], dtype=float32), axis=-2)

  Args:
    frozen, trainable: both sides, as `split` gave them and training left them.

  Raises:
    ValueError: a leaf that trains is not of a `submatrix`.

  Source: the separable adapters of Yang et al. 2024, S2FT (arXiv 2412.06289).
  """
  delta: dict[str, RowDelta] = {}
  frozen, trainable = weights(frozen), unboxed(trainable)
  sides = jax.tree.structure(frozen, is_leaf=is_leaf).flatten_up_to(trainable)
  for (path, held), values in zip(leaves_with_paths(frozen), sides, strict=True):
    if values is None:
      continue
    indices, axis = _noted(path, held)
    delta[path] = RowDelta(indices, values, axis)
  return delta


_KINDS = {-2: "rows", -1: "columns", None: "rows and columns"}
# The indices of a matrix, their axis, and what is wrong with them.
Found = tuple[np.ndarray, int, str]


def _by_glob(indices: Mapping[str, Any], axis: int | Mapping[str, int] | None, params: Tree) -> dict[str, Found]:
  """By path, what is said of it by the one glob that matches it."""
  leaves, owners = dict(leaves_with_paths(params)), {}
  for glob in indices:
    for path in matching_paths(glob, params, name="indices"):
      owners.setdefault(path, []).append(glob)
  found: dict[str, Found] = {}
  for path, globs in owners.items():
    a = axis[globs[0]] if isinstance(axis, Mapping) else axis or -2
    here, problem = np.asarray(indices[globs[0]]), _no_matrix(path, leaves[path])
    if len(globs) > 1:
      problem = f"is matched by {' and '.join(globs)}"
    if not problem:
      here, problem = _of_layers(here, layer_of(path, leaves[path]), leaves[path].shape[a])
    if not problem and stack_axes(path, leaves[path]) > layer_axes(path, leaves[path]):  # the same of each expert
      here = np.broadcast_to(here[..., None, :], (*leaves[path].shape[:-2], here.shape[-1]))
    found[path] = here, a, problem
  return found


def _by_choice(select: Choice, axis: int | None, params: Tree) -> dict[str, Found]:
  """By path, the rows or columns that a choice has."""
  found: dict[str, Found] = {}
  flags = jax.tree.leaves(trainable_choice(select, params))
  for (path, leaf), flag in zip(leaves_with_paths(params), flags, strict=True):
    if not np.any(flag):
      continue
    problem = _no_matrix(path, leaf)
    tried = () if problem else (-2, -1) if axis is None else (axis,)
    whole = {a: rows for a in tried if (rows := whole_rows(flag, path, leaf, a)) is not None}
    if whole:
      a = next(iter(whole))
      found[path] = packed_indices(whole[a], leaf.shape[a]), a, ""
    else:
      in_part = f"has some {_KINDS[axis]} in part, which is for sparse_delta"
      found[path] = np.zeros(0), -2, problem or in_part
  return found


def _no_matrix(path: str, leaf: Any) -> str:
  if not is_float(leaf):
    return f"is {leaf.dtype}, and no weight of floating point"
  return "" if is_matrix(path, leaf) else "is no matrix [m, n] or stack of them [L, m, n]"


def _of_layers(given: np.ndarray, layer: Any, size: int) -> tuple[np.ndarray, str]:
  """The indices of a leaf's layers, with -1 moved beyond the matrix, and what is wrong with them."""
  if given.ndim not in (1, 2) or not given.shape[-1]:
    return given, f"takes indices [k] or [L, k]; got shape {given.shape}"
  if not np.issubdtype(given.dtype, np.integer):
    return given, f"takes integer indices; got {given.dtype}"
  if given.ndim == 2:
    if layer is None:
      return given, f"lies outside the layers and takes indices [k]; got shape {given.shape}"
    if np.max(layer) >= len(given):
      return given, f"is of layer {np.max(layer)}; got indices for {len(given)} layers"
    given = given[layer]
  elif np.ndim(layer):
    given = np.tile(given, (len(layer), 1))
  if given.min() < -1 or given.max() >= size:
    return given, f"takes indices in 0..{size - 1}, or -1 for none; got {given.min()}..{given.max()}"
  for row in np.atleast_2d(given):
    if len(np.unique(row[row >= 0])) < (row >= 0).sum():
      return given, "has an index twice in one layer"
  return np.where(given < 0, size, given).astype(np.int32), ""
