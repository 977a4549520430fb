"""Models of public packages as they come: read by `axes_of`, tuned and merged in the arranged form, and given back."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.choices import s2ft_units
from jaxft.leaves import MaterializedWarning, lazy, materialize
from jaxft.merging import lines, ties
from jaxft.transforms import chain, dora, lora, oft, quantize, submatrix
from jaxft.tree import axes_of, coupled_units, layer_of, leaves_with_paths, task_vector
from jaxft.tree.globs import glob_to_regex
from tests.contracts.comparison import assert_trees_close, assert_trees_equal
from tests.foreign import (
  dm_haiku,
  equimo_vit,
  equinox_bert,
  flax_linen,
  flax_nnx,
  keras_transformer,
  penzai_llama,
  tunix_models,
)
from tests.foreign.package import DIM, HEAD, HEADS, HIDDEN, KEY, LAYERS

OWN = [  # packages of the project's own environment
    flax_linen.lm1b, flax_linen.vit, flax_linen.vit_scanned_over_axis_1, flax_nnx.gemma, flax_nnx.gemma_scanned,
    equinox_bert.bert,
]
PACKAGES = {
    "haiku": [dm_haiku.transformer], "penzai": [penzai_llama.llama, penzai_llama.llama_stacked],
    "tunix": [tunix_models.llama3, tunix_models.qwen3, tunix_models.qwen3_experts, tunix_models.gemma2],
    "equimo": [equimo_vit.vision_transformer], "keras": [keras_transformer.transformer],
}
EVERY = [("flax", make) for make in OWN] + [(name, make) for name, made in PACKAGES.items() for make in made]
METHODS = {
    "lora": lambda model, axes, arranged: lora(model.matrices, rank=2),
    "dora": lambda model, axes, arranged: dora(model.matrices, rank=2),
    "qlora": lambda model, axes, arranged: chain(
        lora(model.matrices, rank=2), quantize(model.matrices, format="int8", block=8)),
    "s2ft": lambda model, axes, arranged: submatrix(units(model, axes, arranged)),
    "oft": lambda model, axes, arranged: oft(model.matrices, block=4),
}


def units(model, axes, arranged):
  """A quarter of the heads and channels of each layer, as the function has them."""
  found = coupled_units(axes.arranged(model.apply), arranged, model.inputs)
  return s2ft_units(KEY, arranged, units=found, heads=0.25, channels=0.25, scope="layer")


MODELS = [pytest.param(package, make, id=f"{make.__module__.rpartition('.')[2]}-{make.__name__}")
          for package, make in EVERY]


@functools.cache
def read(package, make):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # those of other packages about themselves
    pytest.importorskip(package)
    model = make()
    # As they come, tunix's mlps are zeros, and biases everywhere.
    model = model._replace(params=drawn(0, model.params, scale=0.2))
    return model, axes_of(model.apply, model.params, model.inputs, layers=model.layers)


def matching(tree, glob):
  found = {path: leaf for path, leaf in leaves_with_paths(tree) if glob_to_regex(glob).fullmatch(path)}
  assert found, glob
  return found


def drawn(seed, tree, scale=0.1):
  rng = np.random.default_rng(seed)
  draw = lambda x: x + jnp.asarray(scale * rng.standard_normal(x.shape), x.dtype) if _floats(x) else x
  return jax.tree.map(draw, tree)


def _floats(x):
  return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def check_reading(model, axes):
  """Each matrix, of whatever shape it was, reads the stream or writes to it, in a layer of its own."""
  arranged = axes.arrange(model.params)
  for glob, rows in ((model.out, HEADS * HEAD), (model.down, HIDDEN)):
    assert {leaf.shape[-2:] for leaf in matching(arranged, glob).values()} == {(rows, DIM)}
    assert set(np.ravel([layer_of(*pair) for pair in matching(arranged, glob).items()])) == set(range(LAYERS))
  assert not any(own.kind == "matrix" for path, own in axes.items() if own.shape in ((DIM,), (1, DIM)))
  assert jax.tree.structure(axes.restore(arranged)) == jax.tree.structure(model.params)
  assert_trees_equal([x for _, x in leaves_with_paths(axes.restore(arranged)) if _floats(x)],
                     [x for _, x in leaves_with_paths(model.params) if _floats(x)])


@pytest.mark.parametrize("make", [flax_linen.vit_scanned_over_axis_1, flax_nnx.gemma, equinox_bert.bert])
def test_models_in_the_style_of_three_packages_are_read(make):
  check_reading(*read("flax", make))


@pytest.mark.exhaustive
@pytest.mark.parametrize("package, make", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_models_are_read(package, make):
  check_reading(*read(package, make))


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("package, make", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_adapters_equal_the_plain_path_and_nothing_is_formed(package, make, method):
  model, axes = read(package, make)
  arranged = axes.arrange(model.params)
  transform = METHODS[method](model, axes, arranged)
  frozen, trainable = transform.split(KEY, arranged)
  trainable = drawn(1, trainable)
  back = lambda params: axes.restore(materialize(params))

  def loss(apply):
    return jax.value_and_grad(lambda trainable: jnp.mean(jnp.sin(apply(transform.join(frozen, trainable)))))

  fast = loss(lambda params: lazy(axes.arranged(model.apply))(params, model.inputs))
  plain = loss(lambda params: model.apply(back(params), model.inputs))
  with warnings.catch_warnings():
    warnings.simplefilter("error", MaterializedWarning)
    got, want = jax.jit(lambda trainable: (fast(trainable), plain(trainable)))(trainable)
  assert_trees_close(got, want, atol=5e-5)  # of gradients up to 2: float32 rounds sums in either order
  # An update that moves nothing would make both equal too.
  assert all(np.any(np.asarray(g)) for g in jax.tree.leaves(got[1]))
  tuned = back(transform.join(frozen, trainable))
  assert jax.tree.structure(tuned) == jax.tree.structure(model.params)
  np.testing.assert_allclose(
      jnp.mean(jnp.sin(model.apply(tuned, model.inputs))), want[0], rtol=1e-4, atol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("package, make", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_whole_heads_and_channels_are_chosen(package, make):
  model, axes = read(package, make)
  arranged = axes.arrange(model.params)
  choice = dict(leaves_with_paths(units(model, axes, arranged)))
  for glob, unit, size in ((model.out, HEAD, HEADS), (model.down, 1, HIDDEN)):
    for path in matching(arranged, glob):
      rows = np.asarray(choice[path]).any(-1)
      per_unit = rows.reshape(*rows.shape[:-1], -1, unit)
      assert (per_unit.all(-1) == per_unit.any(-1)).all() and (per_unit.any(-1).sum(-1) == size // 4).all()


@pytest.mark.exhaustive
@pytest.mark.parametrize("package, make", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_merges_in_the_arranged_form_are_those_of_the_models_own(package, make):
  model, axes = read(package, make)
  names = list(axes)
  mine = lambda tree: [x for _, x in leaves_with_paths(tree) if hasattr(x, "dtype")]
  a, b = (drawn(seed, model.params) for seed in (1, 2))
  base, ours, theirs = map(axes.arrange, (model.params, a, b))
  merged = axes.restore(ties([ours, theirs], base, density=0.5))
  flat = [dict(zip(names, mine(tree), strict=True)) for tree in (model.params, a, b)]
  floats = {name for name, x in flat[0].items() if _floats(x)}
  flat = [{name: x for name, x in tree.items() if name in floats} for tree in flat]
  want = ties(flat[1:], flat[0], density=0.5)
  got = {name: x for name, x in zip(names, mine(merged), strict=True) if name in floats}
  assert_trees_close(got, want)
  assert np.isfinite(np.asarray(model.apply(merged, model.inputs))).all()

  # LiNeS keeps the update of the last layer and drops that of the first.
  scaled = lines(task_vector(base, ours), alpha=0.0, beta=1.0)
  whole = dict(leaves_with_paths(task_vector(base, ours)))
  for glob in (model.out, model.down):
    for path, leaf in matching(scaled, glob).items():
      layers = np.ravel(layer_of(path, leaf))
      factor = (layers / (LAYERS - 1)).reshape(-1, *[1] * (leaf.ndim - (len(layers) > 1))) if len(layers) > 1 else (
          layers[0] / (LAYERS - 1))
      np.testing.assert_allclose(leaf, factor * whole[path], rtol=1e-5, atol=1e-6)
