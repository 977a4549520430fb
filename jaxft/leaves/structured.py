"""Structured leaves: small dataclasses that stand for an array in a params tree without forming it.

Each has the logical `shape` and `dtype` of the array it stands for, computed from its parts, so that a leaf whose
parts carry a leading layer axis can be sliced by `jax.lax.scan` like an array; `materialize()` forms the array;
`dot(x)` and `dot_transposed(x)` contract it with an array in its cheap form; `lookup(ids)` reads rows.
Any class with these is a structured leaf: there is no base class. They nest: QLoRA is `LowRank(w=Quantized(...))`.
What is formed is rounded to `dtype` once, however deep leaves nest: within `materialize`, parts are read `unrounded`.

`dot`, `dot_transposed` and `lookup` of this module accept an array or a leaf, and are what the models multiply with.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxft.tree.depth import leaf_keys
from jaxft.tree.paths import Tree, is_structured, map_with_path


def dot(x: Float[Array, "... n_in"], w: Any) -> Float[Array, "... n_out"]:
  """`x @ w`: the last axis of x with the second to last of w, an array or a structured leaf of rank 2.

  The leading axes of x are flattened first: XLA's CPU backend contracts two batch axes in the backward pass about
  three times slower than one, and other backends flatten them anyway. The weight takes x's dtype.
  """
  if is_structured(w):
    return w.dot(x)
  y = x.reshape(-1, x.shape[-1]) @ w.astype(x.dtype)
  return y.reshape(*x.shape[:-1], w.shape[-1])


def dot_transposed(x: Float[Array, "... n_out"], w: Any) -> Float[Array, "... n_in"]:
  """`x @ w.T`: the last axis of x with the last of w; a tied embedding read as the output head."""
  if is_structured(w):
    return w.dot_transposed(x)
  y = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), w.astype(x.dtype), (((1,), (1,)), ((), ())))
  return y.reshape(*x.shape[:-1], w.shape[-2])


def _thin(x: Float[Array, "... n_in"], a: Any) -> Float[Array, "... rank"]:
  """`dot(x, a)` for a matrix of few columns, written so that its gradient is formed as `[rank, n_in]`.

  Left alone, XLA folds the transpose into the product of the backward pass, `x.T @ g` with a handful of columns, which
  its CPU backend computes seven times slower than `g.T @ x`. The barrier keeps the two apart; it costs nothing.
  """
  if is_structured(a):
    return a.dot(x)
  return dot_transposed(x, jax.lax.optimization_barrier(a.T))


def lookup(w: Any, ids: Int[Array, "..."]) -> Float[Array, "... dim"]:
  """Rows of w, an array or a structured leaf `[vocab, dim]`."""
  if is_structured(w):
    return w.lookup(ids)
  return jnp.take(w, ids, axis=0)


def materialize(tree: Tree) -> Tree:
  """The plain checkpoint: every structured leaf of the tree replaced by the array that it stands for."""
  return map_with_path(lambda path, leaf: _array(leaf), tree)


def _array(x: Any) -> Any:
  return x.materialize() if is_structured(x) else x


def unrounded(x: Any) -> Array:
  """An array, or what a structured leaf stands for before it is rounded to its dtype, in float32 or wider.

  For `materialize` methods, which compute from it and round once. It asks nothing of a leaf: one with its parts in
  float32 forms the unrounded array. A leaf that then still has its dtype chose it itself, as a `Quantized` decoded to
  bfloat16, whose products too read the decoded values: such a one is formed in that dtype.
  """
  x = _array(_widened(x))
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _widened(x: Any) -> Any:
  """An array of a narrower float dtype in float32, a leaf with its parts so; all else as it is."""
  if not _is_narrow(x):
    return x
  if not is_structured(x):
    return x.astype(jnp.float32)
  if not jax.tree_util.all_leaves([x]):  # a class that is no pytree is a leaf to JAX
    wide = jax.tree.map(_widened, x, is_leaf=lambda part: part is not x and is_structured(part))
    if not _is_narrow(wide):
      return wide
  return x.materialize().astype(jnp.float32)


def _is_narrow(x: Any) -> bool:
  dtype = getattr(x, "dtype", None)  # which a Python scalar lacks
  return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 4


@partial(jax.tree_util.register_dataclass, data_fields=["w", "a", "b", "key"], meta_fields=["scale", "dropout"])
@dataclasses.dataclass(frozen=True)
class LowRank:
  """`w + scale * a @ b`, with w `[..., m, n]`, a `[..., m, r]`, b `[..., r, n]`.

  Dropout acts on the input of `a`, and only where `key` is set (`seed_dropout`): without a key it is the mean model.
  """

  w: Any
  a: Any
  b: Any
  scale: float = 1.0
  dropout: float = 0.0
  key: Any = None

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
    return (unrounded(self.w) + self.scale * (unrounded(self.a) @ unrounded(self.b))).astype(self.dtype)

  def dot(self, x: Array) -> Array:
    return dot(x, self.w) + self.scale * dot(_thin(self._drop(x), self.a), self.b)

  def dot_transposed(self, x: Array) -> Array:
    return dot_transposed(x, self.w) + self.scale * dot_transposed(dot_transposed(self._drop(x), self.b), self.a)

  def lookup(self, ids: Array) -> Array:
    return lookup(self.w, ids) + self.scale * dot(lookup(self.a, ids), self.b).astype(self.dtype)

  def _drop(self, x: Array) -> Array:
    if self.key is None or self.dropout == 0.0:
      return x
    keep = jax.random.bernoulli(self.key, 1.0 - self.dropout, x.shape)
    return jnp.where(keep, x / (1.0 - self.dropout), 0).astype(x.dtype)


@partial(jax.tree_util.register_dataclass, data_fields=["frozen", "trained", "order"], meta_fields=["axis"])
@dataclasses.dataclass(frozen=True)
class Concatenated:
  """`take(concatenate([frozen, trained], axis), order, axis)`: rows or columns of which only some train.

  Kept apart so that the backward pass forms the gradient of the trained part alone. `axis` is -2 (rows, the input
  side of `x @ w`) or -1 (columns); `order` `[..., n]` gives, for each row of the array, its index in the
  concatenation, None where the concatenation is already in order.
  """

  frozen: Any
  trained: Any
  order: Any = None
  axis: int = -2

  @property
  def shape(self) -> tuple[int, ...]:
    shape = list(self.frozen.shape)
    shape[self.axis] += self.trained.shape[self.axis]
    return tuple(shape)

  @property
  def dtype(self) -> jnp.dtype:
    return self.frozen.dtype

  @property
  def ndim(self) -> int:
    return len(self.shape)

  def materialize(self) -> Array:
    parts = (_array(self.frozen), _array(self.trained).astype(self.dtype))
    w = jnp.concatenate(parts, axis=self.axis)
    return w if self.order is None else _take_along(w, self.order, self.axis)

  def dot(self, x: Array) -> Array:
    return self._contract(x, self.axis == -2, dot)

  def dot_transposed(self, x: Array) -> Array:
    return self._contract(x, self.axis == -1, dot_transposed)

  def lookup(self, ids: Array) -> Array:
    if self.axis == -1:
      rows = jnp.concatenate([lookup(self.frozen, ids), lookup(self.trained, ids).astype(self.dtype)], axis=-1)
      return rows if self.order is None else jnp.take(rows, self.order, axis=-1)
    ids = ids if self.order is None else jnp.take(self.order, ids)
    n = self.frozen.shape[-2]
    old = lookup(self.frozen, jnp.minimum(ids, n - 1))
    new = lookup(self.trained, jnp.maximum(ids - n, 0)).astype(old.dtype)
    return jnp.where((ids < n)[..., None], old, new)

  def _contract(self, x: Array, contracted: bool, product: Any) -> Array:
    if contracted:  # the cut axis is summed over: the product is a sum of two
      n = self.frozen.shape[self.axis]
      x = x if self.order is None else jnp.take(x, jnp.argsort(self.order), axis=-1)
      return product(x[..., :n], self.frozen) + product(x[..., n:], self.trained)
    y = jnp.concatenate([product(x, self.frozen), product(x, self.trained)], axis=-1)
    return y if self.order is None else jnp.take(y, self.order, axis=-1)


def _take_along(w: Array, order: Array, axis: int) -> Array:
  order = jnp.expand_dims(order, -1 if axis == -2 else -2)
  return jnp.take_along_axis(w, order, axis=axis)


@partial(jax.tree_util.register_dataclass, data_fields=["w", "s"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Scaled:
  """`w * s`, s broadcast against w: `[..., 1, n]` scales outputs, `[..., m, 1]` inputs, `[..., 1, 1]` the whole."""

  w: Any
  s: Any

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
    return (unrounded(self.w) * self.s).astype(self.dtype)

  def dot(self, x: Array) -> Array:
    rows, columns = self._sides()
    y = dot(x if rows is None else x * rows.astype(x.dtype), self.w)
    return y if columns is None else y * columns.astype(y.dtype)

  def dot_transposed(self, x: Array) -> Array:
    rows, columns = self._sides()
    y = dot_transposed(x if columns is None else x * columns.astype(x.dtype), self.w)
    return y if rows is None else y * rows.astype(y.dtype)

  def lookup(self, ids: Array) -> Array:
    rows, columns = self._sides()
    y = lookup(self.w, ids)
    y = y if rows is None else y * (rows[ids] if rows.shape[0] > 1 else rows)[..., None].astype(y.dtype)
    return y if columns is None else y * columns.astype(y.dtype)

  def _sides(self) -> tuple[Array | None, Array | None]:
    """The scale as a vector over rows or over columns of a rank-2 leaf; both may be of length 1."""
    if self.s.shape[-2] != 1 and self.s.shape[-1] != 1:
      raise ValueError(f"Scaled contracts only with a scale of rows or of columns; got s of shape {self.s.shape}")
    if self.s.shape[-1] == 1:
      return self.s[..., 0], None
    return None, self.s[..., 0, :]


def seed_dropout(params: Tree, key: Array) -> Tree:
  """Sets the key of every leaf that has a dropout rate, folded from its path; a step's objective calls this.

  Stacked leaves get one key per layer, and a leaf within another its own. Leaves without dropout are returned as they
  are, so the cost of none is none.
  """

  def seed(path: str, leaf: Any) -> Any:
    if not (is_structured(leaf) and dataclasses.is_dataclass(leaf)):
      return leaf
    within = {f.name: getattr(leaf, f.name) for f in dataclasses.fields(leaf)}
    new = {name: seed(f"{path}/{name}", part) for name, part in within.items() if is_structured(part)}
    if getattr(leaf, "dropout", 0.0):
      new["key"] = leaf_keys(key, path, leaf)
    return dataclasses.replace(leaf, **new) if any(part is not within[name] for name, part in new.items()) else leaf

  return map_with_path(seed, params)
