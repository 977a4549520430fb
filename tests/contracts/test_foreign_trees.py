"""Trees with boxes, functions, counters and random states go through split, join, materialize, merges, task vectors and
training as they are: what is no weight stays, and what is made of a weight has its box.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from jaxft import Mean, Recipe, init_state, lazy, make_train_step, materialize
from jaxft.merging import task_arithmetic
from jaxft.training import abstract_state
from jaxft.transforms import chain, dora, freeze, full, lora, on, quantize, sparse_delta, submatrix, train
from jaxft.transforms.entries.sparse_delta import chosen_entries
from jaxft.transforms.entries.submatrix import submatrix_delta
from jaxft.tree import apply_task_vector, axes_of, by_path, interpolate, leaves_with_paths, matrices, task_vector
from jaxft.tree.boxes import put_aside
from jaxft.tree.paths import is_float
from tests.contracts.comparison import assert_trees_close
from tests.contracts.foreign_trees import KEY, TREES, equinox_shared, equinox_whole, linen_boxes, nnx_module, nnx_state

every_tree = pytest.mark.parametrize("tree", TREES)
# A table is looked up in forms of its own, and haiku's norms have scales [1, n].
HIDDEN = matrices(by_path(lambda path, leaf: "shared" not in path and "norm" not in path))
TRANSFORMS = {
    "qlora": chain(lora(HIDDEN, rank=2), quantize(HIDDEN, block=4)),
    "dora": dora(HIDDEN, rank=2),
    "full": full(),
    "on": on(matrices(), full()),
    "freeze": freeze(matrices()),
    "sparse": sparse_delta("**"),
    "submatrix": submatrix(HIDDEN),
}
# What takes each path through boxes: a structured frozen leaf, a hole, what is untouched.
QUICK = ("qlora", "full")


def moved(trainable):
  return jax.tree.map(lambda x: x + 0.01, trainable)


def arrays(tree):
  return {path: leaf for path, leaf in leaves_with_paths(tree) if is_float(leaf)}


@every_tree
@pytest.mark.parametrize("name", [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.exhaustive) for name in TRANSFORMS])
@pytest.mark.filterwarnings("ignore::jaxft.leaves.MaterializedWarning")
def test_a_transform_of_any_tree(tree, name):
  params, apply, inputs, unseen = tree()
  transform = TRANSFORMS[name]
  if name == "dora" and tree in (equinox_whole, equinox_shared):  # whose weights are [out, in]
    with pytest.raises(ValueError, match=r"may be \[out, in\], as PyTorch and Equinox have it"):
      transform.split(KEY, params)
    return
  frozen, trainable = transform.split(KEY, params)
  assert {path for path, _ in put_aside(params)} == unseen
  assert all(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(trainable))
  trainable = moved(trainable)
  same = materialize(transform.join(frozen, trainable))
  assert jax.tree.structure(same) == jax.tree.structure(params)

  def gradients(apply):
    return jax.value_and_grad(lambda trainable, frozen: jnp.sum(apply(transform.join(frozen, trainable), inputs) ** 2))

  both = jax.jit(lambda *sides: [gradients(f)(*sides) for f in (lazy(apply), lambda p, x: apply(materialize(p), x))])
  assert_trees_close(*both(trainable, frozen))


@every_tree
def test_arithmetic_of_any_tree(tree):
  params = tree().params
  shift = lambda x: x + jnp.asarray(1, x.dtype) if hasattr(x, "dtype") and is_float(x) else x
  tuned = jax.tree.map(shift, params)
  delta = task_vector(params, tuned)
  assert len(arrays(delta)) == len(arrays(params))
  for made in (apply_task_vector(params, delta, scale=0.5), interpolate(params, tuned, 0.5),
               task_arithmetic([tuned, params], params, scale=0.5)):
    assert jax.tree.structure(made) == jax.tree.structure(params)
    for path, x in arrays(made).items():
      np.testing.assert_allclose(x, arrays(params)[path] + 0.5, rtol=1e-6, atol=1e-6, err_msg=path)


@every_tree
def test_training_of_any_tree(tree):
  params, apply, inputs, _ = tree()

  def objective(params, batch, key):
    return Mean.of(jnp.square(lazy(apply)(params, batch)).sum(-1)), {}

  recipe = Recipe(objective, lora(HIDDEN, rank=2), optax.sgd(1e-3))
  state, frozen = init_state(KEY, params, recipe)
  shapes, _ = abstract_state(params, recipe)
  assert [x.shape for x in jax.tree.leaves(shapes)] == [x.shape for x in jax.tree.leaves(state)]
  step = make_train_step(recipe)
  losses = []
  for _ in range(3):
    state, metrics = step(state, frozen, inputs)
    losses.append(float(metrics["loss"]))
  assert losses[2] < losses[1] < losses[0]


def test_specs_of_linen_boxes():
  params = linen_boxes().params
  frozen, trainable = dora("**/kernel", rank=2).split(KEY, params)
  specs = nn.get_partition_spec(trainable)
  assert specs["up"]["kernel"] == {"a": P("embed", None), "b": P(None, "mlp"), "magnitude": P("mlp")}
  assert specs["down"]["kernel"] == {"a": P("mlp", None), "b": P(None, "embed"), "magnitude": P("embed")}
  assert isinstance(trainable["down"]["kernel"]["a"], nn.LogicallyPartitioned)
  assert not isinstance(trainable["up"]["kernel"]["a"], nn.LogicallyPartitioned)
  assert nn.get_partition_spec(frozen) == nn.get_partition_spec(params)
  moments = nn.get_partition_spec(jax.eval_shape(optax.adam(0.1).init, trainable))
  assert moments[0].mu["up"]["kernel"]["a"] == P("embed", None)
  # Every part of a structured leaf has a box of its own.
  quantized, _ = quantize("up/kernel", block=2).split(KEY, params)
  parts = nn.get_partition_spec(quantized)["up"]["kernel"].value
  assert (parts.codes, parts.scales) == (P("embed", "mlp"), P(None, "mlp"))


class Heads(nn.Module):

  @nn.compact
  def __call__(self, x):
    init = nn.initializers.lecun_normal()
    q = nn.DenseGeneral(
        (4, 2), kernel_init=nn.with_logical_partitioning(init, ("embed", "heads", "kv")), name="query")(x)
    out = nn.with_partitioning(init, ("heads", None, "embed"))
    return nn.DenseGeneral(8, axis=(-2, -1), kernel_init=out, use_bias=False, name="out")(q)


def test_specs_of_arranged_boxes():
  """Of heads and what they hold, made one axis, the heads are cut; a rank of the size of every axis is not."""
  x = jnp.ones((2, 3, 8))
  params = Heads().init(KEY, x)["params"]
  axes = axes_of(lambda params, x: Heads().apply({"params": params}, x), params, x)
  arranged = axes.arrange(params)
  assert nn.get_partition_spec(arranged)["query"]["kernel"] == P("embed", "heads")
  assert isinstance(arranged["query"]["kernel"], nn.LogicallyPartitioned)
  transform = dora("*/kernel", rank=8)
  frozen, trainable = transform.split(KEY, arranged)
  specs = nn.get_partition_spec(trainable)
  assert specs["query"]["kernel"] == {"a": P("embed", None), "b": P(None, "heads"), "magnitude": P("heads")}
  assert specs["out"]["kernel"] == {"a": P("heads", None), "b": P(None, "embed"), "magnitude": P("embed")}
  back = axes.restore(materialize(transform.join(frozen, trainable)))
  assert nn.get_partition_spec(back) == nn.get_partition_spec(params)


def test_statistics_stay_frozen_when_they_are_arranged():
  params, apply, inputs, unseen = nnx_state()
  arranged = axes_of(apply, params, inputs).arrange(params)
  assert {path for path, _ in put_aside(arranged)} == unseen
  _, trainable = lora("up/kernel", rank=2).split(KEY, arranged)
  assert nnx.get_partition_spec(trainable)["up"]["kernel"]["a"].get_value() == P("embed", None)


def test_names_of_stacked_boxes_are_those_of_the_layers():
  box = nn.Partitioned(jnp.ones((3, 4, 8)), ("layers", "embed", "mlp"))
  _, trainable = lora("**", rank=2).split(KEY, {"layers": {"up": box}})
  assert nn.get_partition_spec(trainable)["layers"]["up"] == {"a": P("layers", "embed", None),
                                                              "b": P("layers", None, "mlp")}


@pytest.mark.parametrize("tree", [nnx_state, nnx_module])
def test_specs_of_nnx(tree):
  _, trainable = lora("up/kernel", rank=2).split(KEY, tree().params)
  specs = dict(leaves_with_paths(nnx.get_partition_spec(trainable)))
  assert {path: spec for path, spec in specs.items() if spec is not None} == {
      "up/kernel/a": P("embed", None), "up/kernel/b": P(None, "mlp")}


def test_choices_and_deltas_of_boxes():
  params = linen_boxes().params
  flags = jax.tree.map(lambda x: x.ndim == 2, params)  # booleans in boxes
  _, trainable = train(flags).split(KEY, params)
  assert sorted(path for path, leaf in leaves_with_paths(trainable) if leaf is not None) == ["down/kernel", "up/kernel"]
  assert chosen_entries(*sparse_delta("up/bias").split(KEY, params))["up/bias"][1].shape == (8,)
  assert submatrix_delta(*submatrix(indices={"up/kernel": [1]}).split(KEY, params))["up/kernel"].values.shape == (1, 8)


def test_what_is_no_weight_is_named():
  params = nnx_state().params
  with pytest.raises(ValueError, match=r"select 'norm/mean' matches no weight, .* norm/mean \(BatchStat\)"):
    train("norm/mean").split(KEY, params)
  with pytest.raises(ValueError, match=r"select '\*\*/act' matches no weight, .*: mlp/act \(custom_jvp\)"):
    lora("**/act").split(KEY, {"mlp": {"act": jax.nn.relu, "kernel": jnp.ones((2, 2))}})
  with pytest.raises(ValueError, match=r"params must have weights that are arrays; got only act \(custom_jvp\)"):
    full().split(KEY, {"act": jax.nn.relu})


def test_a_variable_that_a_module_has_twice():
  module = NnxTied(nnx.Rngs(0))
  with pytest.raises(ValueError, match="embed/kernel and head/kernel are the same Param. .* nnx.split"):
    full().split(KEY, module)
  _, params = nnx.split(module)
  assert len(jax.tree.leaves(full().split(KEY, params)[1])) == 1


class NnxTied(nnx.Module):

  def __init__(self, rngs):
    self.embed = nnx.Linear(4, 4, use_bias=False, rngs=rngs)
    self.head = self.embed


def test_penzai_models_with_their_parameters_bound():
  pytest.importorskip("penzai")
  from penzai.models import simple_mlp
  with pytest.raises(ValueError, match=r"got only sublayers/0/.*weights \(Parameter\).*unbind_params"):
    full().split(KEY, simple_mlp.MLP.from_config(KEY, [4, 8]))
