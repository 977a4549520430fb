"""Learned combinations of fixed trees: single coefficients, gradients as inner products, soups, partitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.leaves import materialize
from jaxft.transforms import chain, lora, sparse_delta
from jaxft.transforms.linear_combination import coefficient_norm, linear_combination
from jaxft.tree import apply_task_vector, stack_layers, task_vector, unstack_layers
from tests.contracts.transforms import forward
from tests.draws import blocks, normal

KEY = jax.random.key(0)
LAYERS, DIM, HIDDEN = 3, 8, 12
X = normal(1, 5, DIM)


def params_of(seed):
  norm, steps = {"scale": normal(seed + 50, DIM)}, jax.device_put(np.int32(seed))
  return {**blocks(seed, layers=LAYERS, dim=DIM, hidden=HIDDEN), "norm": norm, "steps": steps}


BASE = params_of(0)
MODELS = [params_of(i) for i in (1, 2, 3)]
VECTORS = [task_vector(BASE, m) for m in MODELS]


def split_and_join(transform, params=BASE):
  frozen, start = transform.split(KEY, params)
  return start, lambda c: materialize(transform.join(frozen, c))


def assert_same(got, want, **kw):
  kw = {"rtol": 1e-6, "atol": 1e-6} | kw
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **kw), got, want)


def test_zero_is_the_base_and_one_hot_is_the_model():
  start, join = split_and_join(linear_combination(VECTORS))
  assert_same(join(start), BASE, rtol=0, atol=0)
  for i, model in enumerate(MODELS):
    got = join(jax.tree.map(lambda c: c.at[..., i].set(1.0), start))
    assert_same(got, {**model, "steps": BASE["steps"]})
  assert start["layers"]["up"]["kernel"].shape == (LAYERS, 3) and start["norm"]["scale"].shape == (3,)
  assert start["steps"] is None


@pytest.mark.parametrize("recompute", [False, "**/kernel"])
def test_one_coefficient_is_task_arithmetic(recompute):
  start, join = split_and_join(linear_combination(VECTORS, granularity="model", recompute=recompute))
  summed = jax.tree.map(lambda *x: sum(x), *VECTORS)
  assert_same(join(jax.tree.map(lambda c: c + 0.3, start)), apply_task_vector(BASE, summed, scale=0.3))
  start, join = split_and_join(linear_combination(VECTORS[:1], init=0.7, recompute=recompute))
  assert_same(join(start), apply_task_vector(BASE, VECTORS[0], scale=0.7))


def test_coefficients_of_layers_reach_their_layers_alone():
  start, join = split_and_join(linear_combination(VECTORS, granularity="layer"))
  got = join({**start, "layers": start["layers"].at[1, 0].set(2.0)})
  want = BASE["layers"]["up"]["kernel"].at[1].add(2.0 * VECTORS[0]["layers"]["up"]["kernel"][1])
  assert_same(got["layers"]["up"]["kernel"], want)
  assert_same(got["norm"], BASE["norm"])
  got = join({**start, "outside": start["outside"].at[2].set(1.0)})
  assert_same(got["layers"], BASE["layers"])
  assert_same(got["norm"], MODELS[2]["norm"])
  # The same numbers with layers apart.
  apart, join_apart = split_and_join(
      linear_combination([unstack_layers(v) for v in VECTORS], granularity="layer"), unstack_layers(BASE))
  coefficients = jax.tree.map(lambda c: c + jnp.arange(c.size).reshape(c.shape) / 7, start)
  assert jax.tree.map(jnp.shape, apart) == jax.tree.map(jnp.shape, start)
  assert_same(stack_layers(join_apart(coefficients)), join(coefficients))


def test_gradient_at_zero_is_the_inner_product_with_the_task_vector():
  loss = lambda params: jnp.sum(jnp.sin(forward(params, X) * params["norm"]["scale"]))
  transform = linear_combination(VECTORS)
  frozen, start = transform.split(KEY, BASE)
  got = jax.jit(jax.grad(lambda c: loss(transform.join(frozen, c))))(start)
  floats = {k: v for k, v in BASE.items() if k != "steps"}
  by_weight = jax.grad(lambda p: loss({**p, "steps": 0}))(floats)
  for path in (("layers", "up", "kernel"), ("layers", "down", "kernel"), ("norm", "scale")):
    pick = lambda tree: tree[path[0]][path[1]] if len(path) == 2 else tree[path[0]][path[1]][path[2]]
    lead = pick(start).ndim - 1
    axes = tuple(range(lead, pick(by_weight).ndim))
    want = jnp.stack([jnp.sum(pick(by_weight) * pick(v), axis=axes) for v in VECTORS], axis=-1)
    np.testing.assert_allclose(pick(got), want, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("granularity", ["model", "layer", "leaf"])
def test_softmax_at_its_start_is_the_uniform_soup(granularity):
  start, join = split_and_join(linear_combination(MODELS, granularity=granularity, constraint="softmax"))
  soup = jax.tree.map(lambda *x: sum(x) / 3, *[{**m, "steps": 0} for m in MODELS])
  assert_same(join(start), {**soup, "steps": 0})
  # Far out, one of them.
  assert_same(join(jax.tree.map(lambda c: c.at[..., 1].add(50.0), start)), {**MODELS[1], "steps": 0}, rtol=1e-5)


def test_partitions_cut_every_block_once():
  start, join = split_and_join(linear_combination(VECTORS, granularity=4))
  assert start["layers"]["up"]["kernel"].shape == (LAYERS, 3, 4)
  parts = [join(jax.tree.map(lambda c: c.at[..., 0, k].set(1.0), start)) for k in range(4)]
  moved = [np.asarray(p["layers"]["up"]["kernel"] != BASE["layers"]["up"]["kernel"]) for p in parts]
  np.testing.assert_array_equal(sum(m.astype(int) for m in moved), 1)
  assert all(m[0].sum() == DIM * HIDDEN // 4 for m in moved)
  assert (moved[0][0] != moved[0][1]).any()  # a mask of its own for each layer
  # All parts of a tree together are the tree, and one partition is none.
  assert_same(join(jax.tree.map(lambda c: c.at[..., 0, :].set(1.0), start)), MODELS[0] | {"steps": BASE["steps"]})
  one, join_one = split_and_join(linear_combination(VECTORS, granularity=1))
  leaf, join_leaf = split_and_join(linear_combination(VECTORS))
  set_all = lambda c: c + 0.1 * jnp.arange(3.0).reshape((3,) + (1,) * (c.ndim > 1 and c.shape[-1] == 1))
  assert_same(join_one(jax.tree.map(set_all, one)), join_leaf(jax.tree.map(set_all, leaf)))
  # The same keys, layers apart.
  apart, join_apart = split_and_join(
      linear_combination([unstack_layers(v) for v in VECTORS], granularity=4), unstack_layers(BASE))
  first = lambda tree: jax.tree.map(lambda c: c.at[..., 0, 0].set(1.0), tree)
  assert_same(stack_layers(join_apart(first(apart))), parts[0])


def test_partitions_shared_by_shape():
  transform = linear_combination(VECTORS, granularity=4, share_by_shape=True)
  partition = transform.split(KEY, BASE)[0]["layers"]["up"]["kernel"].note["partition"]
  np.testing.assert_array_equal(partition[0], partition[1])
  assert partition.dtype == jnp.uint8
  frozen, _ = linear_combination(VECTORS, granularity=300).split(KEY, BASE)
  assert frozen["norm"]["scale"].note["partition"].dtype == jnp.uint16


def test_missing_leaves_are_zero_vectors_or_the_params_own():
  hole = {**VECTORS[0], "norm": {"scale": None}}
  start, join = split_and_join(linear_combination([hole, VECTORS[1]]))
  ones = jax.tree.map(lambda c: c + 1.0, start)
  assert_same(join(ones)["norm"]["scale"], MODELS[1]["norm"]["scale"])
  start, join = split_and_join(linear_combination([hole, hole]))
  assert start["norm"]["scale"] is None
  assert_same(join(start)["norm"], BASE["norm"], rtol=0, atol=0)
  checkpoint = {**MODELS[0], "norm": {"scale": None}}
  start, join = split_and_join(linear_combination([checkpoint, MODELS[1]], constraint="softmax"))
  assert_same(join(start)["norm"]["scale"], (BASE["norm"]["scale"] + MODELS[1]["norm"]["scale"]) / 2)


def test_structured_leaves_of_a_bank_are_formed():
  blocks = {"layers": BASE["layers"]}
  adapter = lora(rank=2)
  frozen, trainable = adapter.split(KEY, jax.tree.map(jnp.zeros_like, blocks))
  bank = adapter.join(frozen, jax.tree.map(lambda x: x + 0.1, trainable))
  start, join = split_and_join(linear_combination([bank], init=1.0), blocks)
  assert_same(join(start), jax.tree.map(jnp.add, blocks, materialize(bank)))


def test_low_precision_trees_combine_in_float32():
  low = [jax.tree.map(lambda x: x.astype(jnp.bfloat16), {"w": v["norm"]["scale"]}) for v in VECTORS]
  base = {"w": BASE["norm"]["scale"].astype(jnp.bfloat16)}
  start, join = split_and_join(linear_combination(low, init=[0.5, -1.0, 2.0]), base)
  assert start["w"].dtype == jnp.float32
  exact = base["w"].astype(jnp.float32) + sum(
      c * v["w"].astype(jnp.float32) for c, v in zip((0.5, -1.0, 2.0), low, strict=True))
  np.testing.assert_array_equal(join(start)["w"], exact.astype(jnp.bfloat16))


def test_coefficient_norm():
  c = {"a": jnp.array([3.0, -4.0]), "b": jnp.array([[1.0, 0.0], [0.0, 0.0]])}
  np.testing.assert_allclose(coefficient_norm(c), (7 + 1 + 0) / 3)
  np.testing.assert_allclose(coefficient_norm(c, order=2), (5 + 1 + 0) / 3, rtol=1e-6)
  for order in (1, 2):
    gradient = jax.grad(lambda c: coefficient_norm(c, order=order))(c)
    np.testing.assert_array_equal(gradient["b"][1], 0.0)


def test_errors():
  with pytest.raises(ValueError, match="at least one task vector"):
    linear_combination([])
  said = "granularity must be one of model, layer, leaf or a number of partitions >= 1; got 0"
  with pytest.raises(ValueError, match=said):
    linear_combination(VECTORS, granularity=0)
  with pytest.raises(ValueError, match="got 'blocks'"):
    linear_combination(VECTORS, granularity="blocks")
  with pytest.raises(ValueError, match="constraint must be one of none, softmax; got 'softmx'; nearest: softmax"):
    linear_combination(VECTORS, constraint="softmx")
  with pytest.raises(ValueError, match=r"one for each of the 3 trees; got shape \(2,\)"):
    linear_combination(VECTORS, init=[0.0, 1.0])
  with pytest.raises(ValueError, match=r"trees\[0\] lacks norm/scale; a leaf that it has no part in must be None"):
    linear_combination([{k: v for k, v in VECTORS[0].items() if k != "norm"}]).split(KEY, BASE)
  with pytest.raises(ValueError, match=r"trees\[1\] has a leaf that the params lack: head/kernel; nearest: "):
    linear_combination([VECTORS[0], {**VECTORS[1], "head": {"kernel": jnp.ones(2)}}]).split(KEY, BASE)
  with pytest.raises(ValueError, match=r"norm/scale has \(3,\), the params \(8,\)"):
    linear_combination([{**VECTORS[0], "norm": {"scale": jnp.ones(3)}}]).split(KEY, BASE)
  with pytest.raises(ValueError, match="floating-point leaf that is not None; got none"):
    linear_combination([jax.tree.map(lambda x: None, BASE)]).split(KEY, BASE)
  with pytest.raises(ValueError, match="order must be >= 1"):
    coefficient_norm({"a": jnp.ones(2)}, order=0.5)


def test_beside_a_sparse_delta_on_another_leaf():
  base = {"a": jnp.ones((3, 2)), "b": jnp.ones((3, 2))}
  bank = [{"a": jnp.full((3, 2), float(i)), "b": None} for i in (1, 2)]
  sparse = sparse_delta({"a": None, "b": np.ones((3, 2), bool)})
  for order in (lambda *t: chain(*t), lambda *t: chain(*reversed(t))):
    transform = order(sparse, linear_combination(bank))
    frozen, trainable = transform.split(jax.random.key(0), base)
    moved = materialize(transform.join(frozen, jax.tree.map(lambda x: x + 1.0, trainable)))
    assert all((moved[name] != base[name]).all() for name in base)
