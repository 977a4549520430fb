"""Whatever made a choice, whatever uses it: each kind of selection with each user, on stacked and unrolled layers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.adapters import top_heads
from jaxft.choices import (
  choose_rows,
  chosen_fraction,
  chosen_rows,
  cut_at_changes,
  head_units,
  magnitude_scores,
  random_module_mask,
  select_units,
  top_k_mask,
  tree_search,
  unit_indices,
  within_layers,
)
from jaxft.leaves import materialize
from jaxft.models import decoder
from jaxft.optimizers import scale_updates
from jaxft.transforms import chain, freeze, full, lora, sparse_delta, submatrix, train
from jaxft.tree import as_choice, by_path, choice_scales, count, layer_of, leaves_with_paths, unstack_layers
from jaxft.tree.choice import entries
from tests import draws

KEY = jax.random.key(0)
LAYERS, HEADS, SIZE = 4, 4, 4
# A width that equals the number of layers, so that a vector over layers would broadcast over columns as well.
CONFIG = decoder.DecoderConfig(
    vocab_size=8, dim=16, num_layers=LAYERS, num_heads=HEADS, num_kv_heads=1, head_dim=SIZE, mlp_dim=LAYERS,
    tie_embeddings=False)
STACKED = draws.params(lambda: decoder.init(KEY, CONFIG), 0)
LAYOUTS = {"stacked": lambda: STACKED, "unrolled": lambda: unstack_layers(STACKED)}
OUT = "**/attention/out/kernel"


def test_no_rows_are_a_choice_too():
  """An empty list too, which NumPy takes for one of floats."""
  for none in ([], np.zeros((LAYERS, 0), int)):
    assert not any(map(np.any, jax.tree.leaves(choose_rows(STACKED, {OUT: none}))))
  assert chosen_fraction({"w": np.zeros((0, 3)), "v": None}, True) == 0
  assert chosen_fraction({"w": np.zeros((0, 3)), "v": np.zeros(2)}, "v") == 1


def search(params):
  found = tree_search([(0, 2), (1, 3)], lambda node: [], lambda node: node[0])
  return within_layers(*found.best, "**/mlp/*/*")(params)


def units(params):
  chosen = select_units(KEY, [HEADS] * LAYERS, fraction=0.4)
  return choose_rows(params, {OUT: unit_indices(chosen, SIZE)})


def heads(params):
  best = top_heads(np.random.default_rng(0).random((LAYERS, HEADS)), 5)
  return choose_rows(params, {OUT: unit_indices(head_units(best, LAYERS), SIZE)})


# What each selection finds, and whether it has whole layers, or at least whole rows.
MODULES, ROWS, ENTRIES = range(3)
KINDS = {
    "glob": (lambda p: "**/up/*", MODULES),
    "predicate": (lambda p: by_path(lambda path, leaf: "mlp" in path and "norm" not in path), MODULES),
    "tree of booleans": (lambda p: as_choice("**/out/*", p), MODULES),
    "random modules": (lambda p: random_module_mask(KEY, p, ["**/{up,down,gate}/*"], others=False), MODULES),
    "depth": (lambda p: within_layers(1, 3, "**/mlp/*/*"), MODULES),
    "tree search": (search, MODULES),
    "units": (units, ROWS),
    "heads": (heads, ROWS),
    "top k": (lambda p: top_k_mask(magnitude_scores(p), 50, where="**/kernel"), ENTRIES),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def chosen_of(kind, layout):
  params = LAYOUTS[layout]()
  choice, grain = KINDS[kind][0](params), KINDS[kind][1]
  flags = zip(leaves_with_paths(params), jax.tree.leaves(as_choice(choice, params)), strict=True)
  masks = [np.asarray(entries(flag, path, leaf)) for (path, leaf), flag in flags]
  assert 0 < sum(m.sum() for m in masks) < count(params)
  return params, choice, grain, masks


def moved_by(transform, params):
  """Where the params change if all that trains is moved."""
  frozen, trainable = transform.split(KEY, params)
  moved = jax.tree.map(lambda x: x + 1, trainable)
  start, after = (materialize(transform.join(frozen, t)) for t in (trainable, moved))
  jax.tree.map(np.testing.assert_array_equal, start, params)
  return trainable, [np.asarray(a != b) for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(params), strict=True)]


def assert_all_equal(got, want):
  for a, b in zip(got, want, strict=True):
    np.testing.assert_array_equal(a, b)


@every_kind
@every_layout
def test_train_and_freeze(kind, layout):
  params, choice, grain, masks = chosen_of(kind, layout)
  if grain != MODULES:
    for use in (train, freeze):
      with pytest.raises(ValueError, match="select must have whole leaves, or whole layers .* for sparse_delta"):
        use(choice).split(KEY, params)
    return
  trained, got = moved_by(train(choice), params)
  assert_all_equal(got, masks)
  assert count(trained) == sum(m.sum() for m in masks)
  _, got = moved_by(freeze(choice), params)
  assert_all_equal(got, [~m for m in masks])
  np.testing.assert_allclose(chosen_fraction(params, choice), count(trained) / count(params))


@every_kind
@every_layout
def test_sparse_delta(kind, layout):
  params, choice, _, masks = chosen_of(kind, layout)
  trained, got = moved_by(sparse_delta(choice), params)
  assert_all_equal(got, masks)
  assert count(trained) == sum(m.sum() for m in masks)


@every_kind
@every_layout
def test_submatrix(kind, layout):
  params, choice, grain, masks = chosen_of(kind, layout)
  matrix = lambda path, leaf: leaf.ndim - np.ndim(layer_of(path, leaf)) == 2
  if grain == ENTRIES:
    with pytest.raises(ValueError, match="choice must have whole rows; of .* in part"):
      chosen_rows(choice, params)
    with pytest.raises(ValueError, match="has some rows and columns in part, which is for sparse_delta"):
      submatrix(choice).split(KEY, params)
    return
  for transform in (submatrix(choice), submatrix(indices=chosen_rows(choice, params))):
    _, got = moved_by(transform, params)
    assert_all_equal(got, masks)
  pairs = zip(leaves_with_paths(params), masks, strict=True)
  assert all(matrix(path, leaf) for (path, leaf), m in pairs if m.any())


@every_kind
@every_layout
@pytest.mark.parametrize("chosen, others", [(1.0, 0.0), (0.25, 1.0)])  # a mask of updates, and a soft one
def test_learning_rate_scales(kind, layout, chosen, others):
  params, choice, _, masks = chosen_of(kind, layout)
  _, trainable = full().split(KEY, params)
  optimizer = optax.chain(optax.sgd(1.0), scale_updates(choice_scales(choice, trainable, chosen=chosen, others=others)))
  updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, trainable), optimizer.init(trainable), trainable)
  assert_all_equal(jax.tree.leaves(updates), [np.where(m, -chosen, -others).astype(np.float32) for m in masks])


@every_kind
def test_cut_where_a_choice_changes(kind):
  params, choice, grain, _ = chosen_of(kind, "stacked")
  tree = as_choice(choice, params)
  if grain != MODULES:
    with pytest.raises(ValueError, match="choice must have whole layers to cut at; it divides those of layers/"):
      cut_at_changes(params, tree)
    return
  again = as_choice(choice, cut_at_changes(params, tree)) if isinstance(choice, str) else None
  assert again is None or all(isinstance(flag, bool) for flag in jax.tree.leaves(again))


def test_what_trains_by_layers_composes_with_what_adapts_the_rest():
  choice = within_layers(1, 3, "**/mlp/up/*")
  transform = chain(train(choice), lora("**/mlp/up/kernel", rank=2))
  frozen, trainable = transform.split(KEY, STACKED)
  moved = jax.tree.map(lambda x: x + 0.5, trainable)
  after = materialize(transform.join(frozen, moved))["layers"]["mlp"]["up"]["kernel"]
  change = np.abs(np.asarray(after - STACKED["layers"]["mlp"]["up"]["kernel"])).sum((1, 2))
  assert (change > 0).all()
  np.testing.assert_allclose(change[1:3], 0.5 * after[0].size, rtol=1e-5)


@pytest.mark.parametrize("call, error, message", [
    (lambda: train({"embed": np.ones(3, bool)}).split(KEY, {"embed": jnp.ones((3, 2))}), ValueError,
     r"embed \(3, 2\) got bool \(3,\)"),
    (lambda: train(jax.tree.map(lambda x: np.ones(2, bool), STACKED)).split(KEY, STACKED), ValueError,
     "select must have"),
    (lambda: train(3).split(KEY, STACKED), TypeError, "select must be a glob, .* or a function"),
    (lambda: train(lambda params: None).split(KEY, STACKED), TypeError, "select must be .*; got None"),
    (lambda: train({"embed": True}).split(KEY, STACKED), TypeError, "select must be a glob, .* or a function"),
    (lambda: lora(within_layers(1, 3, "**/up/*")).split(KEY, STACKED), ValueError, "must choose whole leaves"),
    (lambda: scale_updates({"w": np.ones(3, bool)}), ValueError, "choice_scales"),
    (lambda: scale_updates({"w": np.ones(3)}).update({"w": jnp.ones((3, 2))}, optax.EmptyState()), ValueError,
     "scales must broadcast"),
    (lambda: choice_scales(True, STACKED, chosen=-1.0), ValueError, "chosen must be >= 0"),
    (lambda: choose_rows(STACKED, {OUT: np.array([16])}), ValueError, "must lie in 0..15"),
    (lambda: choose_rows(STACKED, {OUT: np.zeros((3, 1), int)}), ValueError, "have a row for its layer"),
    (lambda: choose_rows(STACKED, {OUT: np.array([0])}, axis=0), ValueError, "axis must be -2"),
    (lambda: choose_rows(STACKED, {OUT: np.array([0]), "**/out/*": np.array([0])}), ValueError, "two globs"),
    (lambda: choose_rows(STACKED, {OUT: [True, False, True]}), ValueError, r"whole numbers, \[k\].* got bool\[3\]"),
    (lambda: choose_rows(STACKED, {OUT: [0.5]}), ValueError, f"indices of '{re.escape(OUT)}' must be whole .*float64"),
    (lambda: choose_rows(STACKED, {OUT: 1}), ValueError, "indices of .* must be whole numbers"),
    (lambda: chosen_rows(False, STACKED), ValueError, "at least one row"),
    (lambda: head_units(np.array([[4, 0]]), 4), ValueError, "layers in 0..3"),
])
def test_errors(call, error, message):
  with pytest.raises(error, match=message):
    call()
