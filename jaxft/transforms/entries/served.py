"""Many sparse fine-tunings of one base served in one batch: `serve`, and the leaf `ServedDeltas` that it puts in.

    params = serve(base, [medicine, law], adapter=jnp.array([1, -1, 0]))   # law, the base itself, medicine
    generate(stepwise_decoder(params, config), prompts, key, max_new_tokens=64)  # prompts [3, time]
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

from jaxft.checks import nearest
from jaxft.leaves.leaf_class import leaf_class
from jaxft.leaves.products import dot, dot_transposed, lookup
from jaxft.leaves.row_delta import RowDelta, check_axis, delta_product, delta_rows
from jaxft.signatures import AnyArray, explain_errors
from jaxft.tree.paths import Tree, leaves_with_paths, map_with_path


@leaf_class(meta=("axis",))
class ServedDeltas:
  """`w` with, for each example of a batch, a delta of its own in some rows (axis -2) or columns (axis -1).

      rows:     y_b = x_b @ w + x_b[.., idx_b] @ d_b           columns:  y_b = x_b @ w;  y_b[.., idx_b] += x_b @ d_b

  w `[*layers, m, n]`; d `[*layers, adapters, k, n]` or `[*layers, adapters, m, k]`; indices `[*layers, adapters, k]`,
  where one beyond the matrix stands for none; adapter `[*layers, batch]`, where one that is no adapter stands for none.
  All have the layers in front, so that a scan over layers slices the leaf like an array.

  The first axis of what it is contracted with is the batch. It stands for as many matrices as there are examples, so it
  cannot be formed as one: `materialize` raises.
  """

  w: Any
  d: Any
  indices: Any
  adapter: Any
  axis: int = -2

  def __post_init__(self):
    check_axis(self.axis)

  def materialize(self) -> Array:
    raise ValueError(
        f"params of `serve` hold a matrix {self.w.shape} for each example and cannot be formed as one; merge a single "
        "delta with jaxft.merging.apply_delta(base, delta)")

  def dot(self, x: Array) -> Array:
    return dot(x, self.w) + self._own(x, partial(
        delta_product, product=dot, contracted=self.axis == -2, n_out=self.w.shape[-1]))

  def dot_transposed(self, x: Array) -> Array:
    return dot_transposed(x, self.w) + self._own(x, partial(
        delta_product, product=dot_transposed, contracted=self.axis == -1, n_out=self.w.shape[-2]))

  def lookup(self, ids: AnyArray) -> Array:
    rows = lookup(self.w, ids)
    return rows + self._own(ids, partial(delta_rows, axis=self.axis, shape=self.w.shape)).astype(rows.dtype)

  def _own(self, x: AnyArray, contribution: Any) -> Array:
    """`contribution(x_b, d_b, indices_b)` of each example and its own delta."""
    batch = self.adapter.shape[0]
    if not x.ndim or x.shape[0] != batch:
      raise ValueError(f"adapter names one of the deltas for each of {batch} examples; got a batch of shape {x.shape}")
    adapters = self.d.shape[0]
    known = (self.adapter >= 0) & (self.adapter < adapters)
    place = jnp.where(known, self.adapter, adapters)  # beyond the last: filled with an empty delta
    d = jnp.take(self.d, place, axis=0, mode="fill", fill_value=0)
    indices = jnp.take(self.indices, place, axis=0, mode="fill", fill_value=self.w.shape[self.axis])
    return jax.vmap(contribution)(x, d, indices)


@explain_errors
def serve(params: Tree, deltas: Sequence[Mapping[str, RowDelta]], adapter: Int[AnyArray, " batch"]) -> Tree:
  """The base with a delta of its own for each example of a batch: params for `hidden_states`, `logits`, `generate`.

      {'down': W [m, n]}, [{'down': RowDelta([k], [k, n])}, ..]
          ->  {'down': ServedDeltas(W, [A, k, n], [A, k], adapter)}

  The result is that of running each example with its own merged params. Each product costs, over the base's,
  `2 k n` FLOPs a token for rows and `2 m k` for columns, in one batched matmul. Deltas need not change the same leaves
  or as many rows: the smaller are padded to the largest.

  >>> deltas = [{"w": RowDelta(jnp.array([row]), jnp.ones((1, 3)))} for row in (0, 1)]
  >>> params = serve({"w": jnp.zeros((2, 3))}, deltas, jnp.array([1, 0]))
  >>> dot(jnp.array([[1.0, 2.0], [1.0, 2.0]]), params["w"])
  Array([[2., 2., 2.],
         [1., 1., 1.]], dtype=float32)

  Args:
    params: the base; matrices may be structured leaves, such as quantized ones.
    deltas: of `submatrix_delta`, trained from this base in this layout of layers.
    adapter: which of the deltas each example takes; -1 for none.

  Raises:
    ValueError: there are no deltas; one names a path that the params lack, does not fit its leaf, or is not of rows or
      columns; adapter is not a vector of integers, or has one that is not in -1..len(deltas) - 1 (where it is traced,
      such a one counts as none).

  Source: Yang et al. 2024, S2FT (arXiv 2412.06289), section on parallel serving.
  """
  if not deltas:
    raise ValueError("deltas must have at least one delta; got none")
  if np.ndim(adapter) != 1 or not jnp.issubdtype(jnp.result_type(adapter), jnp.integer):
    raise ValueError(
        f"adapter must be a vector of integers, one for each example; got {jnp.result_type(adapter)} of shape "
        f"{np.shape(adapter)}")
  if not isinstance(adapter, Tracer):
    low, high = (int(f(np.asarray(adapter), initial=-1)) for f in (np.min, np.max))
    if low < -1 or high >= len(deltas):
      raise ValueError(f"adapter must lie in 0..{len(deltas) - 1}, or be -1 for none; got {low}..{high}")
  _check(params, deltas)
  adapter = jnp.asarray(adapter)

  def put(path: str, leaf: Any) -> Any:
    given = [delta.get(path) for delta in deltas]
    for axis in (-2, -1):
      of_axis = [strips if strips is not None and strips.axis == axis else None for strips in given]
      if any(strips is not None for strips in of_axis):
        leaf = _served(leaf, of_axis, adapter, axis)
    return leaf

  return map_with_path(put, params)


def _served(w: Any, given: list[RowDelta | None], adapter: Array, axis: int) -> ServedDeltas:
  """The leaf with the deltas that change its rows, or its columns, padded to as many of them and stacked."""
  layers = tuple(w.shape[:-2])
  k = max(strips.indices.shape[-1] for strips in given if strips is not None)
  dtype = jnp.result_type(*(strips.values for strips in given if strips is not None))
  shape = list(w.shape)
  shape[axis] = k

  def padded(strips: RowDelta | None) -> tuple[Array, Array]:
    if strips is None:
      return jnp.full((*layers, k), w.shape[axis], jnp.int32), jnp.zeros(shape, dtype)
    missing = [(0, 0)] * len(shape)
    missing[axis] = (0, k - strips.indices.shape[-1])
    indices = jnp.pad(strips.indices, [(0, 0)] * len(layers) + [missing[axis]], constant_values=w.shape[axis])
    return indices.astype(jnp.int32), jnp.pad(strips.values.astype(dtype), missing)

  indices, values = zip(*map(padded, given), strict=True)
  return ServedDeltas(
      w, jnp.stack(values, axis=len(layers)), jnp.stack(indices, axis=len(layers)),
      jnp.broadcast_to(adapter, (*layers, *adapter.shape)), axis)


def _check(params: Tree, deltas: Sequence[Mapping[str, RowDelta]]) -> None:
  leaves = dict(leaves_with_paths(params))
  for i, delta in enumerate(deltas):
    for path, strips in delta.items():
      if leaves.get(path) is None:
        raise ValueError(f"deltas[{i}] has a path that the params lack: {path}; {nearest(path, list(leaves))}")
      if not isinstance(strips, RowDelta):
        raise ValueError(f"deltas[{i}] must hold RowDelta, of submatrix_delta; got {type(strips).__name__} for {path}")
      if problem := strips.problem(tuple(leaves[path].shape)):
        raise ValueError(f"deltas[{i}] does not fit the params: {path} {problem}")
