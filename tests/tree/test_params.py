"""Paths, choices, depth, and the protocol: choosing leaves, whatever container and layout hold them."""

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.leaves import materialize
from jaxft.transforms import chain, freeze, full, lora, on, quantize_array, train
from jaxft.tree import (
  by_path,
  count,
  cut_layers,
  layer_of,
  leaf_keys,
  leaves_with_paths,
  mask,
  matching_paths,
  num_layers,
  stack_layers,
  unstack_layers,
)

KEY = jax.random.key(0)


def params():
  w = lambda i, *shape: jax.random.normal(jax.random.fold_in(KEY, i), shape)
  attention = {"query": {"kernel": w(0, 6, 4, 4)}, "value": {"kernel": w(1, 6, 4, 4)}}
  layers = {"attention": attention, "norm": {"scale": w(2, 6, 4)}}
  return {"embed": {"embedding": w(3, 9, 4)}, "layers": layers, "head": {"kernel": w(4, 4, 9), "bias": w(5, 9)}}


@pytest.mark.parametrize("glob, found", [
    ("head/*", ["head/bias", "head/kernel"]),
    ("**/kernel", ["head/kernel", "layers/attention/query/kernel", "layers/attention/value/kernel"]),
    ("**/{query,norm}/*", ["layers/attention/query/kernel", "layers/norm/scale"]),
    ("layers/*/scale", ["layers/norm/scale"]),
    ("**/{q*y,norm}/*", ["layers/attention/query/kernel", "layers/norm/scale"]),
    ("{layers/**/{query,n?rm},head}/{kernel,sc*}",
     ["head/kernel", "layers/attention/query/kernel", "layers/norm/scale"]),
    ("{head,embed}/{bias,**}", ["embed/embedding", "head/bias", "head/kernel"]),
    (by_path(lambda path, leaf: leaf.ndim == 1), ["head/bias"]),
    (["head/bias", "embed/**"], ["embed/embedding", "head/bias"]),
    ({"embed": True, "layers": False, "head": {"kernel": False, "bias": True}}, ["embed/embedding", "head/bias"]),
])
def test_choices_of_whole_leaves(glob, found):
  assert matching_paths(glob, params()) == found


@pytest.mark.parametrize("choice, error, message", [
    ("haed/kernel", ValueError, "select 'haed/kernel' matches none of the 6 leaves; nearest: .*head/kernel"),
    (["head/*", "qery"], ValueError,
     r"'qery' matches .*; paths are matched whole, as in '\*\*/query/kernel'; nearest: layers/attention/query/kernel"),
    ("**/{query,{value}/kernel", ValueError,
     r"braces in pairs; got '\*\*/\{query,\{value\}/kernel', in which nothing closes that of '\{query,"),
    ("query}/kernel", ValueError, r"got 'query\}/kernel', in which nothing opens that of '\}/kernel'"),
    ({"nothing": 3}, TypeError, "select must be a glob, a sequence of globs, a tree of booleans"),
    (["head/*", by_path(lambda path, leaf: True)], TypeError, "select must be a glob, a sequence of globs"),
    (lambda path, leaf: True, TypeError, "does not take one argument. .* goes through by_path"),
    (lambda params: "head/*", TypeError, "select must be a glob, .*got 'head/.' for embed"),
    ({"embed": True, "layers": np.ones(6, bool), "head": False}, ValueError,
     r"select must choose whole leaves; it divides 3: layers/attention/query/kernel \(6,\)"),
])
def test_errors_of_choices(choice, error, message):
  with pytest.raises(error, match=message):
    mask(choice, params())


def test_a_function_sees_the_params_and_the_shapes_of_structured_leaves():
  p = {"w": quantize_array(jnp.ones((64, 4))), "v": jnp.ones((4, 64)), "hole": None}
  wide = lambda params: jax.tree.map(lambda x: x.shape == (64, 4), params)
  assert mask(wide, p) == {"w": True, "v": False, "hole": False}
  assert mask(lambda params: {"w": False, "v": bool(params["v"].any()), "hole": True}, p)["v"]


@pytest.mark.parametrize("call, message", [
    (lambda p: unstack_layers(unstack_layers(p)), "must hold one stack; got layers or pieces of it, '0', '1'"),
    (lambda p: unstack_layers(cut_layers(p, [2])), "must hold one stack; got layers or pieces of it, '0:2', '2:6'"),
    (lambda p: cut_layers(unstack_layers(p), [2]), "must hold one stack"),
    (lambda p: stack_layers(p), "must hold layers or pieces of a stack, '0' or '0:2'; got"),
    (lambda p: unstack_layers(p, stack="blocks"), "params must have 'blocks', which stack names; got"),
    (lambda p: unstack_layers({"layers": {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2))}}), "with one leading axis"),
    (lambda p: unstack_layers({"layers": {"a": jnp.ones(())}}), "with one leading axis"),
])
def test_layout_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call(params())


def test_a_hole_never_matches():
  assert jax.tree.leaves(mask(by_path(lambda path, leaf: True), {"a": None, "b": jnp.ones(2)})) == [False, True]


def test_nnx_paths_read_like_a_dict():
  state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
  assert [path for path, _ in leaves_with_paths(state)] == ["bias", "kernel"]


@pytest.mark.parametrize("path, shape, layer", [
    ("layers/3/w", (2,), 3), ("layers_3/w", (2,), 3), ("model/blocks.3/w", (2,), 3), 
    ("h/11/w", (2,), 11), ("embed/w", (2,), None), ("layers/2:4/w", (2, 5), [2, 3]), ("layers/w", (3, 5), [0, 1, 2]),
    ("players/w", (3,), None)])
def test_layer_of(path, shape, layer):
  got = layer_of(path, jax.ShapeDtypeStruct(shape, jnp.float32))
  assert got is None if layer is None else np.array_equal(got, layer)


def test_layouts_go_round():
  p = params()
  assert num_layers(p) == num_layers(unstack_layers(p)) == num_layers(cut_layers(p, [2])) == 6
  for other in (unstack_layers(p), cut_layers(p, [1, 4])):
    assert jax.tree.all(jax.tree.map(np.array_equal, stack_layers(other), p))
  with pytest.raises(ValueError, match="at must increase strictly"):
    cut_layers(p, [4, 2])


def test_keys_do_not_depend_on_the_layout():
  stacked = leaf_keys(KEY, "layers/a/w", jax.ShapeDtypeStruct((3, 2), jnp.float32))
  one = leaf_keys(KEY, "layers/1/a/w", jax.ShapeDtypeStruct((2,), jnp.float32))
  cut = leaf_keys(KEY, "layers/1:3/a/w", jax.ShapeDtypeStruct((2, 2), jnp.float32))
  data = jax.random.key_data
  assert np.array_equal(data(stacked[1]), data(one)) and np.array_equal(data(stacked[1:]), data(cut))
  assert not np.array_equal(data(stacked[0]), data(stacked[1]))


def test_train_and_freeze_are_complements():
  frozen, trainable = train("head/*").split(KEY, params())
  other_frozen, other_trainable = freeze("head/*").split(KEY, params())
  assert count(trainable) == count(other_frozen) == 45
  assert count(frozen) == count(other_trainable) and count(full().split(KEY, params())[0]) == 0


def test_on_leaves_the_rest_frozen_and_chain_works_on_what_is_left():
  p = params()
  t = chain(train("head/*"), on("**/query/*", lora("**/kernel", rank=2)))
  frozen, trainable = t.split(KEY, p)
  assert count(trainable) == 45 + 6 * 2 * (4 + 4)
  assert frozen["head"] == {"kernel": None, "bias": None}
  assert jax.tree.all(jax.tree.map(np.array_equal, materialize(t.join(frozen, trainable)), p))
  with pytest.raises(ValueError, match="at least one"):
    chain()


def test_lora_refuses_what_is_no_matrix():
  with pytest.raises(ValueError, match=r"layers/norm/scale \(6, 4\)"):
    lora("**/scale").split(KEY, params())
  with pytest.raises(ValueError, match="rank must be an integer >= 1; got 0"):
    lora(rank=0)
