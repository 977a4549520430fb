"""What is held of a form in `lazy`: values and gradients of the plain path, no warning, the FLOPs of the cheap form."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.analysis.flops import count_jaxpr
from jaxft.leaves import LowRank, MaterializedWarning, lazy, materialize

KEY = jax.random.key(0)


def draw(i, *shape):
  return jnp.asarray(np.random.default_rng(i).standard_normal(shape).astype(np.float32) / 6, jnp.float32)


def low_rank(i, *shape, rank=1):
  *stack, m, n = shape
  return LowRank(draw(3 * i, *shape), draw(3 * i + 1, *stack, m, rank), draw(3 * i + 2, *stack, rank, n), scale=2.0)


def split(params):
  """Frozen arrays and the factors of `LowRank` leaves, which train."""
  return (jax.tree.map(lambda leaf: leaf.w, params, is_leaf=is_low_rank),
          jax.tree.map(lambda leaf: (leaf.a, leaf.b), params, is_leaf=is_low_rank))


def is_low_rank(x):
  return isinstance(x, LowRank)


def step_of(apply, params):
  """`(frozen, factors, x) -> (outputs, gradients)` of a loss over everything that `apply` gives."""
  structure = lambda w, ab, leaf: dataclasses.replace(leaf, w=w, a=ab[0], b=ab[1])

  def loss(factors, x, frozen):
    leaves = [structure(w, ab, leaf) for w, ab, leaf in zip(
        jax.tree.leaves(frozen), jax.tree.leaves(factors, is_leaf=lambda x: isinstance(x, tuple)),
        jax.tree.leaves(params, is_leaf=is_low_rank), strict=True)]
    return loss_of(apply, jax.tree.unflatten(jax.tree.structure(params, is_leaf=is_low_rank), leaves), x)

  return jax.grad(loss, argnums=(0, 1), has_aux=True, allow_int=True)


def loss_of(apply, params, x):
  out = apply(params, x)
  return sum(jnp.sum(jnp.sin(o)) for o in jax.tree.leaves(out)), out


def assert_close(got, want, rtol=2e-3):
  same = lambda a, b: a.dtype == jax.dtypes.float0 or np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)
  jax.tree.map(same, got, want)


def assert_agrees(apply, params, x):
  """`lazy(apply)` has the values and the gradients of `apply` on what its leaves stand for."""
  gradient = jax.grad(loss_of, argnums=(1, 2), has_aux=True, allow_int=True)
  got, want = jax.jit(lambda params, x: (
      gradient(lazy(apply), params, x), gradient(lambda p, x: apply(materialize(p), x), params, x)))(params, x)
  assert_close(got, want)


def matmul_flops(f, *args):
  return count_jaxpr(jax.make_jaxpr(f)(*args)).matmul


def assert_cheap(apply, params, x, *, factor=1.2):
  """`lazy(apply)` agrees with `apply`, forms nothing, and costs what frozen arrays do and a little for the factors.

  `factor` None leaves the last out: a lookup of an array multiplies nothing.
  """
  frozen, factors = split(params)
  fast, plain = step_of(lazy(apply), params), step_of(lambda p, x: apply(materialize(p), x), params)
  with warnings.catch_warnings():
    warnings.simplefilter("error", MaterializedWarning)
    got, want = jax.jit(lambda *sides: (fast(*sides), plain(*sides)))(factors, x, frozen)
    cost = matmul_flops(fast, factors, x, frozen)
  assert_close(got, want)

  if factor is None:
    return
  arrays = matmul_flops(jax.grad(lambda x, frozen: loss_of(apply, frozen, x)[0]), x, frozen)
  assert cost <= factor * arrays, f"{cost:.3g} FLOPs, of frozen arrays {arrays:.3g}"
