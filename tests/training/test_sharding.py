"""Specs by rule, and specs inherited by what is derived from a leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxft.leaves import Scaled, dot
from jaxft.leaves.annotated import Annotated
from jaxft.losses.reduction import Mean
from jaxft.models import decoder, encoder
from jaxft.training import (
  DECODER_RULES,
  ENCODER_RULES,
  Recipe,
  inherit_specs,
  init_state,
  make_mesh,
  make_train_step,
  place_batch,
  specs_for,
)
from jaxft.training.mesh import cut_rows, join_rows
from jaxft.training.sharding import follows_of
from jaxft.training.state import abstract_state
from jaxft.transforms import chain, dora, learned_scale, lora, quantize, train

SHAPE = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
RULES = [("**/query/kernel", P("fsdp", "tensor"))]


def kernel(*shape):
  return {"query": {"kernel": SHAPE(*shape)}}


def test_a_rule_describes_one_layer_stacked_cut_or_unrolled():
  stacked = specs_for({"layers": kernel(6, 8, 16)}, RULES)
  cut = specs_for({"layers": {"0:2": kernel(2, 8, 16), "2:6": kernel(4, 8, 16)}}, RULES)
  unrolled = specs_for({"layers": {"0": kernel(8, 16)}}, RULES)
  outside = specs_for(kernel(8, 16), RULES)
  assert stacked["layers"]["query"]["kernel"] == P(None, "fsdp", "tensor")
  assert cut["layers"]["2:6"]["query"]["kernel"] == P(None, "fsdp", "tensor")
  assert unrolled["layers"]["0"]["query"]["kernel"] == P("fsdp", "tensor")
  assert outside["query"]["kernel"] == P("fsdp", "tensor")


def test_the_first_rule_that_matches_decides_and_no_rule_replicates():
  rules = [("layers/0/**", P()), *RULES]
  params = {"layers": {"0": kernel(8, 16), "1": kernel(8, 16)}, "head": {"kernel": SHAPE(16, 4)}}
  specs = specs_for(params, rules)
  assert specs["layers"]["0"]["query"]["kernel"] == P()
  assert specs["layers"]["1"]["query"]["kernel"] == P("fsdp", "tensor")
  assert specs["head"]["kernel"] == P()


@pytest.mark.parametrize("spec, message", [
    (P("fsdp", "tensor", None), "layers/0/query/kernel .8, 18., which has only 2 axes"),
    (P("fsdp", "fsdp"), "layers/0/query/kernel .8, 18., which uses a mesh axis twice"),
    (P("fdsp"), "no axis 'fdsp'; nearest: fsdp"),
    (P("fsdp", ("data", "tensor")), "axis 1 of size 18 does not divide by 4"),
])
def test_a_rule_that_does_not_fit_is_refused_with_the_path(spec, message):
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  with pytest.raises(ValueError, match=message):
    specs_for({"layers": {"0": kernel(8, 18)}}, [("**/kernel", spec)], mesh)
  with pytest.raises(TypeError, match="must give a PartitionSpec"):
    specs_for({"layers": {"0": kernel(8, 18)}}, [("**/kernel", ("fsdp",))], mesh)


def test_what_trains_and_its_optimizer_inherit_through_chains():
  params = {"layers": {"query": {"kernel": SHAPE(6, 8, 16)}, "down": {"kernel": SHAPE(6, 16, 8)}}}
  specs = specs_for(params, [*RULES, ("**/down/kernel", P("tensor", "fsdp"))])
  t = chain(lora("**/query/kernel", rank=2), train("**/down/kernel"))
  frozen, trainable = jax.eval_shape(t.split, jax.eval_shape(lambda: jax.random.key(0)), params)
  opt_state = jax.eval_shape(optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init, trainable)
  got = inherit_specs({"trainable": trainable, "frozen": frozen, "opt": opt_state}, params, specs)
  factors = {"a": P(None, "fsdp"), "b": P(None, None, "tensor")}
  assert got["trainable"][0]["layers"]["query"]["kernel"] == factors
  assert got["trainable"][1]["layers"]["down"]["kernel"] == P(None, "tensor", "fsdp")
  assert got["frozen"]["layers"]["query"]["kernel"] == P(None, "fsdp", "tensor")
  adam = got["opt"][1][0]
  assert adam.count == P()
  assert adam.mu[0]["layers"]["query"]["kernel"] == factors
  assert adam.nu[1]["layers"]["down"]["kernel"] == P(None, "tensor", "fsdp")


@pytest.mark.parametrize("shape, mesh, codes, scales", [
    ((6, 64, 16), None, P(None, "fsdp", "tensor"), P(None, "fsdp", "tensor")),
    ((6, 64, 16), {"fsdp": 4, "tensor": 2}, P(None, "fsdp", "tensor"), P(None, "fsdp", "tensor")),
    # Two blocks of rows for four devices: the scales, and with them the codes, are cut by columns.
    ((6, 32, 16), {"fsdp": 4, "tensor": 2}, P(None, None, ("tensor", "fsdp")), P(None, None, ("tensor", "fsdp"))),
    ((6, 32, 10), {"fsdp": 4, "tensor": 2}, P(None, "fsdp", "tensor"), P(None, None, "tensor")),
])
def test_codes_and_scales_are_cut_as_their_matrix_is_and_in_the_same_places(shape, mesh, codes, scales):
  params = {"layers": kernel(*shape)}
  mesh = mesh and make_mesh(data=1, **mesh)
  split = chain(lora("**/kernel", rank=2), quantize("**/kernel", format="nf4", block=16, double=True)).split
  frozen, trainable = jax.eval_shape(split, jax.eval_shape(lambda: jax.random.key(0)), params)
  got = inherit_specs({"frozen": frozen, "trained": trainable}, params, specs_for(params, RULES, mesh), mesh)
  leaf = got["frozen"]["layers"]["query"]["kernel"]
  assert (leaf.codes, leaf.scales, leaf.step, leaf.offset) == (codes, scales, P(), P())
  # The same where the params are quantized already; what adapts such a leaf is cut as its codes are.
  specs = specs_for(frozen, RULES, mesh)
  again = inherit_specs({"frozen": frozen, "trained": trainable}, frozen, specs, mesh)
  assert specs == again["frozen"] == got["frozen"]
  assert again["trained"][0]["layers"]["query"]["kernel"]["b"][2:] == codes[2:]


def test_parts_that_a_class_does_not_name_are_aligned_one_by_one():
  params = {"layers": kernel(6, 8, 16)}
  leaf = Annotated(Scaled(SHAPE(6, 8, 16), SHAPE(6, 1, 16)), {"order": SHAPE(6, 8)})
  got = inherit_specs({"layers": {"query": {"kernel": leaf}}}, params, specs_for(params, RULES))
  of = got["layers"]["query"]["kernel"]
  assert (of.w.w, of.w.s, of.note["order"]) == (P(None, "fsdp", "tensor"), P(None, None, "tensor"), P(None, "fsdp"))


def test_a_step_over_quantized_weights_on_a_mesh_is_that_of_one_device():
  shape = {"layers": kernel(2, 32, 16)}
  params = jax.tree.map(lambda x: np.random.default_rng(0).normal(size=x.shape).astype(x.dtype), shape)
  change = chain(lora("**/kernel", rank=2), quantize("**/kernel", format="nf4", block=16))

  def objective(params, batch, key):
    del key
    y = jax.lax.scan(lambda x, p: (jnp.tanh(jnp.tile(dot(x, p["query"]["kernel"]), 2)), None), batch, params["layers"])
    return Mean.of(jnp.square(y[0])), {}

  found = []
  for mesh in (None, make_mesh(data=1, fsdp=4, tensor=2)):
    recipe = Recipe(objective, change, optax.sgd(0.1), mesh=mesh, rules=RULES)
    state, frozen = init_state(jax.random.key(0), params, recipe)
    leaf = frozen["layers"]["query"]["kernel"]
    assert all(x.addressable_shards[0].data.size * (8 if mesh else 1) == x.size for x in (leaf.codes, leaf.scales))
    batch = np.random.default_rng(1).normal(size=(8, 32)).astype(np.float32)
    state, metrics = make_train_step(recipe)(state, frozen, place_batch(batch, mesh))
    found.append((metrics["loss"], state.trainable))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), *found)


@pytest.mark.parametrize("shape, spec", [
    ((6, 16), P(None, "tensor")),           # a magnitude for each column
    ((6, 8), P(None, "fsdp")),              # a scale for each row
    ((6,), P()),                            # one number a layer
    ((6, 1, 16), P(None, None, "tensor")),  # kept axes
    ((6, 8, 2), P(None, "fsdp")),
    ((4, 6, 8, 16), P(None, None, "fsdp", "tensor")),  # a bank of four
    ((5, 7), P()),
])
def test_axes_are_aligned_by_size(shape, spec):
  params = {"layers": kernel(6, 8, 16)}
  got = inherit_specs({"layers": {"query": {"kernel": {"s": SHAPE(*shape)}}}}, params, specs_for(params, RULES))
  assert got["layers"]["query"]["kernel"]["s"] == spec


def test_an_axis_that_could_be_either_of_two_stays_whole():
  params = {"layers": kernel(6, 8, 8)}
  tree = {"layers": {"query": {"kernel": {"magnitude": SHAPE(6, 8), "a": SHAPE(6, 8, 2), "b": SHAPE(6, 2, 8)}}}}
  got = inherit_specs(tree, params, specs_for(params, RULES))["layers"]["query"]["kernel"]
  assert got == {"magnitude": P(), "a": P(None, "fsdp"), "b": P(None, None, "tensor")}
  assert inherit_specs({"elsewhere": SHAPE(8, 8)}, params, specs_for(params, RULES)) == {"elsewhere": P()}


def test_the_rules_of_the_architectures_cut_every_matrix():
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  decoder_config = decoder.DecoderConfig(
      vocab_size=64, dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=32, tie_embeddings=False)
  encoder_config = encoder.EncoderConfig(vocab_size=61, dim=16, num_layers=2, num_heads=4, mlp_dim=32, max_length=8)
  for model, config, rules in ((decoder, decoder_config, DECODER_RULES), (encoder, encoder_config, ENCODER_RULES)):
    params = jax.eval_shape(lambda k: model.init(k, config), jax.random.key(0))
    specs = specs_for(params, rules, mesh)
    for (keys, leaf), spec in zip(jax.tree_util.tree_flatten_with_path(params)[0],
                                  jax.tree.leaves(specs, is_leaf=lambda s: isinstance(s, P)), strict=True):
      matrix = str(keys[-1].key) in ("kernel", "embedding")
      assert ("fsdp" in spec) == matrix, jax.tree_util.keystr(keys)
      assert leaf.ndim >= len(spec)


def test_meshes():
  assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
  assert dict(make_mesh(fsdp=2, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
  assert make_mesh(data=1, fsdp=3).size == 3
  with pytest.raises(ValueError, match="takes 16 devices; got 8"):
    make_mesh(data=4, fsdp=4)
  with pytest.raises(ValueError, match="must divide the 8 devices; got 3"):
    make_mesh(fsdp=3)
  with pytest.raises(ValueError, match="tensor must be at least 1; got 0"):
    make_mesh(tensor=0)


def test_cut_rows_is_undone_by_join_rows():
  x = jnp.arange(24).reshape(12, 2)
  parts = cut_rows({"x": x, "scalar": 3.0}, 4)
  assert parts["scalar"] is None and parts["x"].shape == (4, 3, 2)
  assert (parts["x"][1] == x[1::4]).all()
  assert (join_rows(parts["x"]) == x).all()


@pytest.mark.parametrize("shape, rank", [((6, 8, 16), 2), ((6, 8, 8), 8), ((8, 8, 8), 2)])
def test_an_array_says_which_axes_of_its_weight_it_follows_and_is_cut_along_them_by_all_mesh_axes(shape, rank):
  """Of square weights, of a rank of their size and of as many layers: sizes tell nothing there."""
  params, mesh = {"layers": kernel(*shape)}, make_mesh(data=1, fsdp=4, tensor=2)
  transform = chain(dora("**/kernel", rank=rank), learned_scale("**/kernel", axis="in"))
  specs = specs_for(params, RULES, mesh)
  frozen, trained = follows_of(transform.split, params)
  split = jax.eval_shape(transform.split, jax.eval_shape(lambda: jax.random.key(0)), params)
  factors, scale = (part["layers"]["query"]["kernel"] for part in inherit_specs(split[1], params, specs, mesh, trained))
  assert factors["a"] == P(None, ("fsdp", "tensor")) and factors["b"] == P(None, None, ("tensor", "fsdp"))
  # A magnitude for each column; rows alone have a scale. Both took the other mesh axis on, where it divides.
  columns, rows = (P(None, ("tensor", "fsdp")), P(None, ("fsdp", "tensor")))
  assert factors["magnitude"] == columns
  assert jax.tree.leaves(scale, is_leaf=lambda s: isinstance(s, P)) == [P(None, *rows[1:])]
  assert inherit_specs(split[0], params, specs, mesh, frozen)["layers"]["query"]["kernel"] == P(None, "fsdp", "tensor")
  # Without a mesh nobody knows what divides: each is cut as its weight is.
  alone = inherit_specs(split[1], params, specs, None, trained)[0]["layers"]["query"]["kernel"]
  assert alone == {"a": P(None, "fsdp"), "b": P(None, None, "tensor"), "magnitude": P(None, "tensor")}


def test_what_does_not_divide_stays_whole_along_that_mesh_axis_and_a_split_that_reads_values_is_aligned_by_size():
  params, mesh = {"layers": kernel(6, 4, 6)}, make_mesh(data=1, fsdp=4, tensor=2)
  split = lora("**/kernel", rank=2).split
  trained = jax.eval_shape(split, jax.eval_shape(lambda: jax.random.key(0)), params)[1]
  specs = specs_for(params, RULES, mesh)
  got = inherit_specs(trained, params, specs, mesh, follows_of(split, params)[1])["layers"]["query"]["kernel"]
  assert got == {"a": P(None, "fsdp"), "b": P(None, None, "tensor")}

  def reads(key, params):
    return {}, {"rows": params["w"][: int(params["w"].sum())]}

  assert follows_of(reads, {"w": jnp.ones((2, 2))}) == ({}, {})


def test_the_state_of_a_step_is_cut_so_and_computes_what_one_device_does():
  shape = {"layers": kernel(2, 16, 16)}
  params = jax.tree.map(lambda x: np.random.default_rng(0).normal(size=x.shape).astype(x.dtype), shape)

  def objective(params, batch, key):
    del key
    y = jax.lax.scan(lambda x, p: (jnp.tanh(dot(x, p["query"]["kernel"])), None), batch, params["layers"])[0]
    return Mean.of(jnp.square(y)), {}

  found = []
  for mesh in (None, make_mesh(data=1, fsdp=4, tensor=2)):
    recipe = Recipe(objective, dora("**/kernel", rank=2), optax.adam(0.1), mesh=mesh, rules=RULES)
    state, frozen = init_state(jax.random.key(0), params, recipe)
    if mesh is not None:
      leaves = [*jax.tree.leaves(state.trainable), *jax.tree.leaves((state.opt_state[0].mu, state.opt_state[0].nu))]
      assert len(leaves) == 9 and all(x.addressable_shards[0].data.size * 8 == x.size for x in leaves)
      planned = abstract_state(params, recipe)[0]
      assert jax.tree.map(lambda x: x.sharding, planned) == jax.tree.map(lambda x: x.sharding, state)
    step, batch = make_train_step(recipe), np.random.default_rng(1).normal(size=(8, 16)).astype(np.float32)
    for _ in range(2):  # the second finds the state as the first leaves it
      state, metrics = step(state, frozen, place_batch(batch, mesh))
    found.append((metrics["loss"], state.trainable))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), *found)
