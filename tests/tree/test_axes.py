"""What `axes_of` reads from the functions of models in the styles of other libraries, and arranging by it."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxft.tree import axes_of, layer_of, leaves_with_paths
from jaxft.tree.axes import axes_by_hand

X = jax.ShapeDtypeStruct((2, 7, 16), jnp.float32)
IDS = jax.ShapeDtypeStruct((2, 7), jnp.int32)


def shapes(**leaves):
  return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in leaves.items()}


def patterns(apply, params, *inputs, **settings):
  axes = axes_of(apply, params, *inputs, **settings)
  return {axes.paths[path]: (own.kind, own.pattern) for path, own in axes.items()}


def filled(params):
  """Params with another number in each entry, in the place of shapes."""
  rng = np.random.default_rng(0)
  draw = lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x
  return jax.tree.map(draw, params)


class Block(nn.Module):

  @nn.compact
  def __call__(self, x, _=None):
    x = x + nn.MultiHeadDotProductAttention(num_heads=4, qkv_features=8, name="attention")(x, x)
    return x + nn.Dense(16, name="down")(nn.relu(nn.Dense(32, name="up")(nn.LayerNorm(name="norm")(x)))), None


class Linen(nn.Module):
  scan_axis: int | None

  @nn.compact
  def __call__(self, ids):
    table = nn.Embed(11, 16, name="tokens")
    x = table(ids) + self.param("positions", nn.initializers.zeros, (1, 7, 16))
    if self.scan_axis is None:
      for i in range(3):
        x, _ = Block(name=f"encoderblock_{i}")(x)
    else:
      stack = nn.scan(
          nn.remat(Block), variable_axes={"params": self.scan_axis}, split_rngs={"params": True}, length=3)
      x, _ = stack(name="block")(x, None)
    return table.attend(x)


def linen(scan_axis):
  model = Linen(scan_axis)
  params = jax.eval_shape(model.init, jax.random.key(0), IDS)["params"]
  return params, lambda params, ids: model.apply({"params": params}, ids)


ARRANGED_BLOCK = {
    "attention/query/kernel": (16, 8), "attention/key/bias": (8,), "attention/out/kernel": (8, 16),
    "attention/out/bias": (16,), "up/kernel": (16, 32), "down/kernel": (32, 16), "norm/scale": (16,),
}


@pytest.mark.parametrize("scan_axis", [0, 1])
def test_a_scanned_model_has_its_layers_in_front_whatever_axis_they_lie_along(scan_axis):
  params, apply = linen(scan_axis)
  axes = axes_of(apply, params, IDS)
  arranged = dict(leaves_with_paths(axes.arrange(params)))
  for path, shape in ARRANGED_BLOCK.items():
    leaf = arranged[f"block/layers/{path}"]
    assert leaf.shape == (3, *shape)
    np.testing.assert_array_equal(layer_of(f"block/layers/{path}", leaf), [0, 1, 2])
  assert axes["tokens/embedding"].kind == "table" and list(axes.disagreements) == ["tokens/embedding"]
  assert axes["positions"].kind == "vector" and arranged["positions"].shape == (7 * 16,)


def test_unrolled_layers_of_any_name_are_layers():
  params, apply = linen(None)
  axes = axes_of(apply, params, IDS)
  arranged = dict(leaves_with_paths(axes.arrange(params)))
  for path, shape in ARRANGED_BLOCK.items():
    leaf = arranged[f"encoderblock/layers/2/{path}"]
    assert leaf.shape == shape and layer_of(f"encoderblock/layers/2/{path}", leaf) == 2
  lines = len(jax.tree.leaves(params["encoderblock_0"])) + 2  # one for all layers
  assert len(repr(axes).splitlines()) == lines


@pytest.mark.parametrize("scan_axis", [None, 1])
def test_arranging_and_back_changes_no_bit_and_the_function_is_the_same(scan_axis):
  params, apply = linen(scan_axis)
  axes, params = axes_of(apply, params, IDS), filled(params)
  arranged = axes.arrange(params)
  jax.tree.map(np.testing.assert_array_equal, axes.restore(arranged), params)
  if scan_axis:  # the kernel of a head's query, found in the arranged matrix
    own = params["block"]["attention"]["query"]["kernel"]
    np.testing.assert_array_equal(
        own[:, 2, 3], arranged["block"]["layers"]["attention"]["query"]["kernel"][2][:, 3 * 2: 4 * 2])
    out = params["block"]["attention"]["out"]["kernel"]
    np.testing.assert_array_equal(
        out[1, 2], arranged["block"]["layers"]["attention"]["out"]["kernel"][2][1 * 2: 2 * 2])
  ids = np.arange(14, dtype=np.int32).reshape(2, 7) % 11
  same = jax.jit(lambda: apply(params, ids) - axes.arranged(apply)(arranged, ids))()
  np.testing.assert_allclose(same, 0, atol=1e-4)


def test_the_librarys_own_models_are_arranged_already():
  from jaxft.formats import load
  from jaxft.models import decoder, encoder
  mask = jax.ShapeDtypeStruct((2, 7), jnp.float32)
  text = load("minilm-l6:tiny")
  language = load("smollm2-135m:tiny")
  for params, apply, inputs in (
      (text.params, lambda p, ids, mask: encoder.embed(p, text.config, ids, mask), (IDS, mask)),
      (language.params, lambda p, ids: decoder.logits(
          p, language.config, decoder.hidden_states(p, language.config, ids).hidden), (IDS,))):
    axes = axes_of(apply, params, *inputs)
    for path, own in axes.items():
      assert axes.paths[path] == path and own.arranged_shape == own.shape and own.order == tuple(range(len(own.shape)))
      assert own.kind == {"kernel": "matrix", "embedding": "table"}.get(path.rpartition("/")[2], "vector")


class NnxBlock(nnx.Module):

  def __init__(self, rngs):
    self.attention = nnx.MultiHeadAttention(num_heads=4, in_features=16, decode=False, rngs=rngs)
    self.norm, self.drop = nnx.BatchNorm(16, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)

  def __call__(self, x):
    return self.drop(self.norm(x + self.attention(x), use_running_average=True), deterministic=True)


class NnxModel(nnx.Module):

  def __init__(self, rngs):
    self.parts = nnx.List([NnxBlock(rngs) for _ in range(2)])

  def __call__(self, x):
    for part in self.parts:
      x = part(x)
    return x


def test_an_nnx_state_with_counts_of_random_numbers_and_statistics():
  graph, state = nnx.split(NnxModel(nnx.Rngs(0)))
  axes = axes_of(lambda state, x: nnx.merge(graph, state)(x), state, X)
  arranged = axes.arrange(state)
  found = dict(leaves_with_paths(arranged))
  assert found["parts/layers/1/attention/out/kernel"].shape == (16, 16)
  assert axes["parts/1/drop/rngs/count"].kind == "unused" and axes["parts/1/norm/var"].kind == "vector"
  back = axes.restore(arranged)
  assert jax.tree.structure(back) == jax.tree.structure(state)


class EquinoxBlock(eqx.Module):
  attention: eqx.nn.MultiheadAttention
  mlp: eqx.nn.MLP

  def __call__(self, x):
    x = x + self.attention(x, x, x)
    return x + jax.vmap(self.mlp)(x)


class EquinoxModel(eqx.Module):
  table: eqx.nn.Embedding
  body: list
  conv: eqx.nn.Conv1d

  def __call__(self, ids):
    x = jax.vmap(self.table)(ids)
    for block in self.body:
      x = block(x)
    return self.conv(x.T)


def test_an_equinox_module_with_functions_among_its_leaves():
  key = jax.random.key(0)
  block = EquinoxBlock(eqx.nn.MultiheadAttention(4, 16, key=key), eqx.nn.MLP(16, 16, 32, 1, key=key))
  model = EquinoxModel(eqx.nn.Embedding(11, 16, key=key), [block, block], eqx.nn.Conv1d(16, 8, 3, key=key))
  axes = axes_of(lambda model, ids: jax.vmap(model)(ids), model, IDS)
  assert axes["body/0/mlp/layers/0/weight"].pattern == "out in -> in out"
  assert axes["table/weight"].kind == "table" and axes["table/weight"].pattern == "in out -> in out"
  assert axes["conv/weight"].pattern == "out in0 in1 -> (in0 in1) out"
  arranged = dict(leaves_with_paths(axes.arrange(model)))
  assert arranged["body/layers/1/mlp/layers/0/kernel"].shape == (16, 32)
  assert layer_of("body/layers/1/mlp/layers/0/kernel", None) == 1
  assert eqx.tree_equal(axes.restore(axes.arrange(model)), model)


class Convolutions(nn.Module):

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(8, (3, 3), name="conv")(x)
    x = nn.Conv(8, (3, 3), feature_group_count=8, name="depthwise")(x)
    return nn.Conv(8, (3, 3), feature_group_count=2, name="grouped")(x)


def test_convolutions_are_matrices_depthwise_ones_are_named_and_grouped_ones_must_be_given():
  image = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  params = jax.eval_shape(Convolutions().init, jax.random.key(0), image)
  apply = lambda params, x: Convolutions().apply(params, x)
  with pytest.raises(ValueError, match=r"params/grouped/kernel \(3, 3, 4, 8\) do not tell rows from columns"):
    axes_of(apply, params, image)
  axes = axes_of(apply, params, image, by_hand={"**/grouped/kernel": "h w in out -> (h w in) out"})
  assert axes["params/conv/kernel"].arranged_shape == (27, 8) and axes["params/conv/kernel"].kind == "matrix"
  assert axes["params/depthwise/kernel"].arranged_shape == (9, 8)
  assert axes["params/depthwise/kernel"].kind == "depthwise"


def test_a_depthwise_kernel_that_is_called_weight_is_a_kernel_too():
  conv = eqx.nn.Conv1d(16, 16, 3, groups=16, key=jax.random.key(0))
  axes = axes_of(lambda m, x: jax.vmap(m)(x), conv, jax.ShapeDtypeStruct((2, 16, 7), jnp.float32))
  assert axes["weight"].kind == "depthwise" and axes.paths["weight"] == "kernel"


def test_experts_and_layers_of_loops_and_scans():
  params = shapes(gate=(16, 4), up=(3, 4, 16, 32), down=(3, 4, 32, 16), mix=(3, 16, 16))

  def layer(x, gate, up, down, mix):
    h = jax.nn.relu(jnp.einsum("ebtd,edf->ebtf", jnp.stack([x] * 4), up))
    return x + jnp.einsum("ebtd,bte->btd", jnp.einsum("ebtf,efd->ebtd", h, down), x @ gate) @ mix

  loop = lambda p, x: jax.lax.fori_loop(
      0, 3, lambda i, x: layer(x, p["gate"], p["up"][i], p["down"][i], p["mix"][i]), x)
  scan = lambda p, x: jax.lax.scan(
      lambda x, w: (layer(x, p["gate"], *w), None), x, (p["up"], p["down"], p["mix"]))[0]
  unrolled = lambda p, x: layer(layer(x, p["gate"], p["up"][0], p["down"][0], p["mix"][0]), p["gate"], p["up"][1],
                                p["down"][1], p["mix"][1])
  for apply in (loop, scan, unrolled):
    assert patterns(apply, params, X) == {
        "layers/experts/down": ("matrix", "layers experts in out -> layers experts in out"),
        "gate": ("matrix", "in out -> in out"),
        "layers/mix": ("matrix", "layers in out -> layers in out"),
        "layers/experts/up": ("matrix", "layers experts in out -> layers experts in out"),
    }


def test_matrices_that_are_picked_one_by_one_within_a_layer_are_experts():
  moe = lambda p, x: sum(jnp.tanh(x @ p["up"][i]) * (x @ p["gate"])[..., i:i + 1] for i in range(4)) @ p["down"]
  layer = lambda *n: shapes(up=(*n, 4, 16, 32), gate=(*n, 16, 4), down=(*n, 32, 16))
  experts = ("matrix", "experts in out -> experts in out")
  unrolled = patterns(
      lambda p, x: moe(p["block_1"], moe(p["block_0"], x)), {f"block_{i}": layer() for i in range(2)}, X)
  assert unrolled["block_1/experts/up"] == unrolled["block_0/experts/up"] == experts
  scanned = patterns(lambda p, x: jax.lax.scan(lambda x, p: (moe(p, x), None), x, p)[0], layer(3), X)
  assert scanned["layers/experts/up"] == ("matrix", "layers experts in out -> layers experts in out")
  # Where all that a tower has is indexed, it is its layers.
  tower = lambda p, x: jnp.tanh(jnp.tanh(x @ p["up"][0]) @ p["up"][1]) * p["scale"][0]
  towers = patterns(lambda p, x: tower(p["tower_0"], x) + tower(p["tower_1"], x),
                    {f"tower_{i}": shapes(up=(2, 16, 16), scale=(2, 16)) for i in range(2)}, X)
  assert {pattern.split()[0] for kind, pattern in towers.values() if kind == "matrix"} == {"layers"}


def test_matrices_that_are_gathered_for_each_token_are_experts_and_entries_of_a_table_are_not():
  def top_k(p, x):
    x = x.reshape(-1, 16)
    gates, chosen = jax.lax.top_k(x @ p["gate"], 2)
    return jnp.einsum("tkf,tkfd,tk->td", jnp.einsum("td,tkdf->tkf", x, p["up"][chosen]), p["down"][chosen], gates)

  experts = ("matrix", "experts in out -> experts in out")
  assert patterns(top_k, shapes(gate=(16, 4), up=(4, 16, 32), down=(4, 32, 16)), X) == {
      "gate": ("matrix", "in out -> in out"), "experts/up": experts, "experts/down": experts}
  for apply in (lambda p, x: p["table"][jnp.arange(7) % 4] + x.reshape(2, 7, 4, 4),
                lambda p, x: jnp.einsum("thd,hde->te", p["table"][jnp.arange(7) % 4], p["out"]) + x,
                lambda p, x: p["table"][x[0, :, 0].astype(int) % 4]):
    found = patterns(apply, shapes(table=(4, 4, 4), out=(4, 4, 16)), X)
    assert found["table"] == ("table", "in out0 out1 -> in (out0 out1)")


def test_experts_of_a_ragged_product():
  apply = lambda p, x: jax.lax.ragged_dot(x, p["up"], jnp.array([2, 5]))
  found = patterns(apply, shapes(up=(2, 16, 32)), jax.ShapeDtypeStruct((7, 16), jnp.float32))
  assert found == {"experts/up": ("matrix", "experts in out -> experts in out")}


def test_fused_and_grouped_attention():
  def apply(p, x):
    split = lambda t: t.reshape(2, 7, 4, 4)
    q, k, v = map(split, jnp.split(x @ p["qkv"], 3, -1))
    a = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
    x = x + jnp.einsum("bhts,bshd,hde->bte", a, v, p["out"])
    q = jnp.einsum("btd,dnh->btnh", x, p["query"])
    k, v = jnp.repeat(jnp.einsum("btd,cdnh->cbtnh", x, p["key_value"]), 2, axis=3)
    return x + jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k)), v).reshape(2, 7, 16)

  params = shapes(qkv=(16, 48), out=(4, 4, 16), query=(16, 4, 4), key_value=(2, 16, 2, 4))
  assert {path: pattern for path, (_, pattern) in patterns(apply, params, X).items()} == {
      "key_value": "out0 in out1 out2 -> in (out0 out1 out2)", "out": "in0 in1 out -> (in0 in1) out",
      "query": "in out0 out1 -> in (out0 out1)", "qkv": "in out -> in out",
  }


@pytest.mark.parametrize("lookup", [
    lambda w, ids: w[ids],
    lambda w, ids: jnp.take(w, ids, axis=0, mode="clip"),
    lambda w, ids: jax.vmap(jax.vmap(lambda i: w[i]))(ids),
    lambda w, ids: w[ids[0, 0]] * 2.0 + ids[0, 0],
    lambda w, ids: jax.lax.map(lambda i: jax.lax.dynamic_index_in_dim(w, i, keepdims=False) + i, ids[0]),
    lambda w, ids: jax.nn.one_hot(ids, 11) @ w,
])
def test_rows_of_a_table_are_found_in_all_forms(lookup):
  axes = axes_of(lambda p, ids: lookup(p["table"], ids), shapes(table=(11, 16)), IDS)
  assert axes["table"].pattern == "in out -> in out"


def test_two_towers_of_unequal_depth_have_a_stack_each():
  step = lambda x, w: (jnp.tanh(x @ w["up"].T) @ w["down"], None)
  tower = lambda n: shapes(up=(n, 32, 16), down=(n, 32, 16))
  params = {"vision": {"block": tower(2)}, "text": {"h": tower(4)}}
  apply = lambda p, x: (
      jax.lax.scan(step, x, p["vision"]["block"])[0] + jax.lax.scan(step, x, p["text"]["h"])[0])
  axes = axes_of(apply, params, X)
  found = {path: layer_of(path, leaf).tolist() for path, leaf in leaves_with_paths(axes.arrange(params))}
  assert found == {
      "text/h/layers/up": [0, 1, 2, 3], "text/h/layers/down": [0, 1, 2, 3],
      "vision/block/layers/up": [0, 1], "vision/block/layers/down": [0, 1]}
  assert axes["text/h/up"].pattern == "layers out in -> layers in out"


def test_what_custom_derivatives_remat_cond_and_casts_hide_is_found():
  @jax.custom_vjp
  def product(w, x):
    return x @ w.T

  product.defvjp(lambda w, x: (product(w, x), (w, x)), lambda saved, g: (saved[0], g @ saved[0]))

  def apply(p, x):
    w = jax.lax.stop_gradient(p["cast"].astype(jnp.bfloat16)).astype(jnp.float32) * 2.0
    y = jax.checkpoint(lambda x: jax.jit(product)(p["ruled"], x))(x) @ w
    return jax.lax.cond(x.sum() > 0, lambda y: y @ p["branch"], lambda y: y, y)

  found = patterns(apply, shapes(cast=(16, 16), ruled=(16, 16), branch=(16, 16)), X)
  assert {p: pattern for p, (_, pattern) in found.items()} == {
      "cast": "in out -> in out", "ruled": "out in -> in out", "branch": "in out -> in out"}


def test_what_the_function_does_not_decide_is_an_error_with_the_way_out():
  tied = lambda p, x: x @ p["w"] @ p["w"].T
  with pytest.raises(ValueError, match=r"(?s)uses of w \(16, 4\) disagree:.*rows \(0,\).*rows \(1,\).*by_hand must"):
    axes_of(tied, shapes(w=(16, 4)), X)
  assert patterns(tied, shapes(w=(16, 4)), X, by_hand={"w": "a b -> a b"}) == {"w": ("matrix", "in out -> in out")}
  with pytest.raises(ValueError, match=r"a \(16, 2\) do not tell rows from columns"):
    axes_of(lambda p, x: x @ (p["w"] + p["a"] @ p["b"]), shapes(w=(16, 16), a=(16, 2), b=(2, 16)), X)
  with pytest.raises(ValueError, match=r"by_hand must match leaves; '\*\*/kernel' matches none of w"):
    axes_of(tied, shapes(w=(16, 4)), X, by_hand={"**/kernel": "a b -> a b"})


def test_what_meets_activations_entry_by_entry_is_a_vector_in_all_forms():
  scale = jax.vmap(jnp.dot, in_axes=(-1, 0), out_axes=-1)  # a product of no axes but the batch's: penzai's norms
  apply = lambda p, x: jnp.concatenate(
      [jnp.broadcast_to(p["cls"], (2, 1, 16)), jax.vmap(lambda x: jnp.concatenate([p["registers"], x]))(x)], axis=1) * (
          jnp.einsum("btd,d->btd", x[:, :1], p["scale"]) + scale(x[0, :1].T[None, :, :].T[..., 0], p["scale"]))
  found = patterns(apply, shapes(cls=(1, 1, 16), registers=(4, 16), scale=(16,)), X)
  assert {kind for kind, _ in found.values()} == {"vector"} and found["scale"] == ("vector", "out -> out")


def test_siblings_within_what_reads_as_a_layer_have_their_own_depth():
  params = {"blocks": {"0": {"blocks": {str(i): shapes(up=(16, 16), down=(16, 16)) for i in range(3)}}}}

  def apply(p, x):
    for w in p["blocks"]["0"]["blocks"].values():
      x = x + jnp.tanh(x @ w["up"]) @ w["down"]
    return x

  axes = axes_of(apply, params, X)
  for i in range(3):
    path = axes.paths[f"blocks/0/blocks/{i}/up"]
    assert path == f"blocks-0/blocks/layers/{i}/up" and layer_of(path, None) == i


def test_siblings_within_siblings_must_be_told_apart():
  one = lambda: shapes(up=(16, 16), down=(16, 16))
  params = {f"stage_{i}": {f"block_{j}": one() for j in range(2)} for i in range(2)}

  def apply(p, x):
    for w in jax.tree.leaves(p, is_leaf=lambda t: "up" in t):
      x = x + jnp.tanh(x @ w["up"]) @ w["down"]
    return x

  with pytest.raises(ValueError, match="layers must say which of these are layers, stage_0 to stage_1 or"):
    axes_of(apply, params, X)
  axes = axes_of(apply, params, X, layers="stage_*/block_*")
  assert axes.paths["stage_1/block_0/up"] == "stage_1/block_0/up"  # the layer of its own stack, read from its name
  assert layer_of(axes.paths["stage_1/block_1/up"], None) == 1
  assert axes_of(apply, params, X, layers="stage_*").paths["stage_1/block_0/up"] == "stage/layers/1/block_0/up"
  with pytest.raises(ValueError, match="layers must match subtrees; body_0 matches none of"):
    axes_of(apply, params, X, layers="body_0")


@pytest.mark.parametrize("pattern, why", [
    ("a b c", "each axis once"), ("a b -> a", "each axis once"), ("a b -> a (b", "each axis once"),
    ("a b -> ((a) b)", "do not nest"), ("a a -> a a", "each axis once"), ("a b c -> a b c", "one group for a vector"),
    ("a b -> a b", "with 3 axes before the arrow"),
])
def test_a_pattern_by_hand_is_checked(pattern, why):
  with pytest.raises(ValueError, match=f"by_hand for w \\(2, 3, 4\\) must be such as.*{why}"):
    axes_by_hand("w", (2, 3, 4), pattern)


def test_patterns_by_hand_name_stacks():
  own = axes_by_hand("w", (2, 3, 4, 5), "in layers out experts -> layers experts in out")
  assert own.arranged_shape == (3, 5, 2, 4)
  assert axes_by_hand("b", (2, 3), "heads dim -> (heads dim)").kind == "vector"


def test_trees_of_another_structure_or_shape_are_refused():
  axes = axes_of(lambda p, x: x @ p["w"].T + p["b"], shapes(w=(4, 16), b=(4,)), X)
  with pytest.raises(ValueError, match="params must have the structure"):
    axes.arrange(shapes(w=(4, 16)))
  with pytest.raises(ValueError, match=r"w has \(16, 4\) and had \(4, 16\)"):
    axes.arrange(shapes(w=(16, 4), b=(4,)))
  with pytest.raises(ValueError, match="arranged must have the 2 leaves that arrange gives; it lacks b"):
    axes.restore(shapes(w=(16, 4)))
  with pytest.raises(ValueError, match=r"the leaf for w has \(4, 16\) and not \(16, 4\)"):
    axes.restore(shapes(w=(4, 16), b=(4,)))
  holes = axes.arrange({"w": None, "b": np.ones(4)})
  assert holes["w"] is None and axes.restore(holes)["w"] is None
