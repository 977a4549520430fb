"""Training some rows or columns of a matrix, at the cost of those alone: `submatrix` and its leaf `Submatrix`."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxft.transforms.beside import Beside
from jaxft.transforms.depth import layer_of
from jaxft.transforms.filters import mask
from jaxft.transforms.leaves import dot, dot_transposed, lookup
from jaxft.transforms.paths import Tree, is_leaf, is_structured, unzip_with_path
from jaxft.transforms.protocol import ParamTransform


@partial(jax.tree_util.register_dataclass, data_fields=["w", "d", "indices"], meta_fields=["axis"])
@dataclasses.dataclass(frozen=True)
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

  @property
  def shape(self) -> tuple[int, ...]:
    return self.w.shape

  @property
  def dtype(self) -> jnp.dtype:
    return self.w.dtype

  @property
  def ndim(self) -> int:
    return len(self.shape)

  def materialize(self) -> Array:
    w = self.w.materialize() if is_structured(self.w) else self.w
    add = partial(_sum, axis=self.axis)
    for _ in range(self.ndim - 2):
      add = jax.vmap(add)
    return add(w, self.d, self.indices)

  def dot(self, x: Array) -> Array:
    return self._contract(x, dot, contracted=self.axis == -2)

  def dot_transposed(self, x: Array) -> Array:
    return self._contract(x, dot_transposed, contracted=self.axis == -1)

  def lookup(self, ids: Array) -> Array:
    rows = lookup(self.w, ids)
    if self.axis == -1:
      return rows.at[..., self.indices].add(lookup(self.d, ids).astype(rows.dtype), mode="drop")
    k = self.indices.shape[0]
    place = jnp.full(self.shape[0], k, jnp.int32).at[self.indices].set(jnp.arange(k, dtype=jnp.int32), mode="drop")
    return rows + jnp.take(self.d, place[ids], axis=0, mode="fill", fill_value=0).astype(rows.dtype)

  def _contract(self, x: Array, product: Any, contracted: bool) -> Array:
    n_out = self.shape[-1 if product is dot else -2]
    if is_structured(self.w):
      return product(x, self.w) + _beside(x, self.d, self.indices, product, contracted, n_out)
    # Formed again for the backward pass: kept from the forward pass, the sums of all layers are a copy of the model.
    formed = jax.checkpoint(lambda x, w, d: product(x, _sum(w, d, self.indices, axis=self.axis)))
    y = formed(x, self.w, jax.lax.stop_gradient(self.d))
    return y + _derivative_alone(x, self.d, self.indices, product, contracted, n_out)


def _sum(w: Array, d: Array, indices: Array, *, axis: int) -> Array:
  at = w.at[indices] if axis == -2 else w.at[:, indices]
  old = at.get(mode="fill", fill_value=0)
  return at.set((old.astype(jnp.float32) + d.astype(jnp.float32)).astype(w.dtype), mode="drop")


def _beside(x: Array, d: Array, indices: Array, product: Any, contracted: bool, n_out: int) -> Array:
  """The product of x with d alone, where `contracted` says that d's cut axis is the one summed over."""
  if contracted:
    return product(jnp.take(x, indices, axis=-1, mode="fill", fill_value=0), d)
  return jnp.zeros((*x.shape[:-1], n_out), x.dtype).at[..., indices].add(product(x, d), mode="drop")


@partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def _derivative_alone(x: Array, d: Array, indices: Array, product: Any, contracted: bool, n_out: int) -> Array:
  """Zeros, with the derivative in d of `_beside`."""
  return jnp.zeros((*x.shape[:-1], n_out), x.dtype)


@_derivative_alone.defjvp
def _(product, contracted, n_out, primals, tangents):
  x, _, indices = primals
  return jnp.zeros((*x.shape[:-1], n_out), x.dtype), _beside(x, tangents[1], indices, product, contracted, n_out)


def submatrix(
    indices: Mapping[str, Int[np.ndarray, "*layers k"]], *, axis: int | Mapping[str, int] = -2,
    dtype: jnp.dtype = jnp.float32,
) -> ParamTransform:
  """Trains chosen rows or columns of matrices; they start where they are.

      {'down': {'kernel': W [m, n]}}, {'**/down/*': [k]}  ->  trainable {'down': {'kernel': D [k, n]}}

  One step costs `4 + 2 q` FLOPs per parameter and token, q the fraction of rows or columns that trains.

  Args:
    indices: for each glob the rows or columns of the matrices it matches: `[k]`, the same in every layer, or `[L, k]`,
      a row for each layer of the model, where -1 stands for none (layers with fewer, see `unit_indices`).
    axis: -2 for rows, the input side of `x @ w`; -1 for columns; or one for each glob.
    dtype: of what trains.

  Raises (from `split`):
    ValueError: a glob matches nothing, or a leaf that is no matrix, or that another glob matches; an index that is
      repeated or out of range; an axis that is neither -2 nor -1.

  Source: the trained blocks of Yang et al. 2024, S2FT (arXiv 2412.06289). There, weights are permuted so that a block
  is contiguous; here it is gathered, which is the same mathematics and leaves the weights in place. Rows of an
  embedding are tuned the same way (`lookup`).
  """
  axes = {glob: axis[glob] if isinstance(axis, Mapping) else axis for glob in indices}
  for glob, a in axes.items():
    if a not in (-2, -1):
      raise ValueError(f"axis must be -2 (rows) or -1 (columns); got {a!r} for {glob}")

  def owners(tree: Tree) -> Tree:
    """For each leaf the glob that matches it, or ''."""
    flags = {glob: jax.tree.leaves(mask(glob, tree)) for glob in indices}
    structure = jax.tree.structure(tree, is_leaf=is_leaf)
    return structure.unflatten([" and ".join(g for g in indices if flags[g][i]) for i in range(structure.num_leaves)])

  def split(key: jax.Array, params: Tree):
    del key
    problems: list[str] = []

    def hold(path: str, leaf: Any, glob: str) -> tuple[Any, Any]:
      if not glob:
        return leaf, None
      if glob not in indices:
        problems.append(f"{path} is matched by {glob}")
        return leaf, None
      layer = layer_of(path, leaf)
      if leaf.ndim - np.ndim(layer) != 2:
        problems.append(f"{path} {tuple(leaf.shape)} is no matrix [m, n] or stack of them [L, m, n]")
        return leaf, None
      size = leaf.shape[axes[glob]]
      here, problem = _of_layers(np.asarray(indices[glob], np.int32), layer, size)
      if problem:
        problems.append(f"{path} {tuple(leaf.shape)} {problem}")
        return leaf, None
      shape = list(leaf.shape)
      shape[axes[glob]] = here.shape[-1]
      return Beside(leaf, jnp.asarray(here)), jnp.zeros(shape, dtype)

    frozen, trainable = unzip_with_path(hold, params, owners(params))
    if problems:
      raise ValueError(f"indices do not fit {len(problems)} leaves: " + "; ".join(problems[:8]))
    return frozen, trainable

  def join(frozen: Tree, trainable: Tree):
    take = lambda w, d, glob: w if d is None else Submatrix(w.w, d, w.note, axis=axes[glob])
    return jax.tree.map(take, frozen, trainable, owners(frozen), is_leaf=is_leaf)

  return ParamTransform(split, join)


def _of_layers(given: np.ndarray, layer: Any, size: int) -> tuple[np.ndarray, str]:
  """The indices of a leaf's layers, with -1 moved beyond the matrix, and what is wrong with them."""
  if given.ndim not in (1, 2) or not given.shape[-1]:
    return given, f"takes indices [k] or [L, k]; got shape {given.shape}"
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


def batched_delta_dot(
    x: Float[Array, "batch *time n_in"], w: Any, d: Float[Array, "adapters ..."], indices: Int[Array, "adapters k"],
    adapter: Int[Array, "batch"], *, axis: int = -2,
) -> Float[Array, "batch *time n_out"]:
  """`x @ w` with a delta of its own for each example: many fine-tunings of one base served in one batch.

      rows:     y_b = x_b @ w + x_b[.., idx_b] @ d_b           columns:  y_b = x_b @ w;  y_b[.., idx_b] += x_b @ d_b

  Args:
    x: activations.
    w: the shared base, an array or a structured leaf `[n_in, n_out]`.
    d: of each adapter, `[adapters, k, n_out]` for rows, `[adapters, n_in, k]` for columns.
    indices: of each adapter; one beyond the matrix stands for none.
    adapter: which one each example takes.
    axis: -2 for rows, -1 for columns.

  Source: Yang et al. 2024, S2FT (arXiv 2412.06289), section on parallel serving.
  """
  y = dot(x, w)
  one = lambda x, d, indices: _beside(x, d, indices, dot, axis == -2, y.shape[-1])
  return y + jax.vmap(one)(x, d[adapter], indices[adapter])
