"""`lazy`: every way in which a JAX function may use a weight, against the same function on materialized params."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P

from jaxft.leaves import LowRank, MaterializedWarning, lazy, materialize
from jaxft.transforms import quantize_array
from tests.draws import normal

KEY = jax.random.key(0)
DIM, OUT, RANK, LAYERS = 32, 48, 4, 4


def low_rank(i, *shape):
  *stack, m, n = shape
  draw = lambda part, *shape: jax.device_put(np.asarray(normal(3 * i + part, *stack, *shape)) / 8)
  return LowRank(draw(0, m, n), draw(1, m, RANK), draw(2, RANK, n), scale=2.0)


PARAMS = {
    "w": low_rank(0, DIM, OUT), "v": low_rank(1, OUT, DIM), "s": low_rank(2, LAYERS, DIM, DIM),
    "e": low_rank(3, 40, DIM),
}
X = normal(99, 6, 7, DIM)
IDS = np.arange(12).reshape(3, 4)


@jax.custom_jvp
def tanh_of_product(x, w):
  return jnp.tanh(x @ w)


@tanh_of_product.defjvp
def _tripled(primals, tangents):
  (x, w), (dx, dw) = primals, tangents
  return tanh_of_product(x, w), 3 * (dx @ w + x @ dw)


@jax.custom_vjp
def product_own_gradient(x, w):
  return jnp.tanh(x @ w)


product_own_gradient.defvjp(
    lambda x, w: (product_own_gradient(x, w), (x, w)),
    lambda kept, g: (2 * g @ kept[1].T, 5 * jnp.einsum("abi,abo->io", kept[0], g)))

MESH = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])


def sharded(f, in_specs, **options):
  return jax.shard_map(f, mesh=MESH, in_specs=in_specs, out_specs=P(), **options)


CHEAP = {
    "products": lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"],
    "weight_on_the_left": lambda p, x: jnp.einsum("io,bti->obt", p["w"], x),
    "transposed": lambda p, x: jax.vmap(jax.vmap(lambda x: p["w"].T @ x))(x) + x @ p["v"].T,
    "unit_axis": lambda p, x: jnp.einsum("bti,lio->btlo", x, p["w"][None]),
    "cast": lambda p, x: x.astype(jnp.float16).astype(jnp.float32) @ p["w"].astype(jnp.float32),
    "jit": lambda p, x: jax.jit(lambda w, x: jnp.tanh(x @ w))(p["w"], x),
    "scan_remat": lambda p, x: jax.lax.scan(
        jax.checkpoint(lambda h, w: (jnp.tanh(h @ w @ p["w"] @ p["v"]), h[0])), x, p["s"]),
    "scan_hands_weights_through": lambda p, x: (lambda h, s: h @ s[0])(*jax.lax.scan(
        lambda h, w: (jnp.tanh(h @ w), w), x, p["s"], reverse=True)),
    "layers_by_index": lambda p, x: x @ p["s"][0] @ p["s"][1].T @ p["s"][-1],
    "fori_loop": lambda p, x: jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ p["s"][i]), x),
    "cond": lambda p, x: jax.lax.cond(
        x.sum() > 0, lambda w, v: x @ w @ v, lambda w, v: (x @ v.T) @ w.T, p["w"], p["v"]),
    "rows_and_tied_head": lambda p, x: (jnp.take(p["e"], IDS, axis=0) + p["e"][IDS]) @ p["e"].T,
    "remat_policy": lambda p, x: jax.checkpoint(
        lambda p: jnp.tanh(x @ p["w"]) @ p["v"], policy=jax.checkpoint_policies.dots_saveable)(p),
    "gradient_inside": lambda p, x: jax.grad(lambda x: jnp.sum(
        jax.checkpoint(lambda x, w: jnp.tanh(x @ w))(x, p["w"])))(x),
    "stop_gradient": lambda p, x: x @ jax.lax.stop_gradient(p["w"]),
    "shard_map": lambda p, x: sharded(
        lambda w, x: jax.lax.psum(jnp.sum(x @ w, 0), "data"), (P(), P("data")))(p["w"], x),
    "shard_map_of_a_stack": lambda p, x: sharded(
        lambda s, x: jax.lax.psum(jax.lax.scan(lambda h, w: (h @ w, None), x, s)[0], "data"), (P("data"), P()),
        check_vma=False)(p["s"], x),
}


def loss_of(apply):
  def loss(params, x):
    out = apply(params, x)
    return sum(jnp.sum(jnp.sin(o)) for o in jax.tree.leaves(out)), out

  return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))


def assert_agrees(apply, got=None):
  got = (got or loss_of(lazy(apply)))(PARAMS, X)
  want = loss_of(lambda params, x: apply(materialize(params), x))(PARAMS, X)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), got, want)


@pytest.mark.parametrize("name", CHEAP)
def test_cheap_forms(name):
  with warnings.catch_warnings():
    warnings.simplefilter("error", MaterializedWarning)
    assert_agrees(CHEAP[name])


def test_while_without_gradient():
  def apply(p, x):
    go = lambda c: (c[0] < 3) & (jnp.sum(c[1] @ p["w"]) < 1e9)
    return jax.lax.while_loop(go, lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["w"] @ p["v"])), (0, x))[1]

  with warnings.catch_warnings():
    warnings.simplefilter("error", MaterializedWarning)
    np.testing.assert_allclose(lazy(apply)(PARAMS, X), apply(materialize(PARAMS), X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [tanh_of_product, product_own_gradient])
def test_custom_derivatives_keep_their_rule(function):
  apply = lambda p, x: function(x, p["w"])
  with warnings.catch_warnings():
    warnings.simplefilter("error", MaterializedWarning)
    np.testing.assert_allclose(lazy(apply)(PARAMS, X), apply(materialize(PARAMS), X), rtol=1e-4, atol=1e-5)
  with pytest.warns(MaterializedWarning, match="custom_[jv]+p_call"):
    assert_agrees(apply)


def test_other_operations_form_the_array_and_warn_once_for_each():
  apply = lambda p, x: jnp.sum(jnp.sin(p["w"])) + jnp.sum(x @ (p["w"] + 2)) + jnp.sum(x @ (p["w"] + 3))
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert_agrees(apply)
  messages = sorted(str(w.message) for w in caught if w.category is MaterializedWarning)
  assert len(messages) == 2
  assert "operation 'add' has no cheap form for the LowRank at 'w'" in messages[0] and "'sin'" in messages[1]


def test_vmap_over_inputs_and_over_params():
  apply = CHEAP["products"]
  np.testing.assert_allclose(
      jax.vmap(lazy(apply), in_axes=(None, 0))(PARAMS, X), apply(materialize(PARAMS), X), rtol=1e-3, atol=1e-4)
  two = jax.tree.map(lambda x: jnp.stack([x, x / 2]), PARAMS)
  got = jax.vmap(lazy(apply), in_axes=(0, None))(two, X)
  np.testing.assert_allclose(got[1], apply(materialize(jax.tree.map(lambda x: x / 2, PARAMS)), X), rtol=1e-3, atol=1e-4)


def test_quantized_leaves():
  params = {"s": quantize_array(jax.random.normal(KEY, (3, DIM, DIM)), format="nf4", block=16, double=True)}
  apply = lambda p, x: jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["s"])[0]
  np.testing.assert_allclose(
      jax.jit(lazy(apply))(params, X), apply(materialize(params), X), rtol=1e-3, atol=1e-4)


def test_a_wider_result_is_not_rounded_on_the_way():
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  x = X.astype(jnp.bfloat16)
  apply = lambda p, x: jnp.matmul(x, p["w"], preferred_element_type=jnp.float32)
  got, want = lazy(apply)(low, x), apply(materialize(low), x)
  assert got.dtype == jnp.float32
  assert jnp.any(got.astype(jnp.bfloat16).astype(jnp.float32) != got)
  np.testing.assert_allclose(got, want, atol=0.05)


def test_ids_out_of_range_are_treated_as_by_the_function():
  for apply in (lambda p, ids: jnp.take(p["e"], ids, axis=0), lambda p, ids: p["e"][ids],
                lambda p, ids: jnp.take(p["e"], ids, axis=0, mode="clip")):
    ids = jnp.array([0, -1, 39, 40, 1000])
    np.testing.assert_allclose(lazy(apply)(PARAMS, ids), apply(materialize(PARAMS), ids), rtol=1e-4, atol=1e-5)


def test_what_is_no_array_is_passed_as_it_is():
  apply = lambda p, x, *, train, name: {"y": x @ p["w"] if train else x, "name": name, "n": 3}
  out = lazy(apply)(PARAMS, X, train=True, name="a")
  assert out["name"] == "a" and out["n"] == 3 and out["y"].shape == (6, 7, OUT)
