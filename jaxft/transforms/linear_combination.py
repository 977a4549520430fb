"""Learned coefficients over fixed checkpoints or task vectors: aTLAS, learned soups and AdaMerging in one transform."""

import functools
import operator
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt

from jaxft.checks import nearest
from jaxft.leaves.annotated import Annotated, map_weight, noted
from jaxft.leaves.materialize import materialize
from jaxft.leaves.sums import Formed
from jaxft.signatures import AnyArray, check_arrays, explain_errors
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice, mask, shapes_of
from jaxft.tree.depth import layer_of, leaf_keys, num_layers, over_stack, stack_axes
from jaxft.tree.paths import Tree, fold_in_path, is_leaf, leaves_with_paths, map_with_path, unzip_with_path

GRANULARITIES = ("model", "layer", "leaf")
CONSTRAINTS = ("none", "softmax")


@check_arrays
def linear_combination(
    trees: Sequence[Tree],
    *,
    granularity: Literal["model", "layer", "leaf"] | int = "leaf",
    constraint: Literal["none", "softmax"] = "none",
    init: float | Sequence[float] = 0.0,
    share_by_shape: bool = False,
    recompute: Choice = "**/{kernel,weight}",
) -> ParamTransform:
  """Trains how much of each of n fixed trees goes into each block of the weights.

      constraint "none"     w_j = w_j0 + sum_i c_ij tau_ij              trees are task vectors, c is free
      constraint "softmax"  w_j = sum_i softmax_i(c_j) w_ij             trees are checkpoints

      params {'up': W, 'norm': s}
          ->  frozen {'up': Annotated(W, deltas [n, ...]), 'norm': Annotated(s, deltas [n, ...])}
              trainable {'up': [n], 'norm': [n]}                              ("leaf")

  aTLAS is ("leaf", "none"), with K partitions where granularity is K; the isotropic search of task arithmetic is
  ("model", "none"); a learned soup is ("model", "softmax"), by layer as its authors call it ("leaf", "softmax");
  AdaMerging is ("layer", "none") under `losses.entropy`. Forming the weights costs 4 n operations for each of them and
  step, not token; what trains, and what the optimizer holds, are the coefficients alone.

  >>> params, deltas = {"up": jnp.ones(2)}, [{"up": jnp.array([1.0, 0.0])}, {"up": jnp.array([0.0, 10.0])}]
  >>> transform = linear_combination(deltas)
  >>> frozen, trainable = transform.split(jax.random.key(0), params)
  >>> trainable
  {'up': Array([0., 0.], dtype=float32)}
  >>> transform.join(frozen, {"up": jnp.array([2.0, 0.5])})  # 1 + 2 * 1, 1 + 0.5 * 10
  {'up': Array([3., 6.], dtype=float32)}

  Args:
    trees: n task vectors, or n checkpoints, all like the params. A None leaf is a zero task vector; of a checkpoint it
      is the leaf of the params. Kept in the dtype that they come in, such as bfloat16.
    granularity: one coefficient of each tree for the whole model (`{"coefficients": [n]}`); for each layer (`{"layers":
      [L, n], "outside": [n]}`); for each leaf, of a stacked leaf for each of its layers (a tree like the params of
      `[n]` and `[L, n]`); or a number of partitions K: each leaf, of each layer, is cut at random in K parts of nearly
      equal size, the same for all trees, with a coefficient each (`[n, K]` and `[L, n, K]`).
    constraint: see above.
    init: of the coefficients, one number or one for each tree: 0 starts at the params, under softmax at the average.
    share_by_shape: draw one partition for all blocks of a shape in place of one for each block.
    recompute: matrices of which the weight is formed anew in each product and its backward pass (`Formed`), so that
      the layers' weights and gradients never lie side by side. The model multiplies these by `dot`, or runs in `lazy`;
      False forms plain arrays for any function.

  Returns:
    The transform. Leaves that are not floating point, or None in all trees, stay as they are. Coefficients are float32.

  Raises:
    ValueError: there is no tree, an unknown granularity or constraint, fewer than 1 partition, or an init that is not
      one number for each tree; from `split`: a tree lacks a leaf, has one that the params lack or of another shape, or
      all leaves are None.

  Source: Zhang et al. 2024, aTLAS (arXiv 2407.02880). The authors' code draws one partition for each shape
  (`share_by_shape`) and scales matrices only; here every block has its own, of any rank, as the paper defines it.
  Learned soups: Wortsman et al. 2022 (arXiv 2203.05482), whose temperature of the logits belongs to the loss.
  """
  trees, n = list(trees), len(trees)
  if not n:
    raise ValueError("trees must hold at least one task vector or checkpoint; got none")
  partitions = granularity if isinstance(granularity, int) else None
  if partitions is not None and partitions < 1 or partitions is None and granularity not in GRANULARITIES:
    raise ValueError(
        f"granularity must be one of {', '.join(GRANULARITIES)} or a number of partitions >= 1; got {granularity!r}")
  if constraint not in CONSTRAINTS:
    raise ValueError(f"constraint must be one of {', '.join(CONSTRAINTS)}; got {constraint!r}; "
                     f"{nearest(str(constraint), CONSTRAINTS)}")
  start = np.broadcast_to(np.asarray(init, np.float32), (n,)) if np.ndim(init) == 0 else np.asarray(init, np.float32)
  if start.shape != (n,):
    raise ValueError(f"init must be one number, or one for each of the {n} trees; got shape {start.shape}")

  def split(key: jax.Array, params: Tree) -> tuple[Tree, Tree]:
    banks = _banks(trees, params, fill=constraint == "softmax")
    outside = [path for path, leaf in leaves_with_paths(params) if path in banks and layer_of(path, leaf) is None]

    def hold(path: str, leaf: Any) -> tuple[Any, Any]:
      if path not in banks:
        return leaf, None
      lead = _lead(path, leaf)
      note = {"deltas": jnp.stack(banks[path], axis=len(lead))}
      if partitions is not None:
        note["partition"] = _draw_partition(key, path, leaf, partitions, share_by_shape)
      values = start if partitions is None else np.repeat(start[:, None], partitions, axis=1)
      return Annotated(leaf, note), jnp.broadcast_to(jnp.asarray(values), (*lead, *values.shape))

    frozen, coefficients = unzip_with_path(hold, params)
    if granularity == "model":
      return frozen, {"coefficients": jnp.asarray(start)}
    if granularity == "layer":
      depth = num_layers(params)
      shared = {"layers": jnp.broadcast_to(jnp.asarray(start), (depth, n)), "outside": jnp.asarray(start)}
      return frozen, {name: c for name, c in shared.items() if (depth if name == "layers" else outside)}
    return frozen, coefficients

  def join(frozen: Tree, trainable: Tree) -> Tree:
    whole = granularity in ("model", "layer")
    own = jax.tree.map(lambda _: None, frozen, is_leaf=is_leaf) if whole else trainable
    form = _average if constraint == "softmax" else _add

    def put(path: str, held: Any, c: Any, again: bool) -> Any:
      if not noted(held, "deltas"):
        return held
      lead = _lead(path, held)
      if granularity == "model":
        c = jnp.broadcast_to(trainable["coefficients"], (*lead, n))
      elif granularity == "layer":
        layer = layer_of(path, held)
        c = trainable["outside"] if layer is None else trainable["layers"][layer]
      parts = held.note | {"coefficients": c}
      if again and held.ndim - len(lead) == 2:
        return Formed(held.w, parts, form)
      return map_weight(held.w, lambda array: form(array.astype(jnp.float32), parts).astype(array.dtype))

    return map_with_path(put, frozen, own, mask(recompute, shapes_of(frozen), name="recompute", allow_empty=True))

  return ParamTransform(split, join)


@explain_errors
def coefficient_norm(coefficients: Tree, *, order: float = 1.0) -> Float[Array, ""]:
  """`mean over blocks of (sum_i |c_ij|^order)^(1 / order)`: a penalty that keeps few trees in each block (order 1).

  >>> coefficients = {"up": jnp.array([3.0, -4.0]), "down": jnp.array([0.0, 1.0])}
  >>> coefficient_norm(coefficients), coefficient_norm(coefficients, order=2)  # (7 + 1) / 2, (5 + 1) / 2
  (Array(4., dtype=float32), Array(3., dtype=float32))

  Args:
    coefficients: what `linear_combination` trains, with granularity "layer" or "leaf": leaves `[..., n]`.
    order: at least 1.

  Raises:
    ValueError: order is below 1.

  Source: the regularizer of Zhang et al. 2024 (arXiv 2407.02880), with a weight of 0.5.
  """
  if order < 1:
    raise ValueError(f"order must be >= 1; got {order}")
  # |c| as c sign(c), and no root of zero: the gradient where training starts is 0 and not NaN.
  size = lambda c: c * jax.lax.stop_gradient(jnp.sign(c))

  def norms(c: Array) -> Array:
    total = jnp.sum(size(c) ** order, axis=-1)
    return total if order == 1 else jnp.where(total > 0, jnp.where(total > 0, total, 1.0) ** (1 / order), 0.0)

  parts = [norms(c.astype(jnp.float32)).ravel() for c in jax.tree.leaves(coefficients)]
  return jnp.mean(jnp.concatenate(parts))


def _add(w: Array, parts: dict[str, Array]) -> Array:
  return w + _mixture(parts["coefficients"], parts)


def _average(w: Array, parts: dict[str, Array]) -> Array:
  del w  # gives shape and dtype
  c = parts["coefficients"]
  return _mixture(jax.nn.softmax(c, axis=-2 if "partition" in parts else -1), parts)


def _mixture(c: Array, parts: dict[str, Array]) -> Array:
  """`sum_i c_i delta_i`: c `[..., n]` or `[..., n, K]`, deltas `[..., n, *shape]`, partition `[..., *shape]`."""
  deltas, partition = parts["deltas"], parts.get("partition")
  if partition is None:
    lead, weights = c.ndim - 1, c.reshape(c.shape + (1,) * (deltas.ndim - c.ndim))
  else:
    lead, weigh = c.ndim - 2, lambda c, partition: c[:, partition]
    for _ in range(lead):
      weigh = jax.vmap(weigh)
    weights = weigh(c, partition)
  # A sum of n terms and no reduction: XLA fuses it into its neighbours, and on CPU its reduction is 300 times slower.
  at = lambda x, i: jax.lax.index_in_dim(x, i, lead, keepdims=False)
  terms = [at(weights, i) * at(deltas, i).astype(jnp.float32) for i in range(deltas.shape[lead])]
  return functools.reduce(operator.add, terms)


def _lead(path: str, leaf: Any) -> tuple[int, ...]:
  """The layer axis of a stacked leaf."""
  return tuple(leaf.shape[: stack_axes(path, leaf)])


def _banks(trees: Sequence[Tree], params: Tree, *, fill: bool) -> dict[str, list[AnyArray]]:
  """The n arrays of each leaf that takes part, by path; what a tree lacks is zero, or the params' own leaf (`fill`)."""
  known = [dict(leaves_with_paths(tree)) for tree in trees]
  own = {path: leaf for path, leaf in leaves_with_paths(params) if leaf is not None}
  for i, tree in enumerate(known):
    if extra := [path for path, leaf in tree.items() if leaf is not None and path not in own]:
      raise ValueError(f"trees[{i}] has a leaf that the params lack: {extra[0]}; {nearest(extra[0], list(own))}")
  banks = {}
  for path, leaf in own.items():
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      continue
    for i, tree in enumerate(known):
      if path not in tree:
        raise ValueError(f"trees[{i}] lacks {path}; a leaf that it has no part in must be None")
      if tree[path] is not None and tuple(tree[path].shape) != tuple(leaf.shape):
        raise ValueError(f"trees[{i}] must have the shapes of the params; {path} has {tuple(tree[path].shape)}, the "
                         f"params {tuple(leaf.shape)}")
    arrays = [materialize(tree[path]) for tree in known]
    given = [x for x in arrays if x is not None]
    if given:
      hole = materialize(leaf) if fill else jnp.zeros(leaf.shape, given[0].dtype)
      banks[path] = [hole if x is None else x for x in arrays]
  if not banks:
    raise ValueError("trees must have a floating-point leaf that is not None; got none")
  return banks


def _draw_partition(
    key: jax.Array, path: str, leaf: Any, partitions: int, share_by_shape: bool
) -> UInt[Array, " *shape"]:
  """The part of each entry, for each layer of a stack anew unless one partition is shared by all blocks of a shape."""
  lead = _lead(path, leaf)
  shape = tuple(leaf.shape[len(lead):])
  size = int(np.prod(shape, dtype=np.int64))
  dtype = next(d for d in (jnp.uint8, jnp.uint16, jnp.uint32) if partitions - 1 <= jnp.iinfo(d).max)

  def draw(key: jax.Array) -> Array:
    return jax.random.permutation(key, (jnp.arange(size) % partitions).astype(dtype)).reshape(shape)

  if share_by_shape:
    return jnp.broadcast_to(draw(fold_in_path(key, str(shape))), (*lead, *shape))
  keys = leaf_keys(key, path, leaf)
  return over_stack(draw, keys)(keys)
