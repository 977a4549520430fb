"""Rows and columns that train, S2FT, permutation of coupled units."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.choices.s2ft import s2ft_units, unit_norms
from jaxft.leaves import dot, materialize
from jaxft.merging.compression.sparse_deltas import compose, fuse, unfuse
from jaxft.models import decoder
from jaxft.transforms.entries.submatrix import Submatrix, submatrix, submatrix_delta
from jaxft.tree import coupled_units, leaves_with_paths, unstack_layers
from jaxft.tree.coupled import (
  MLP_CHANNELS,
  Coupled,
  Member,
  inverse_order,
  key_heads,
  permute_coupled,
  query_heads,
)
from tests.contracts.costs import BIG, compiled_flops, matmul_flops, step_cost
from tests.contracts.transforms import forward, make_step, stack_params

KEY = jax.random.key(0)
M, N, K = 12, 10, 4
CONFIG = decoder.DecoderConfig(
    vocab_size=32, dim=16, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24)
UNITS = [MLP_CHANNELS, key_heads(4, 2)]


def draw(i, *shape):
  return jax.random.normal(jax.random.fold_in(KEY, i), shape)


def leaf(axis):
  size = M if axis == -2 else N
  indices = jnp.array([7, 0, size, 3])  # the third stands for none
  return Submatrix(draw(0, M, N), draw(1, K, N) if axis == -2 else draw(1, M, K), indices, axis)


@pytest.mark.parametrize("axis", [-2, -1])
def test_an_index_that_stands_for_none_has_no_gradient(axis):
  given = leaf(axis)
  loss = lambda d: jnp.sum(jnp.sin(dot(draw(2, 2, 3, M), Submatrix(given.w, d, given.indices, axis))))
  gradient = jax.grad(loss)(given.d)
  assert gradient.any() and not jnp.take(gradient, 2, axis=axis).any()


def test_the_base_has_its_gradient_too_and_forward_mode_works():
  given, x = leaf(-2), draw(2, 5, M)
  f = lambda w, d, x: dot(x, Submatrix(w, d, given.indices))
  g = lambda w, d, x: x @ Submatrix(w, d, given.indices).materialize()
  args = given.w, given.d, x
  tangents = draw(5, M, N), draw(6, K, N), draw(7, 5, M)
  np.testing.assert_allclose(jax.jvp(f, args, tangents)[1], jax.jvp(g, args, tangents)[1], rtol=1e-4, atol=1e-4)
  pull = lambda f: jax.vjp(f, *args)[1](draw(8, 5, N))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), pull(f), pull(g))


@pytest.mark.parametrize("glob, axis", [("**/down/*", -2), ("**/up/*", -1)])
@pytest.mark.parametrize("q", [0.03125, 0.25])
def test_a_step_costs_four_and_twice_the_share(glob, axis, q):
  transform = submatrix(indices={glob: np.arange(int(q * BIG["hidden"]))}, axis=axis)
  share = q / 2  # one of the two matrices
  stacked = stack_params(KEY, **BIG)
  assert step_cost(transform, stacked, forward, matmul_flops) <= 4.0 + 2 * share
  assert step_cost(transform, unstack_layers(stacked), forward, compiled_flops) <= 4.1 + 2 * share


def test_all_rows_is_full_tuning_of_that_matrix():
  params = stack_params(KEY, layers=2, dim=8, hidden=16)
  transform = submatrix(indices={"**/down/*": np.arange(16)})
  optimizer, step = make_step(transform)
  frozen, trainable = transform.split(KEY, params)
  x, y = draw(0, 4, 8), draw(1, 4, 8)
  trained = step(trainable, optimizer.init(trainable), frozen, x, y, KEY)[0]
  got = materialize(transform.join(frozen, trained))

  loss = lambda down: jnp.mean(jnp.square(forward({"layers": params["layers"] | {"down": {"kernel": down}}}, x) - y))
  down = params["layers"]["down"]["kernel"]
  updates, _ = optimizer.update(jax.grad(loss)(down), optimizer.init(down), down)
  np.testing.assert_allclose(got["layers"]["down"]["kernel"], optax.apply_updates(down, updates), rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(got["layers"]["up"]["kernel"], params["layers"]["up"]["kernel"])


def test_a_few_rows_follow_full_tuning_under_a_mask():
  """Adam over several steps: what the gradient of the whole matrix, masked, would have made of them."""
  params = stack_params(KEY, layers=2, dim=8, hidden=16)
  rows, down = np.array([[3, 9, 0], [5, 2, -1]]), params["layers"]["down"]["kernel"]
  transform = submatrix(indices={"**/down/*": rows})
  frozen, trainable = transform.split(KEY, params)
  x, optimizer = draw(0, 4, 8), optax.adam(1e-2)
  chosen = np.zeros(down.shape, bool)
  for layer, of in enumerate(rows):
    chosen[layer, of[of >= 0]] = True

  def follow(trained, loss, keep):
    state = optimizer.init(trained)
    for _ in range(4):
      updates, state = optimizer.update(keep(jax.grad(loss)(trained)), state)
      trained = optax.apply_updates(trained, updates)
    return trained

  whole = lambda down: jnp.mean(jnp.sin(forward({"layers": params["layers"] | {"down": {"kernel": down}}}, x)))
  want = follow(down, whole, lambda g: jnp.where(chosen, g, 0))
  loss = lambda t: jnp.mean(jnp.sin(forward(transform.join(frozen, t), x)))
  got = materialize(transform.join(frozen, follow(trainable, loss, lambda g: g)))["layers"]["down"]["kernel"]
  np.testing.assert_allclose(got, want, atol=1e-6)
  np.testing.assert_array_equal(np.asarray(got)[~chosen], np.asarray(down)[~chosen])


def test_disjoint_deltas_fuse_in_either_order():
  params = stack_params(KEY, layers=2, dim=8, hidden=16)

  def delta(i, rows):
    frozen, trainable = submatrix(indices={"**/down/*": np.array(rows)}).split(KEY, params)
    trainable = jax.tree.map(lambda d: draw(i, *d.shape), trainable)
    return submatrix_delta(frozen, trainable)

  a, b = delta(1, [0, 7, 3]), delta(2, [5, 1])
  both, other = compose(params, [a, b]), compose(params, [b, a])
  jax.tree.map(np.testing.assert_array_equal, both, other)
  fused, old = fuse(compose(params, [b]), a)
  jax.tree.map(np.testing.assert_array_equal, fused, both)
  jax.tree.map(np.testing.assert_array_equal, unfuse(fused, old), compose(params, [b]))


def test_s2ft_draws_each_kind_of_unit_for_itself():
  params = stack_params(KEY, layers=3, dim=8, hidden=8)
  units = [Coupled((Member("**/up/*", -2, 2),)), Coupled((Member("**/down/*", -2),))]
  transform = submatrix(s2ft_units(KEY, params, units=units, heads=0.5, channels=0.5, scope="layer"))
  layers = transform.split(KEY, params)[0]["layers"]
  heads, channels = (np.asarray(*jax.tree.leaves(layers[name]["kernel"].note)) for name in ("up", "down"))
  assert heads.shape == channels.shape == (3, 4) and not np.array_equal(heads, channels)


def test_s2ft_trains_the_drawn_share_and_nothing_else():
  params = decoder.init(KEY, CONFIG)
  transform = submatrix(s2ft_units(
      KEY, params, units=UNITS, heads=0.34, channels=0.2, value_heads=0.5, up_channels=0.1))
  frozen, trainable = transform.split(KEY, params)
  moved = materialize(transform.join(frozen, jax.tree.map(lambda x: x + 1, trainable)))
  changed = jax.tree.map(lambda a, b: np.asarray(a != b), moved, params)["layers"]
  rows = lambda name: changed["attention"][name]["kernel"].any(-1).sum()
  assert rows("out") == int(0.34 * 12) * 4
  assert changed["mlp"]["down"]["kernel"].any(-1).sum() == int(0.2 * 72)
  assert changed["attention"]["value"]["kernel"].any(-2).sum() == int(0.5 * 6) * 4
  assert changed["mlp"]["up"]["kernel"].any(-2).sum() == int(0.1 * 72)
  for name in ("query", "key"):
    assert not changed["attention"][name]["kernel"].any()
  ids = jax.random.randint(KEY, (2, 5), 0, 32)
  fast = decoder.hidden_states(transform.join(frozen, jax.tree.map(lambda x: x + 0.1, trainable)), CONFIG, ids).hidden
  slow = decoder.hidden_states(
      materialize(transform.join(frozen, jax.tree.map(lambda x: x + 0.1, trainable))), CONFIG, ids).hidden
  np.testing.assert_allclose(fast, slow, rtol=2e-4, atol=2e-4)


def test_s2ft_of_units_that_are_found_in_the_function():
  """Fused queries, keys and values of heads of 4, one after another, and a fused gate; a table is the stream."""
  shape = lambda *n: jax.ShapeDtypeStruct(n, jnp.float32)
  params = {"embed": shape(9, 8), "layers": {"qkv": shape(2, 8, 48), "out": shape(2, 16, 8), "gate_up": shape(2, 8, 20),
                                             "down": shape(2, 10, 8)}, "head": shape(8, 9)}

  def layer(x, w):
    q, k, v = (t.reshape(-1, 4, 4) for t in jnp.split(x @ w["qkv"], 3, -1))
    a = jax.nn.softmax(jnp.einsum("thd,shd->hts", q, k))
    x = x + jnp.einsum("hts,shd->thd", a, v).reshape(-1, 16) @ w["out"]
    gate, up = jnp.split(x @ w["gate_up"], 2, -1)
    return x + (jax.nn.silu(gate) * up) @ w["down"], None

  apply = lambda p, ids: jax.lax.scan(layer, p["embed"][ids], p["layers"])[0] @ p["head"]
  units = coupled_units(apply, params, np.arange(5))
  chosen = s2ft_units(KEY, params, units=units, heads=0.5, channels=0.3, scope="layer")
  flags = {path: np.asarray(flag) for path, flag in leaves_with_paths(chosen) if np.any(flag)}
  assert set(flags) == {"layers/out", "layers/down"}
  rows = flags["layers/out"].all(-1).reshape(2, 4, 4)
  assert (rows.all(-1) == rows.any(-1)).all() and (rows.any(-1).sum(-1) == 2).all()
  assert (flags["layers/down"].all(-1).sum(-1) == 3).all()
  with pytest.raises(ValueError, match="up_channels must be 0 where there are none"):
    s2ft_units(KEY, params, units=units, up_channels=0.5, up="layers/gate_up")


@pytest.mark.parametrize("layout", [lambda p: p, unstack_layers], ids=["stacked", "unrolled"])
@pytest.mark.parametrize("largest", [True, False])
def test_s2ft_by_the_norms_of_units(layout, largest):
  """The units that are made large are those that the rule of the weights takes, or leaves."""
  params = decoder.init(KEY, CONFIG)
  chosen = {0: [1, 3], 2: [0]}
  out, down = (np.array(params["layers"][a][b]["kernel"]) for a, b in (("attention", "out"), ("mlp", "down")))
  for layer, units in chosen.items():
    for unit in units:
      out[layer, 4 * unit : 4 * unit + 4] += 1
      down[layer, unit] -= 1
  params["layers"]["attention"]["out"]["kernel"] = jnp.array(out)
  params["layers"]["mlp"]["down"]["kernel"] = jnp.array(down)
  params = layout(params)
  scores = {
      "heads": unit_norms(params, "**/attention/out/kernel", unit=4),
      "channels": unit_norms(params, "**/mlp/down/kernel")}
  for layer in range(3):
    np.testing.assert_allclose(scores["heads"][layer], np.linalg.norm(out[layer].reshape(4, -1), axis=1), rtol=1e-5)
    np.testing.assert_allclose(scores["channels"][layer], np.linalg.norm(down[layer], axis=1), rtol=1e-5)
  share = (3 if largest else 9) / 12
  transform = submatrix(s2ft_units(
      KEY, params, units=UNITS, heads=share, channels=3.5 / 72, scores=scores, largest=largest))
  frozen, trainable = transform.split(KEY, params)
  moved = materialize(transform.join(frozen, jax.tree.map(lambda x: x + 1, trainable)))
  moved, before = (p if layout is unstack_layers else unstack_layers(p) for p in (moved, params))
  for layer in range(3):
    new, old = (p["layers"][str(layer)]["attention"]["out"]["kernel"] for p in (moved, before))
    changed = np.flatnonzero(np.asarray(new != old).any(-1).reshape(4, 4).any(-1))
    large = chosen.get(layer, [])
    np.testing.assert_array_equal(changed, large if largest else np.setdiff1d(range(4), large))
    new, old = (p["layers"][str(layer)]["mlp"]["down"]["kernel"] for p in (moved, before))
    changed = np.flatnonzero(np.asarray(new != old).any(-1)).tolist()
    assert (changed == large) if largest else not set(changed) & set(large)


def test_norms_of_columns():
  params = decoder.init(KEY, CONFIG)
  value = np.asarray(params["layers"]["attention"]["value"]["kernel"])
  got = unit_norms(params, "**/attention/value/kernel", axis=-1, unit=4)
  want = np.linalg.norm(value.reshape(3, 16, 2, 4), axis=(1, 3))
  np.testing.assert_allclose(np.stack(got), want, rtol=1e-5)


def test_rows_of_a_tied_embedding():
  params = decoder.init(KEY, CONFIG, stddev=0.3)
  frozen, trainable = (transform := submatrix(indices={"embed/tokens/*": np.array([3, 8, 30])})).split(KEY, params)
  trainable = jax.tree.map(lambda d: d + 0.1 * draw(1, *d.shape), trainable)
  ids = jnp.array([[3, 5, 8, 1, 30, 3]])
  nll = lambda t, form: jnp.sum(decoder.token_nll(form(transform.join(frozen, t)), CONFIG, ids)[0])
  got, want = (jax.value_and_grad(nll)(trainable, form) for form in (lambda p: p, materialize))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


@pytest.mark.parametrize("layout", [lambda p: p, unstack_layers], ids=["stacked", "unrolled"])
def test_permuting_coupled_units_keeps_the_function(layout):
  params = layout(decoder.init(KEY, CONFIG, stddev=0.3))
  ids = jax.random.randint(KEY, (2, 5), 0, 32)
  want = decoder.hidden_states(params, CONFIG, ids).hidden
  rng = np.random.default_rng(0)
  each = lambda n: np.stack([rng.permutation(n) for _ in range(3)])
  for structure, order in (
      (MLP_CHANNELS, each(24)), (key_heads(4, 2), each(2)), (query_heads(4, 2), np.array([1, 0, 3, 2]))):
    moved = permute_coupled(params, structure, order)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (moved, params)), strict=True))
    np.testing.assert_allclose(decoder.hidden_states(moved, CONFIG, ids).hidden, want, rtol=1e-4, atol=1e-4)
    back = permute_coupled(moved, structure, inverse_order(order))
    jax.tree.map(np.testing.assert_array_equal, back, params)


of = lambda indices, **options: submatrix(indices=indices, **options)


@pytest.mark.parametrize("call, message", [
    (lambda p: of({"**/down/kernel": np.array([1, 1])}).split(KEY, p), "has an index twice in one layer"),
    (lambda p: of({"**/down/kernel": np.array([24])}).split(KEY, p), r"takes indices in 0\.\.23, or -1"),
    (lambda p: of({"**/scale": np.array([1])}).split(KEY, p), "is no matrix"),
    (lambda p: of({"**/down/*": np.array([1]), "**/kernel": np.array([1])}).split(KEY, p), "is matched by"),
    (lambda p: of({"**/down/*": np.zeros((2, 1), int)}).split(KEY, p), "is of layer 2; got indices for 2"),
    (lambda p: of({"**/down/*": np.array([1])}, axis=0), r"axis must be -2 \(rows\) or -1"),
    (lambda p: of({"**/down/kernel": np.array([1.5])}).split(KEY, p), "takes integer indices; got float64"),
    (lambda p: of({"**/down/kernel": np.ones(24, bool)}).split(KEY, p), "takes integer indices; got bool"),
    (lambda p: of({}), "indices must have at least one glob"),
    (lambda p: of({"a": np.array([1]), "b": np.array([1])}, axis={"a": -1}), r"axis must have .* it lacks 'b'"),
    (lambda p: submatrix("**/down/kernel", axis={}), "axis must be -2, -1 or None beside select"),
    (lambda p: submatrix("**/down/kernel").join(p, submatrix("**/down/kernel").split(KEY, p)[1]),
     "two sides of a submatrix; layers/mlp/down/kernel is of another transform"),
    (lambda p: s2ft_units(KEY, p, units=UNITS, scores={"up_channels": [np.ones(24)] * 3}),
     "of what is chosen, heads, channels"),
    (lambda p: s2ft_units(KEY, p, units=UNITS, scores={"channels": [np.ones(3)] * 3}),
     "must have the lengths of sizes"),
    (lambda p: unit_norms(p, "**/mlp/down/kernel", unit=5), "unit must divide axis -2 of layers/mlp/down/.*; got 5"),
    (lambda p: unit_norms(p, "**/mlp/down/kernel", unit=0), "unit must divide axis -2 .*; got 0"),
    (lambda p: s2ft_units(KEY, p, units=[query_heads(5, 2)]), "units must divide axis -2 of layers/attention/out/"),
    (lambda p: s2ft_units(KEY, p, units=UNITS, heads=0.01, channels=0.01), "must draw at least one unit"),
    (lambda p: s2ft_units(KEY, p, units=[MLP_CHANNELS]), "heads must be 0 where there are none; of the 1 kinds"),
    (lambda p: s2ft_units(KEY, p, units=UNITS, value_heads=0.5, value="**/out/kernel"), "value_heads must be 0 where"),
    (lambda p: s2ft_units(KEY, p, units=[*UNITS, Coupled((Member("**/out/kernel", -1, 4),))], heads=0.5,
                          value_heads=0.5, value="**/out/kernel"), "both are chosen of layers/attention/out/kernel"),
    (lambda p: permute_coupled(p, MLP_CHANNELS, np.zeros(24, int)), "order must be a permutation"),
    (lambda p: permute_coupled(p, query_heads(4, 2), np.array([2, 1, 0, 3])), "order must keep each unit in its group"),
    (lambda p: permute_coupled(p, MLP_CHANNELS, np.arange(12)), "order has 12 units of 1; axis -1 of"),
])
def test_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call(decoder.init(KEY, CONFIG))
