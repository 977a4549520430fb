"""Scores of single weights, for `top_k_mask`: how large, how far moved, how much the loss depends on them."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.signatures import explain_errors
from jaxft.tree.paths import Tree, is_float

Gradient = Callable[[Tree, Any], Tree]


@explain_errors
def magnitude_scores(params: Tree) -> Tree:
  """`|w|`, float32; a hole for what is not of floating point.

  >>> magnitude_scores({"w": jnp.array([1.0, -2.0])})
  {'w': Array([1., 2.], dtype=float32)}
  """
  return jax.tree.map(lambda w: jnp.abs(w.astype(jnp.float32)) if is_float(w) else None, params)


@explain_errors
def change_scores(base: Tree, tuned: Tree) -> Tree:
  """`|tuned - base|`, subtracted in float32; a hole for what is not of floating point.

  >>> change_scores({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([1.5, -1.0])})
  {'w': Array([0.5, 3. ], dtype=float32)}
  """
  change = lambda b, t: jnp.abs(t.astype(jnp.float32) - b.astype(jnp.float32)) if is_float(b) else None
  return jax.tree.map(change, base, tuned)


@explain_errors
def gradient_scores(gradient: Gradient, params: Tree, batches: Iterable[Any]) -> Tree:
  """`|mean over batches of the gradient|`: the first-order change of the loss per unit of each weight.

  >>> gradient = jax.grad(lambda params, batch: params["w"] * batch)
  >>> gradient_scores(gradient, {"w": jnp.array(2.0)}, [1.0, -3.0])
  {'w': Array(1., dtype=float32)}

  Args:
    gradient: `(params, batch) -> gradients`, such as `jax.jit(jax.grad(loss))`.
    params: where it is taken.
    batches: of equal weight.

  Raises:
    ValueError: there is no batch.
  """
  return jax.tree.map(jnp.abs, _mean(lambda g: g, gradient, params, batches))


@explain_errors
def fisher_scores(gradient: Gradient, params: Tree, batches: Iterable[Any]) -> Tree:
  """The diagonal of the empirical Fisher information, `mean over batches of gradient ** 2`.

  A batch of one example gives the definition; larger batches average gradients before they are squared.

  >>> gradient = jax.grad(lambda params, batch: params["w"] * batch)
  >>> fisher_scores(gradient, {"w": jnp.array(2.0)}, [1.0, -3.0])
  {'w': Array(5., dtype=float32)}

  Args, Raises: see `gradient_scores`.
  """
  return _mean(jnp.square, gradient, params, batches)


def _mean(f: Callable[[jax.Array], jax.Array], gradient: Gradient, params: Tree, batches: Iterable[Any]) -> Tree:
  total, count = None, 0
  for batch in batches:
    values = jax.tree.map(lambda g: f(g.astype(jnp.float32)), gradient(params, batch))
    total = values if total is None else jax.tree.map(jnp.add, total, values)
    count += 1
  if not count:
    raise ValueError("batches must hold at least one batch; got none")
  return jax.tree.map(lambda x: x / count, total)
