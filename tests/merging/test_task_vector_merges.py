"""Merges of task vectors: golden values, reductions, unbiasedness, scopes, and that mergekit's names give the same."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from jaxft.merging import (
  breadcrumbs,
  dare,
  della,
  disjoint_mean,
  model_stock,
  ram,
  sce,
  sign_election,
  task_arithmetic,
  ties,
  trim,
)
from jaxft.merging.kernels.leafwise import merge_leaf
from jaxft.merging.kernels.methods import METHODS, streams
from jaxft.merging.task_vector_merges import keep_largest
from jaxft.training import make_mesh
from jaxft.training.planning.collectives import collectives
from jaxft.tree import task_vector
from tests.contracts.merges import checkpoints

A, B = np.array([1, -2, 3, 0, 0.5, -0.5], np.float32), np.array([-1, 2, 3, 4, -0.5, 0.4], np.float32)
PAIR, ZERO = [{"w": A}, {"w": B}], {"w": np.zeros(6, np.float32)}
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("merged, want", [
    # mergekit 0.1.5
    (task_arithmetic(PAIR, ZERO, weights=[0.5, 0.5]), [0, 0, 3, 2, 0, -0.05]),
    (ties(PAIR, ZERO, density=1.0), [1, 2, 3, 4, 0.5, -0.5]),
    (ties(PAIR, ZERO, density=0.5), [1, 2, 3, 4, 0, 0]),
    (ties(PAIR, ZERO, density=0.5, scope="leaf", zero="positive"), [1, 2, 3, 4, 0, 0]),
    (sce(PAIR, ZERO), [1, 2, 3, 4, 0.5, -0.5]),
    (model_stock(PAIR, ZERO), [0, 0, 0.8677, 0.5784, 0, -0.0145]),
    (breadcrumbs(PAIR, ZERO, density=0.5, gamma=0.2, scope="leaf"), [0, 0, 3, 0, 0, -0.5]),
    # by hand
    (ties(PAIR, ZERO, density=1.0, method="count"), [1, 2, 3, 4, 0.5, 0.4]),
    (ties(PAIR, ZERO, density=1.0, normalize=False, scale=2.0), [2, 4, 12, 8, 1, -1]),
    (ram(PAIR, ZERO), [0, 0, 3, 4, 0, -0.05]),
    (ram(PAIR, ZERO, r=0.5), [0, 0, 3, 4 * 1.1, 0, -0.05]),  # 5 shared to 1 alone: beyond the bound of 0.2
    (task_arithmetic(PAIR, ZERO, weights=[-1, 0.5], scale=2.0), [-3, 6, -3, 4, -1.5, 1.4]),
])
def test_golden_values(merged, want):
  np.testing.assert_allclose(merged["w"], want, atol=5e-5)


def test_undecided_entries_follow_the_majority():
  up, down = np.array([1, -3, -3, -3], np.float32), np.array([-1, -3, -3, -3], np.float32)
  zero = {"w": np.zeros(4, np.float32)}
  for to in (lambda x: x, jnp.asarray):
    models = [{"w": to(up)}, {"w": to(down)}]
    base = jax.tree.map(to, zero)
    np.testing.assert_array_equal(ties(models, base, density=1.0)["w"], [-1, -3, -3, -3])
    np.testing.assert_array_equal(ties(models, base, density=1.0, zero="positive")["w"], [1, -3, -3, -3])


def test_election_and_mean_of_the_merge_are_the_public_ones():
  models, base = checkpoints()
  weights = [1.0, 0.5, 0.7]
  deltas = np.stack([task_vector(base, m)["embed"] for m in models])
  for zero in ("positive", "majority"):
    for method in ("sum", "count"):
      sign = sign_election(deltas, weights=weights, method=method, zero=zero)
      want = base["embed"] + disjoint_mean(deltas, sign, weights=weights)
      # The majority is that of the whole model, so look at one leaf alone.
      leaf = lambda tree: {"embed": tree["embed"]}
      got = ties([leaf(m) for m in models], leaf(base), density=1.0, weights=weights, method=method, zero=zero)
      np.testing.assert_allclose(got["embed"], want, atol=2e-7)


def test_one_model_with_density_one_comes_back():
  (model, *_), base = checkpoints()
  for merged in (ties([model], base, density=1.0, weights=[0.3]), breadcrumbs([model], base, density=1.0),
                 dare([model], base, density=1.0, key=0), della([model], base, density=1.0, key=0), sce([model], base)):
    np.testing.assert_allclose(merged["embed"], model["embed"], atol=1e-6)


@pytest.mark.parametrize("merge", [
    lambda delta, key: trim(delta, 0.3, by="random", rescale="inverse_probability", key=key),
    lambda delta, key: trim(delta, 0.3, by="rank", epsilon=0.2, rescale="inverse_probability", key=key),
    lambda delta, key: dare([delta], jax.tree.map(np.zeros_like, delta), density=0.3, key=key),
    lambda delta, key: della(
        [delta], jax.tree.map(np.zeros_like, delta), density=0.3, epsilon=0.2, key=key, consensus=None),
], ids=["random", "rank", "dare", "della"])
def test_unbiased(merge):
  # Ten keys, and under each as many draws as there are copies of the rows: they are dropped independently.
  many = {"w": np.tile(A, (100, 1))}
  draws = np.concatenate([merge(many, key)["w"].reshape(100, *A.shape) for key in range(10)])
  error = draws.std(0) / np.sqrt(len(draws))
  assert np.all(np.abs(draws.mean(0) - A) <= 4 * error), (draws.mean(0), error)


def test_drops_keep_the_norm_or_the_density():
  delta = {"w": RNG.standard_normal((50, 40)).astype(np.float32)}
  for by in ("random", "rank"):
    kept = trim(delta, 0.2, by=by, rescale="l1", key=1, epsilon=0.1)["w"]
    np.testing.assert_allclose(np.abs(kept).sum(), np.abs(delta["w"]).sum(), rtol=1e-5)
    assert abs(np.mean(kept != 0) - 0.2) < 0.04
  ranks = np.abs(delta["w"]).argsort(-1).argsort(-1)
  keys = range(60)
  often = np.mean([trim(delta, 0.5, by="rank", epsilon=0.3, key=key)["w"] != 0 for key in keys], axis=0)
  by_rank = [often[ranks == r].mean() for r in range(40)]
  np.testing.assert_allclose(by_rank, np.linspace(0.2, 0.8, 40), atol=0.04)
  zeros = {"w": np.zeros((3, 4), np.float32)}
  np.testing.assert_array_equal(trim(zeros, 0.5, by="random", rescale="l1", key=0)["w"], 0)


def test_scopes_of_a_trim():
  numbers = lambda first, *shape: np.arange(first, first + np.prod(shape), dtype=np.float32).reshape(shape)
  delta = {"a": numbers(1, 2, 4), "layers": {"w": numbers(0, 2, 6)}, "hole": None}
  kept = lambda **options: jax.tree.map(lambda x: np.flatnonzero(x).tolist(), trim(delta, 0.5, **options))
  is_list = lambda tree: {"a": tree["a"], "w": tree["layers"]["w"]}
  assert is_list(kept()) == {"a": [4, 5, 6, 7], "w": [3, 4, 5, 9, 10, 11]}  # a layer is a leaf of its own
  assert is_list(kept(scope="row")) == {"a": [2, 3, 6, 7], "w": [3, 4, 5, 9, 10, 11]}
  assert is_list(kept(scope="row", axis=-2)) == {"a": [4, 5, 6, 7], "w": [3, 4, 5, 9, 10, 11]}
  assert is_list(kept(scope="global")) == {"a": [4, 5, 6, 7], "w": [6, 7, 8, 9, 10, 11]}
  assert is_list(kept(by="band", gamma=0.25)) == {"a": [2, 3, 4, 5], "w": [2, 3, 4, 8, 9, 10]}
  assert trim(delta, 0.5)["hole"] is None
  ones = {"w": np.ones((2, 3), np.float32)}
  assert np.sum(trim(ones, 0.5)["w"]) == np.sum(trim(ones, 0.5, scope="global")["w"]) == 3


TRIMMED = {"weight": [1.0, 0.5, 0.7], "density": [0.5, 0.3, 0.6]}


@pytest.mark.parametrize("name, parameters, merge", [
    ("task_arithmetic", {"lambda": 0.5}, lambda m, b: task_arithmetic(m, b, weights=TRIMMED["weight"], scale=0.5)),
    ("ties", {}, lambda m, b: ties(m, b, scope="leaf", zero="positive", weights=TRIMMED["weight"],
                                   density=TRIMMED["density"])),
    ("dare_ties", {}, lambda m, b: dare(m, b, key=7, consensus="sum", rescale="l1", weights=TRIMMED["weight"],
                                        density=TRIMMED["density"])),
    ("della_linear", {}, lambda m, b: della(m, b, key=7, consensus=None, rescale="l1", normalize=False,
                                            weights=TRIMMED["weight"], density=TRIMMED["density"])),
    ("breadcrumbs_ties", {}, lambda m, b: breadcrumbs(m, b, consensus="sum", scope="leaf", weights=TRIMMED["weight"],
                                                      density=TRIMMED["density"])),
])
def test_mergekits_names_are_arguments_of_these(name, parameters, merge):
  models, base = checkpoints()
  method = METHODS[name]
  drawn = {"streams": streams(7, "embed", 3)} if method.random else {}
  settings = method.settings(TRIMMED, parameters, **drawn)
  want = merge_leaf(method.leafwise, [m["embed"] for m in models], base["embed"], settings)
  np.testing.assert_array_equal(merge(models, base)["embed"], want)


@pytest.mark.parametrize("merge", [
    *(partial(ties, scope=scope) for scope in ("global", "leaf", "row")), partial(dare, key=0),
    partial(dare, key=0, rescale="l1"), partial(della, key=0), partial(breadcrumbs, scope="leaf"), sce,
])
def test_a_density_of_zero_drops_everything(merge):
  """As in a configuration, where a gradient over depth may begin at it."""
  np.testing.assert_array_equal(merge(PAIR, ZERO, density=0)["w"], ZERO["w"])
  np.testing.assert_array_equal(trim(PAIR[0], 0.0, scope="global")["w"], ZERO["w"])


@pytest.mark.parametrize("call, message", [
    (lambda: ties(PAIR, ZERO, density=-0.1), r"density must lie in \[0, 1\]; got -0.1"),
    (lambda: dare(PAIR, ZERO, density=[0.5, 1.1], key=0), r"density must lie in \[0, 1\]; got 1.1"),
    (lambda: dare(PAIR, ZERO, density=[0.5], key=0), "density must be one number, or one for each of 2 models; got 1"),
    (lambda: task_arithmetic(PAIR, ZERO, weights=[1]), "weights must have one entry for each of 2 models; got 1"),
    (lambda: task_arithmetic([], ZERO), "models must hold at least 1 checkpoint; got 0"),
    (lambda: model_stock(PAIR[:1], ZERO), "models must hold at least 2 checkpoints; got 1"),
    (lambda: task_arithmetic(PAIR, None), "base must be the checkpoint that the models were tuned from; got None"),
    (lambda: ties(PAIR, ZERO, scope="layer"), "scope must be global, leaf or row; got 'layer'"),
    (lambda: ties(PAIR, ZERO, zero="none"), "zero must be positive or majority"),
    (lambda: ties(PAIR, ZERO, method="vote"), "method must be one of sum, count; got 'vote'"),
    (lambda: della(PAIR, ZERO, density=0.1, key=0), r"got density 0.1, epsilon 0.15"),
    (lambda: breadcrumbs(PAIR, ZERO, density=0.5, gamma=1.0), r"gamma must lie in \[0, 1\); got 1.0"),
    (lambda: sce(PAIR, ZERO, density=2.0), "density must lie in"),
    (lambda: trim(ZERO, 0.5, by="rank"), "key must be given where by is 'rank'"),
    (lambda: trim(ZERO, 0.5, by="rank", scope="leaf", key=0), "scope must be row where by is 'rank'; got 'leaf'"),
    (lambda: trim(ZERO, 0.5, by="size"), "by must be one of magnitude, random, rank, band; got 'size'"),
    (lambda: trim(ZERO, 0.5, rescale="inverse_probability"), "rescale must be None, l1 where by is 'magnitude'"),
    (lambda: trim(ZERO, 0.5, rescale="l1", scope="global"), "rescale must be None where scope is global"),
])
def test_errors_name_the_argument(call, message):
  with pytest.raises(ValueError, match=message):
    call()


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_the_largest_of_all_leaves_are_the_same_on_the_host(density):
  rng = np.random.default_rng(0)
  base = {"a": rng.normal(size=(3, 5)).astype(np.float32), "b": {"c": np.zeros(40, np.float32), "hole": None}}
  # Few values, so that many are equal.
  model = jax.tree.map(lambda x: x + rng.integers(-2, 3, x.shape).astype(np.float32), base)
  on_host = keep_largest(model, base, density)
  on_device = keep_largest(*jax.tree.map(jnp.asarray, (model, base)), density)
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(on_host))
  jax.tree.map(np.testing.assert_array_equal, on_host, jax.device_get(on_device))


def test_under_jit_on_a_mesh_ties_gathers_no_leaf_and_gives_the_same_bits():
  mesh = make_mesh(data=1, fsdp=8)
  place = lambda x: jax.device_put(x, NamedSharding(mesh, P(*[None] * (x.ndim - 2), "fsdp")))
  draw = lambda: {"layers": {"up": RNG.normal(size=(3, 16, 8)).astype(np.float32)},
                  "head": RNG.normal(size=(16, 24)).round(1).astype(np.float32)}  # of which some are equal
  base, *models = (jax.tree.map(place, draw()) for _ in range(4))
  for scope in ("leaf", "row"):
    merge = partial(ties, density=0.3, scope=scope, zero="positive")
    compiled = jax.jit(merge).lower(models, base).compile()
    sent = collectives(compiled, mesh)
    assert all(one.kind == "all-reduce" for one in sent) and bool(sent) == (scope == "leaf")
    assert sum(one.bytes / one.count for one in sent) < 100  # counts, one for each layer
    merged = compiled(models, base)
    jax.tree.map(np.testing.assert_array_equal, merged, merge(models, base))
    jax.tree.map(np.testing.assert_array_equal, merged, merge(*jax.device_get((models, base))))
    assert jax.tree.map(lambda x: x.sharding.spec, merged) == jax.tree.map(lambda x: x.sharding.spec, base)


@pytest.mark.parametrize("options", [{}, {"scope": "leaf"}, {"zero": "positive"}])
def test_under_jit_ties_refuses_what_counts_over_all_leaves(options):
  with pytest.raises(ValueError, match="scope must be leaf or row, and zero positive, where leaves are traced; got"):
    jax.eval_shape(partial(ties, **options), PAIR, ZERO)
