"""Operations counted from the jaxpr against arithmetic and against the compiler where it has no loops to miss."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxft.analysis.flops import jaxpr_flops
from jaxft.training import make_mesh

X = jax.ShapeDtypeStruct((16, 32), jnp.float32)
W = jax.ShapeDtypeStruct((32, 32), jnp.float32)
PRODUCT = 2 * 16 * 32 * 32


def layers(n, x, w):
  return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=n)[0]


def test_the_body_of_a_scan_counts_as_often_as_it_runs():
  assert jaxpr_flops(lambda x, w: layers(5, x, w), X, W).matmul == 5 * PRODUCT
  assert jaxpr_flops(lambda x, w: layers(5, x, w), X, W).other == 5 * 16 * 32
  compiled = jax.jit(lambda x, w: layers(5, x, w)).lower(X, W).compile().cost_analysis()["flops"]
  assert compiled < 2 * PRODUCT, "the compiler counts the body once: the reason for this module"


def test_gradients_and_rematerialization():
  loss = lambda f: lambda w, x: jnp.sum(f(x, w))
  run = lambda x, w: layers(4, x, w)
  remat = loss(jax.checkpoint(run))
  assert jaxpr_flops(jax.value_and_grad(loss(run)), W, X).matmul == 3 * 4 * PRODUCT
  assert jaxpr_flops(jax.value_and_grad(remat), W, X).matmul == 4 * 4 * PRODUCT
  assert jaxpr_flops(jax.grad(remat), W, X).matmul == 3 * 4 * PRODUCT, "nobody asked for the first forward pass"


def test_what_no_result_depends_on_costs_nothing():
  assert jaxpr_flops(lambda x, w: (x @ w, x)[1], X, W).total == 0
  both = jax.jit(lambda x, w: (x @ w, x + 1))
  assert jaxpr_flops(lambda x, w: both(x, w)[1], X, W).matmul == 0


def test_unrolled_code_agrees_with_the_compiler():
  def loss(w, x):
    return jnp.sum(jnp.square(jax.nn.relu(x @ w) @ w))

  ours = jaxpr_flops(jax.value_and_grad(loss), W, X)
  theirs = jax.jit(jax.value_and_grad(loss)).lower(W, X).compile().cost_analysis()["flops"]
  assert ours.total == pytest.approx(theirs, rel=0.05)


def test_branches_loops_convolutions_and_devices():
  cond = lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)
  assert jaxpr_flops(cond, X, W).matmul == 2 * PRODUCT
  loop = lambda x, w: jax.lax.while_loop(lambda c: c[0, 0] < 1, lambda c: c @ w, x)
  assert jaxpr_flops(loop, X, W).matmul == PRODUCT
  assert jaxpr_flops(loop, X, W).uncounted == {"while"}
  once = lambda x, w: jax.lax.while_loop(lambda c: c[0], lambda c: (False, c[1] @ w), (x[0, 0] > 0, x))
  assert not jaxpr_flops(once, X, W).uncounted and jaxpr_flops(once, X, W).matmul == jaxpr_flops(loop, X, W).matmul
  assert not jaxpr_flops(lambda x, w: jax.lax.fori_loop(0, 3, lambda i, c: c @ w, x), X, W).uncounted

  images, kernel = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((3, 3, 3, 7), jnp.float32)
  conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
  assert jaxpr_flops(conv, images, kernel).matmul == 2 * (2 * 8 * 8 * 7) * (3 * 3 * 3)

  mesh = make_mesh(data=4, devices=jax.devices()[:4])
  local = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
  assert jaxpr_flops(local, X, W).matmul == PRODUCT
