"""Selections: the k largest against a sort, module choices by counting, units, the search over modules."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from jaxft.choices.module_search import layer_ranges, tree_search, within_layers
from jaxft.choices.random_modules import (
  chosen_fraction,
  cut_at_changes,
  host_rng,
  random_module_mask,
  select_units,
  unit_indices,
)
from jaxft.choices.s2ft import s2ft_units
from jaxft.choices.scores import change_scores, fisher_scores, gradient_scores, magnitude_scores
from jaxft.choices.top_k import lottery_ticket_mask, top_k_mask
from jaxft.models import decoder
from jaxft.transforms.entries.submatrix import submatrix
from jaxft.transforms.whole.freeze import train
from jaxft.tree import leaves_with_paths, stack_layers, unstack_layers
from jaxft.tree.coupled import MLP_CHANNELS, query_heads

KEY = jax.random.key(0)
CONFIG = decoder.DecoderConfig(
    vocab_size=32, dim=16, num_layers=6, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24, tie_embeddings=False)


def scores():
  draw = lambda i, *shape: jax.random.normal(jax.random.fold_in(KEY, i), shape)
  return {"embed": draw(0, 7, 5), "hole": None, "layers": {"a": draw(1, 3, 4, 5), "b": draw(2, 3, 4)}}


def flat(tree):
  return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(tree)])


def expected(values, k):
  out = np.zeros(len(values), bool)
  out[np.argsort(-values, kind="stable")[:k]] = True
  return out


@pytest.mark.parametrize("k", [0, 1, 40, 107])
def test_top_k_is_that_of_a_sort(k):
  np.testing.assert_array_equal(flat(top_k_mask(scores(), k)), expected(flat(scores()), k))


def test_ties_negative_zero_and_nan():
  tied = {"a": jnp.array([[0.0, -0.0, 2.0], [0.0, -1.0, jnp.nan]]), "b": jnp.zeros(4)}
  for k in range(1, 10):
    np.testing.assert_array_equal(flat(top_k_mask(tied, k)), expected(np.nan_to_num(flat(tied), nan=-9.0), k))


def test_nan_comes_before_what_does_not_compete():
  chosen = top_k_mask({"w": jnp.array([5.0, jnp.nan, 1.0])}, 2, where={"w": np.array([False, True, True])})
  np.testing.assert_array_equal(chosen["w"], [False, True, True])


@pytest.mark.parametrize(("scores", "want"), [
    ({"a": np.array([1.0, 1.0 + 1e-12]), "b": np.array([1.0 + 2e-12, np.nan])}, [0, 1, 1, 0]),
    ({"a": np.array([2**24, 2**24 + 1]), "b": np.array([2**24 + 2, -1])}, [0, 1, 1, 0]),
    ({"a": jnp.array([2**24, 2**24 + 1]), "b": jnp.array([2.0**24 + 2, -1])}, [0, 1, 1, 0]),
    ({"a": np.array([2**62, 2**62 + 1]), "b": np.array([2**62 + 2, -1])}, [0, 1, 1, 0]),
    ({"a": np.array([1e300, 1e301]), "b": jnp.array([jnp.nan, jnp.inf])}, [0, 1, 0, 1]),
    ({"a": np.array([7, 7]), "b": np.array([7, 7])}, [1, 1, 0, 0]),
    ({"a": np.array([np.nan, np.nan]), "b": np.array([np.nan, -np.inf])}, [1, 0, 0, 1]),
])
def test_scores_are_compared_in_their_own_type(scores, want):
  np.testing.assert_array_equal(flat(top_k_mask(scores, 2)), np.array(want, bool))
  masked = top_k_mask(scores, 1, where={"a": np.array([False, True]), "b": False})
  np.testing.assert_array_equal(flat(masked), [False, True, False, False])


def test_integers_that_no_common_type_holds_are_refused():
  with pytest.raises(ValueError, match="within 2[*][*]53 where integers compete with other types; got int64"):
    top_k_mask({"a": np.array([2**60]), "b": np.array([1.0])}, 1)


def test_scopes():
  by_leaf = top_k_mask(scores(), 3, scope="leaf")
  assert [int(m.sum()) for m in jax.tree.leaves(by_leaf)] == [3, 3, 3]
  by_layer = top_k_mask(scores(), 6, scope="layer")
  assert int(by_layer["embed"].sum()) == 6
  layers = by_layer["layers"]
  np.testing.assert_array_equal(layers["a"].sum((1, 2)) + layers["b"].sum(1), 6)
  unrolled = top_k_mask(unstack_layers(scores()), 6, scope="layer")
  np.testing.assert_array_equal(flat(stack_layers(unrolled)), flat(by_layer))
  assert flat(top_k_mask(scores(), 0.5)).sum() == 107 // 2


def test_where_excludes_leaves_and_entries():
  inside = top_k_mask(scores(), 10, where="layers/*")
  assert not inside["embed"].any() and flat(inside).sum() == 10
  odd = jax.tree.map(lambda x: jnp.arange(x.size).reshape(x.shape) % 2 == 1, scores())
  chosen = top_k_mask(scores(), 20, where=odd)
  assert flat(chosen).sum() == 20 and not (flat(chosen) & ~flat(odd)).any()


def test_sharded_scores_stay_where_they_are():
  mesh = jax.make_mesh((8,), ("x",))
  there = jax.device_put({"a": jax.random.normal(KEY, (16, 12))}, NamedSharding(mesh, P("x")))
  got = top_k_mask(there, 33)["a"]
  np.testing.assert_array_equal(np.asarray(got).ravel(), expected(flat(there), 33))
  assert got.sharding.is_equivalent_to(there["a"].sharding, 2)


def test_lottery_ticket_rounds_add_up():
  base, tuned = scores(), jax.tree.map(lambda x: x + jax.random.normal(KEY, x.shape), scores())
  first = lottery_ticket_mask(base, tuned, 10, where="layers/*")
  both = lottery_ticket_mask(base, tuned, 7, where="layers/*", previous=first)
  assert flat(both).sum() == 17 and (flat(both) >= flat(first)).all() and not both["embed"].any()
  np.testing.assert_array_equal(flat(both), flat(lottery_ticket_mask(base, tuned, 17, where="layers/*")))


def test_scores_of_a_linear_model():
  gradient = jax.grad(lambda p, batch: jnp.sum(p["w"] * batch))
  batches = [jnp.array([1.0, -2.0]), jnp.array([-1.0, -4.0])]
  params = {"w": jnp.array([3.0, -5.0])}
  np.testing.assert_allclose(gradient_scores(gradient, params, batches)["w"], [0.0, 3.0])
  np.testing.assert_allclose(fisher_scores(gradient, params, batches)["w"], [1.0, 10.0])
  np.testing.assert_allclose(magnitude_scores(params)["w"], [3.0, 5.0])
  np.testing.assert_allclose(change_scores({"w": jnp.array([1.0, 1.0])}, params)["w"], [2.0, 6.0])
  with pytest.raises(ValueError, match="batches must hold at least one"):
    fisher_scores(gradient, params, [])


def test_scores_add_bfloat16_gradients_up_in_float32():
  """In bfloat16 a sum of ones stops at 256, and squares lose their last digits."""
  gradient = lambda params, batch: {"w": jnp.full(2, batch, jnp.bfloat16)}
  for batch, square in ((1.0, 1.0), (1.0078125, 1.0078125**2)):
    for score, want in ((gradient_scores, batch), (fisher_scores, square)):
      got = score(gradient, {"w": jnp.zeros(2, jnp.bfloat16)}, [batch] * 300)["w"]
      assert got.dtype == jnp.float32
      np.testing.assert_allclose(got, want, rtol=1e-5)


def test_half_of_each_category():
  params = unstack_layers(decoder.init(KEY, CONFIG))
  choice = random_module_mask(KEY, params)
  attention = [sum(jax.tree.leaves(layer["attention"])) for layer in choice["layers"].values()]
  mlp = sorted(sum(jax.tree.leaves(layer["mlp"])) for layer in choice["layers"].values())
  norms = [layer["attention_norm"]["scale"] + layer["mlp_norm"]["scale"] for layer in choice["layers"].values()]
  assert attention == [2] * 6 and mlp == [1, 1, 1, 2, 2, 2] and norms == [1] * 6
  assert choice["head"]["kernel"] and choice["embed"]["tokens"]["embedding"] and choice["norm"]["scale"]
  two = [random_module_mask(jax.random.key(i), params) for i in range(2)]
  assert two[0] != two[1]


def test_the_choice_does_not_depend_on_the_layout():
  stacked = decoder.init(KEY, CONFIG)
  choice = random_module_mask(KEY, stacked)
  unrolled = random_module_mask(KEY, unstack_layers(stacked))
  again = jax.tree.map(lambda *flags: np.array(flags), *[unrolled["layers"][str(i)] for i in range(6)])
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.broadcast_to(a, 6), b), choice["layers"], again)
  cut = cut_at_changes(stacked, choice)
  assert all(isinstance(flag, bool) for flag in jax.tree.leaves(random_module_mask(KEY, cut)))
  shares = [chosen_fraction(p, random_module_mask(KEY, p)) for p in (stacked, cut)]
  np.testing.assert_allclose(shares[0], shares[1])


@pytest.mark.parametrize("options, share", [
    ({"fraction": 1.0}, 1.0), ({"fraction": 0.0}, 0.0), ({"level": "layer"}, 0.5), ({"balance": "params"}, 0.5),
    ({"balance": "params", "fraction": 0.25}, 0.25),
])
def test_fractions_of_parameters(options, share):
  layers = {"layers": decoder.init(KEY, CONFIG)["layers"]}
  got = chosen_fraction(layers, random_module_mask(KEY, layers, **options))
  assert got == share if "balance" not in options else abs(got - share) < 0.05


def test_levels():
  layers = {"layers": decoder.init(KEY, CONFIG)["layers"]}
  whole = random_module_mask(KEY, layers, level="layer")
  vectors = np.stack(jax.tree.leaves(whole))
  assert (vectors == vectors[0]).all() and vectors[0].sum() == 3
  model = jax.tree.leaves(random_module_mask(KEY, layers, level="model"))
  assert sum(np.broadcast_to(v, 6).sum() for v in model) == 6 * 9 // 2


def test_half_fine_tuning_keeps_compute_and_state_on_cut_and_state_on_stacked_layers():
  params = decoder.init(KEY, CONFIG)
  cut = cut_at_changes(params, random_module_mask(KEY, params))
  split = train(partial(random_module_mask, KEY)).split
  sides = [split(jax.random.key(9), p)[1] for p in (params, cut, unstack_layers(params))]
  sizes = [sum(x.size for x in jax.tree.leaves(side)) for side in sides]
  assert len(set(sizes)) == 1
  assert abs(sizes[0] / sum(x.size for x in jax.tree.leaves(params)) - 0.5) < 0.2


@pytest.mark.parametrize("draw", [
    lambda key: train(partial(random_module_mask, key)),
    lambda key: submatrix(partial(s2ft_units, key, units=[MLP_CHANNELS, query_heads(4, 2)], heads=0.3, channels=0.3)),
], ids=["hft", "s2ft"])
def test_what_is_drawn_is_what_was_planned_whatever_key_splits(draw):
  params = decoder.init(KEY, CONFIG)
  for layout in (params, unstack_layers(params)):
    planned = jax.eval_shape(draw(KEY).split, jax.random.key(1), layout)
    run = draw(KEY).split(jax.random.key(2), layout)
    assert jax.tree.structure(planned) == jax.tree.structure(run)
    assert [x.shape for x in jax.tree.leaves(planned)] == [x.shape for x in jax.tree.leaves(run)]
    other = draw(jax.random.key(3)).split(jax.random.key(2), layout)
    assert jax.tree.structure(other) != jax.tree.structure(run) or any(
        a.shape != b.shape or (a != b).any() for a, b in zip(*map(jax.tree.leaves, (other, run)), strict=True))
  with pytest.raises(ValueError, match="key must be concrete"):
    jax.eval_shape(lambda key: draw(key).split(key, params), KEY)


def test_all_of_it_is_full_tuning_and_nothing_of_it_trains_embeddings_and_head():
  params = decoder.init(KEY, CONFIG)
  frozen, trainable = train(random_module_mask(KEY, params, fraction=1.0)).split(KEY, params)
  assert not jax.tree.leaves(frozen) and jax.tree.structure(trainable) == jax.tree.structure(params)
  _, rest = train(random_module_mask(KEY, params, fraction=0.0)).split(KEY, params)
  assert {path for path, x in leaves_with_paths(rest) if x is not None} == {
      "embed/tokens/embedding", "head/kernel", "norm/scale"}


def test_units():
  units = select_units(KEY, [4, 4, 4], fraction=0.5)
  assert sum(map(len, units)) == 6 and all((np.diff(u) > 0).all() for u in units)
  assert [len(u) for u in select_units(KEY, [4, 6], fraction=0.5, scope="layer")] == [2, 3]
  values = [np.array([0.0, 9.0, 1.0]), np.array([8.0, 2.0])]
  assert [u.tolist() for u in select_units(None, [3, 2], fraction=0.4, scores=values)] == [[1], [0]]
  assert [u.tolist() for u in select_units(None, [3, 2], fraction=0.4, scores=values, largest=False)] == [[0, 2], []]
  np.testing.assert_array_equal(
      unit_indices([np.array([1]), np.array([0, 2]), np.array([], int)], 2),
      [[2, 3, -1, -1], [0, 1, 4, 5], [-1, -1, -1, -1]])


def test_search_finds_a_planted_region():
  tried = []

  def evaluate(node):
    tried.append(node)
    (start, stop), modules = node
    return -abs(start - 8) - abs(stop - 16) - 0.5 * (modules != "mlp")

  roots = [(r, "all") for r in layer_ranges(32)]
  expand = lambda node: [(node[0], m) for m in ("attention", "mlp", "all")] if node[1] == "all" else []
  found = tree_search(roots, expand, evaluate)
  assert found.best == ((8, 16), "mlp") and len(tried) == len(set(tried)) == 7 + 2
  assert layer_ranges(32) == [(0, 8), (8, 16), (16, 24), (24, 32), (0, 16), (8, 24), (16, 32)]


def test_within_layers():
  params = decoder.init(KEY, CONFIG)
  frozen, trainable = train(within_layers(1, 3, "**/mlp/{up,down}/*")(params)).split(KEY, params)
  assert [x.shape[0] for x in jax.tree.leaves(trainable)] == [2, 2]
  joined = train(True).join(frozen, trainable)
  jax.tree.map(np.testing.assert_array_equal, joined, params)


@pytest.mark.parametrize("call, message", [
    (lambda: top_k_mask(scores(), 108), "at most the number of scores that compete, 107 in all leaves; got 108"),
    (lambda: top_k_mask(scores(), 1, scope="leafs"), "scope must be one of global, leaf, layer; got 'leafs'"),
    (lambda: top_k_mask(scores(), 1.5), "fraction in"),
    (lambda: random_module_mask(KEY, scores(), ["layers/*"], fraction=2), "fraction must lie in"),
    (lambda: random_module_mask(KEY, scores(), ["layers/*"], level="module"), "level must be one of"),
    (lambda: jax.jit(host_rng)(KEY), "key must be concrete"),
    (lambda: select_units(None, [3], fraction=0.5, scores=[np.ones(2)]), "scores must have the lengths of sizes"),
    (lambda: select_units(None, [3], fraction=0.5), "key must be given where scores are not"),
    (lambda: layer_ranges(3), "num_layers must be >= 4"),
    (lambda: within_layers(9, 11)(scores()), "match a leaf in layers 9 to 10"),
    (lambda: within_layers(2, 1), "start must be at least 0 and below stop; got start 2, stop 1"),
    (lambda: within_layers(-1, 2), "start must be at least 0 and below stop; got start -1, stop 2"),
])
def test_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call()
