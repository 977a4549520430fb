"""Entries that a function picks one by one, `w[0]`, `w[i]`, `w[layer, ids]`: of what they are, and of which stack."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.leaves import lazy, materialize
from jaxft.merging import lines
from jaxft.transforms import lora
from jaxft.tree import axes_of, leaves_with_paths, matrices, stack_depths
from tests.contracts.comparison import assert_trees_close

X = jax.ShapeDtypeStruct((2, 7, 16), jnp.float32)
IDS = jax.ShapeDtypeStruct((2, 7), jnp.int32)


def shapes(**leaves):
  return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in leaves.items()}


def drawn(params):
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape) / 4, x.dtype), params)


def read(apply, params, *inputs, **settings):
  axes = axes_of(apply, params, *inputs, **settings)
  return {axes.paths[path]: (own.kind, own.pattern) for path, own in axes.items()}


def layer(p, i, x):
  return x + jnp.tanh(x * p["scale"][i]) @ p["up"][i] @ p["down"][i]


def layer_of_scan(p, x):
  return x + jnp.tanh(x * p["scale"]) @ p["up"] @ p["down"]


def tower(p, x):
  return functools.reduce(lambda x, i: layer(p, i, x), range(len(p["up"])), x)


def stack(n):
  return shapes(scale=(n, 16), up=(n, 16, 32), down=(n, 32, 16))


@pytest.mark.parametrize("apply", [
    tower,
    lambda p, x: jax.lax.fori_loop(0, 3, lambda i, x: layer(p, i, x), x),
    lambda p, x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, layer(p, c[0], c[1])), (0, x))[1],
    lambda p, x: jax.lax.scan(lambda c, _: ((c[0] + 1, layer(p, c[0], c[1])), None), (0, x), length=3)[0][1],
    lambda p, x: jax.lax.scan(lambda x, i: (jax.jit(layer)(p, i, x), None), x, jnp.arange(3))[0],
])
def test_norms_of_stacked_layers_are_vectors_of_these_layers_in_every_loop(apply):
  assert read(apply, stack(3), X) == {
      "layers/up": ("matrix", "layers in out -> layers in out"),
      "layers/down": ("matrix", "layers in out -> layers in out"),
      "layers/scale": ("vector", "layers out -> layers out"),
  }


def test_what_is_not_used_may_lie_beside_a_stack():
  """As the counts of random numbers do, one a layer, where nnx has scanned them."""
  params = {"layers": stack(3) | shapes(count=(3,))}
  found = read(lambda p, x: jax.lax.scan(lambda x, p: (layer_of_scan(p, x), None), x, p["layers"])[0], params, X)
  assert found["layers/count"][0] == "unused" and found["layers/scale"] == ("vector", "layers out -> layers out")


def test_loops_of_unequal_length_are_two_stacks():
  params = {"vision": stack(2), "text": stack(4)}
  axes = axes_of(lambda p, x: tower(p["vision"], x) + tower(p["text"], x), params, X)
  assert stack_depths(axes.arrange(params)) == {"text/layers": 4, "vision/layers": 2}
  scaled = lines(axes.arrange(jax.tree.map(lambda x: np.ones(x.shape, np.float32), params)), alpha=0.0, beta=1.0)
  np.testing.assert_array_equal(scaled["vision"]["layers"]["up"][:, 0, 0], [0, 1])


def test_entries_of_a_vector_that_no_matrix_is_picked_with_are_no_layers():
  """Scales and shifts in one leaf: fixed rows are no rows of a table either, though one picked by an input is."""
  scales = lambda p, x: (x * p["scale"][0] + p["scale"][1]) @ p["up"]
  one = shapes(scale=(2, 16), up=(16, 16))
  vector = ("vector", "out0 out1 -> (out0 out1)")
  assert read(scales, one, X)["scale"] == vector
  assert read(lambda p, x: (x * p["scale"][0])[:, :2] + p["scale"], one, X)["scale"] == vector
  blocks = read(lambda p, x: scales(p["block_1"], scales(p["block_0"], x)), {
      f"block_{i}": one | shapes(down=(16, 16)) for i in range(2)}, X)
  assert blocks["block_1/scale"] == blocks["block_0/scale"] == vector
  scanned = read(lambda p, x: jax.lax.scan(lambda x, p: (scales(p, x), None), x, p)[0], {
      name: jax.ShapeDtypeStruct((3, *x.shape), x.dtype) for name, x in one.items()}, X)
  assert scanned["layers/scale"] == ("vector", "layers out0 out1 -> layers (out0 out1)")
  chosen = lambda p, ids: p["types"][ids[0, 0]] + ids[..., None]
  assert read(chosen, shapes(types=(2, 16)), IDS) == {"types": ("table", "in out -> in out")}
  # A matrix that an input picks is an expert's.
  assert read(lambda p, x: x @ p["up"][jnp.argmax(x[0, 0]) % 4], shapes(up=(4, 16, 16)), X) == {
      "experts/up": ("matrix", "experts in out -> experts in out")}


CODEBOOKS = {
    "both": lambda p, ids: sum(p["w"][k, ids[:, k]] for k in range(3)),
    "one after the other": lambda p, ids: sum(p["w"][k][ids[:, k]] for k in range(3)),
    "as arrays": lambda p, ids: p["w"][jnp.arange(3), ids[:, :3]].sum(1),
    "in a loop": lambda p, ids: jax.lax.fori_loop(0, 3, lambda k, x: x + p["w"][k, ids], jnp.zeros((2, 7, 16))),
}


def test_tables_that_are_picked_with_their_rows_are_one_table():
  """`w[layer, ids]` is a table of all rows of all layers, and an adapter of it is read without being formed."""
  params = drawn(shapes(w=(3, 11, 16)))
  ids = np.arange(14).reshape(2, 7) % 11
  transform = lora(matrices(), rank=2)

  def both(apply):
    axes = axes_of(apply, params, ids)
    assert axes["w"].kind == "table" and axes["w"].pattern == "in0 in1 out -> (in0 in1) out"
    frozen, trainable = transform.split(jax.random.key(0), axes.arrange(params))
    trainable = jax.tree.map(lambda x: x + 0.1, trainable)
    fast = lambda t: jnp.sum(jnp.sin(lazy(axes.arranged(apply))(transform.join(frozen, t), ids)))
    plain = lambda t: jnp.sum(jnp.sin(apply(axes.restore(materialize(transform.join(frozen, t))), ids)))
    return [jax.value_and_grad(loss)(trainable) for loss in (fast, plain)]  # warnings are errors

  for got, want in jax.jit(lambda: [both(apply) for apply in CODEBOOKS.values()])():
    assert_trees_close(got, want)
  # Beside matrices of as many layers, what is picked before its rows is of those layers.
  per_layer = lambda p, ids: jax.lax.fori_loop(
      0, 3, lambda i, x: jnp.tanh((x + p["w"][i][ids]) @ p["up"][i]), jnp.zeros((2, 7, 16)))
  assert read(per_layer, shapes(w=(3, 11, 16), up=(3, 16, 16)), IDS)["layers/w"] == (
      "table", "layers in out -> layers in out")


def test_what_names_alone_make_layers_is_none_beside_layers():
  """Equinox's MLP holds its matrices in `layers`: as a head or a time embedding it is no stack of a larger model."""
  mlp = eqx.nn.MLP(16, 16, 32, 1, key=jax.random.key(0))
  block = lambda p, x: x + jnp.tanh(x @ p["up"]) @ p["down"]
  two = lambda: shapes(up=(16, 32), down=(32, 16))
  unrolled = lambda p, x: jax.vmap(jax.vmap(p["head"]))(block(p["b_1"], block(p["b_0"], x)))
  params = {"b_0": two(), "b_1": two(), "head": mlp}
  assert stack_depths(axes_of(unrolled, params, X).arrange(params)) == {"b/layers": 2}
  # Nor beside siblings that may be layers, though they differ.
  params["b_1"] = shapes(up=(16, 48), down=(48, 16))
  arranged = axes_of(unrolled, params, X).arrange(params)
  assert stack_depths(arranged) == {} and "head/layers-0/kernel" in dict(leaves_with_paths(arranged))
  named = axes_of(unrolled, params, X, layers="b_*").arrange(params)
  assert stack_depths(named) == {"b/layers": 2}
  # By itself it is a model of as many layers.
  assert stack_depths(axes_of(lambda m, x: jax.vmap(jax.vmap(m))(x), mlp, X).arrange(mlp)) == {"layers": 2}
  with pytest.raises(ValueError, match=r"layers must match subtrees; blocks/\* matches none of b_0 to b_1"):
    axes_of(unrolled, params, X, layers="blocks/*")
