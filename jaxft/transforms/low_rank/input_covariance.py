"""The covariance of the inputs of each adapted matrix: what CorDA and EVA start from.

    covariances = input_covariances(apply, params, "**/kernel")            of any model, batch by batch
    covariances = add_inputs(covariances, {path: inputs})                  of inputs that were recorded
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxft.leaves.leaf_class import leaf_class
from jaxft.leaves.materialize import materialize
from jaxft.leaves.products import dot, dot_transposed, lookup
from jaxft.signatures import AnyArray, explain_errors
from jaxft.transforms.matrices import adapt_matrices
from jaxft.tree.choice import Choice
from jaxft.tree.paths import Tree


def _gram(x: Float[Array, "batch ... m"], where: Bool[AnyArray, "batch ..."] | None, by_example: bool) -> Array:
  x = x.astype(jnp.float32)
  if where is not None and where.shape != x.shape[:-1]:
    raise ValueError(f"where must have the shape of the positions of the inputs, {x.shape[:-1]}; got {where.shape}")
  if where is not None:
    x = jnp.where(where[..., None], x, 0)
  if by_example:
    seen = x if where is None else jnp.where(where[..., None], x, -jnp.inf)
    most = jnp.abs(jnp.max(seen, axis=tuple(range(1, x.ndim)), keepdims=True))
    x = x / jnp.where((most > 0) & jnp.isfinite(most), most, 1)
  x = x.reshape(-1, x.shape[-1])
  return x.T @ x


@explain_errors
def add_inputs(
    covariances: Tree | None, inputs: Tree, *, where: Bool[AnyArray, "batch ..."] | None = None,
    by_example: bool = False,
) -> Tree:
  """Adds `x^T x` of a batch of layer inputs to running sums, in float32; not centered.

  >>> covariances = add_inputs(None, {"up": jnp.array([[1.0, 2.0]])})
  >>> add_inputs(covariances, {"up": jnp.array([[1.0, 0.0]])})["up"]
  Array([[2., 2.],
         [2., 4.]], dtype=float32)

  Args:
    covariances: the sums so far, `[m, m]` for each leaf of `inputs`; None at the start.
    inputs: a tree of the inputs of layers, `[batch, ..., m]`; a flat dict by path, say.
    where: `[batch, ...]`, which positions count; padding does not.
    by_example: divide each example by the largest of its entries, as CorDA does, so that none outweighs the others.

  Raises:
    ValueError: where does not fit the inputs.
  """
  grams = jax.tree.map(lambda x: _gram(x, where, by_example), inputs)
  return grams if covariances is None else jax.tree.map(jnp.add, covariances, grams)


@explain_errors
def input_covariances(
    apply: Callable[[Tree], Any], params: Tree, select: Choice = "**/kernel", *,
    where: Bool[AnyArray, "batch ..."] | None = None, by_example: bool = False,
) -> Tree:
  """`x^T x` of what a model multiplies each chosen matrix with, over one batch, in float32; not centered.

  No hook: a leaf's product passes x on, and hands `x^T x` to its sink in the backward pass, also of scanned layers.

  >>> x, params = jnp.array([[1.0, 2.0]]), {"up": jnp.ones((2, 3))}
  >>> input_covariances(lambda params: dot(x, params["up"]), params, "up")["up"]
  Array([[1., 2.],
         [2., 4.]], dtype=float32)

  Args:
    apply: the model on a batch, `params -> arrays`; one that knows no structured leaves, under `lazy`.
    params: the params.
    select: a choice of matrices; what it matches has to have a part in the output.
    where, by_example: see `add_inputs`; where has the shape of the inputs without their last axis.

  Returns:
    A tree like params, of `[m, m]`, of `[L, m, m]` for a stack, holes elsewhere; to be added up over batches.

  Raises:
    ValueError: as `lora`, or where does not fit the inputs.
  """

  def start(key: Array, w: Any, statistic: Any) -> tuple[Any, Any]:
    del key, statistic
    return w, jnp.zeros((w.shape[0],) * 2)

  def adapt(w: Any, sink: Array) -> Probed:
    lead = sink.shape[:-2]
    return Probed(w, sink, None if where is None else jnp.broadcast_to(where, lead + where.shape), by_example)

  transform = adapt_matrices(select, start, adapt)
  frozen, sinks = transform.split(jax.random.key(0), params)

  def total(sinks: Tree) -> Array:
    outputs = jax.tree.leaves(apply(transform.join(frozen, sinks)))
    return sum((jnp.sum(x.astype(jnp.float32)) for x in outputs), jnp.zeros(()))

  return jax.grad(total)(sinks)


@leaf_class(meta=("by_example",))
class Probed:
  """Stands for `w`; the gradient of `sink` `[..., m, m]` is `x^T x` of the inputs of `dot`."""

  w: Any
  sink: Any
  where: Any
  by_example: bool

  def materialize(self) -> Array:
    return materialize(self.w)

  def dot(self, x: Array) -> Array:
    return dot(_pass_on(self.by_example, x, self.sink, self.where), self.w)

  def dot_transposed(self, x: Array) -> Array:
    return dot_transposed(x, self.w)

  def lookup(self, ids: AnyArray) -> Array:
    return lookup(self.w, ids)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pass_on(by_example: bool, x: Array, sink: Array, where: Array | None) -> Array:
  del by_example, sink, where
  return x


def _forward(by_example: bool, x: Array, sink: Array, where: Array | None) -> tuple[Array, Any]:
  del by_example, sink
  return x, (x, where)


def _backward(by_example: bool, kept: Any, gradient: Array) -> tuple[Array, Array, None]:
  x, where = kept
  return gradient, _gram(x, where, by_example), None


_pass_on.defvjp(_forward, _backward)
