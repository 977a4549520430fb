"""Whatever takes a choice takes all of its forms: every user with every form, and the leaves that it then has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxft.transforms as t
from jaxft import merging
from jaxft.analysis import intruder_dimensions
from jaxft.analysis.cost import selection_flops
from jaxft.choices import (
  chosen_fraction,
  chosen_rows,
  cut_at_changes,
  lottery_ticket_mask,
  random_module_mask,
  top_k_mask,
  within_layers,
)
from jaxft.leaves import materialize
from jaxft.optimizers import layerwise_decay, lora_plus
from jaxft.tree import by_path, choice_scales, leaves_with_paths, map_with_path, matching_paths
from jaxft.tree.choice import as_choice, entries

KEY = jax.random.key(0)
LAYERS, SIZE = 2, 16
PARAMS = {
    "embed": {"kernel": np.ones((SIZE, SIZE), np.float32)}, "head": {"kernel": np.ones((SIZE, SIZE), np.float32)},
    "layers": {name: {"kernel": np.ones((LAYERS, SIZE, SIZE), np.float32)} for name in ("gate", "up")}}
PARAMS, TUNED = jax.device_put((PARAMS, jax.tree.map(lambda x: x + np.float32(1), PARAMS)))
CHOSEN = ["embed/kernel", "layers/up/kernel"]

FORMS = {
    "glob": "{embed,layers/up}/*",
    "list": ["embed/*", "**/up/kernel"],
    "tuple": ("embed/*", "**/up/kernel"),
    "tree": map_with_path(lambda path, leaf: path in CHOSEN, PARAMS),
    "prefix": {"embed": True, "layers": {"up": np.bool_(True), "gate": None}, "head": False},
    "function": lambda params: jax.tree_util.tree_map_with_path(
        lambda keys, leaf: keys[0].key == "embed" or leaf.ndim == 3 and keys[1].key == "up", params),
    "function that gives a prefix": lambda params: {
        "embed": True, "layers": {name: name == "up" for name in params["layers"]}, "head": False},
    "predicate": by_path(lambda path, leaf: path in CHOSEN),
}


def flagged(tree):
  return [path for path, x in leaves_with_paths(tree) if x is not None and np.any(x)]


def differing(tree, other):
  return flagged(jax.tree.map(lambda a, b: np.any(a != b), tree, other))


def structured(tree):
  return [path for path, leaf in leaves_with_paths(tree) if hasattr(leaf, "materialize")]


def trained(transform):
  """Where something trains, by shapes."""
  _, trainable = jax.eval_shape(transform.split, KEY, PARAMS)
  parts = jax.tree.structure(PARAMS).flatten_up_to(trainable)
  return [path for (path, _), part in zip(leaves_with_paths(PARAMS), parts, strict=True) if part is not None]


def moved(transform):
  """Where the params change with what trains, joined under `jit`."""
  frozen, trainable = transform.split(KEY, PARAMS)
  join = jax.jit(lambda frozen, trainable: materialize(transform.join(frozen, trainable)))
  return differing(join(frozen, jax.tree.map(lambda x: x + 0.5, trainable)), join(frozen, trainable))


def joined(transform):
  return structured(transform.join(*transform.split(KEY, PARAMS)))


# `choice -> paths`; these take whole leaves alone.
WHOLE = {
    "matching_paths": lambda c: matching_paths(c, PARAMS),
    "on": lambda c: moved(t.on(c, t.full())),
    "on_chain": lambda c: moved(t.on(c, t.chain(t.quantize("**", block=8), t.miss("**", rank=4)))),
    "on_quantized": lambda c: moved(t.chain(t.quantize("**", block=8), t.on(c, t.miss("**", rank=4)))),
    "random_subspace": lambda c: moved(t.random_subspace(3, select=c, projection=t.dense_projection)),
    "linear_combination": lambda c: joined(t.linear_combination([PARAMS], recompute=c)),
    "quantize": lambda c: joined(t.quantize(c, block=8)),
    "binary_mask": lambda c: trained(t.binary_mask(c)),
    "shira": lambda c: trained(t.shira(c, rank=1)),
    "random_indices": lambda c: trained(t.sparse_delta(indices=t.random_indices(c, lambda path, shape: 3))),
    "trainable_tokens": lambda c: trained(t.trainable_tokens([1], c)),
    "mixout": lambda c: differing(t.mixout(KEY, TUNED, PARAMS, 0.5, select=c), TUNED),
    "add_biases": lambda c: [path.replace("bias", "kernel") for path, _ in leaves_with_paths(t.add_biases(PARAMS, c))
                             if path.endswith("bias")],
    "extract_lora": lambda c: sorted({
        path[:-2] for path, leaf in leaves_with_paths(merging.extract_lora(PARAMS, TUNED, 1, select=c))
        if leaf is not None}),
    "intruder_dimensions": lambda c: list(intruder_dimensions(PARAMS, TUNED, select=c)),
    "selection_flops": lambda c: CHOSEN if np.isclose(selection_flops(PARAMS, c), 2 + 2 * (5 + 2) / 5) else [],
    # What lies in the layers, and what lies outside of them.
    "random_module_mask": lambda c: flagged(random_module_mask(KEY, PARAMS, [c], fraction=1.0, others=False)),
    "within_layers": lambda c: CHOSEN[:1] + flagged(within_layers(0, LAYERS, c)(PARAMS)),
    "freeze_below": lambda c: [p for p in CHOSEN[:1] if p not in trained(t.freeze_below(0, first=c))] + CHOSEN[1:],
    "layerwise_decay": lambda c: flagged(jax.tree.map(
        lambda scale: np.ndim(scale) == 0 and scale < 1, layerwise_decay(0.5, PARAMS, first=c))) + CHOSEN[1:],
}
# These take layers and entries as well.
DIVIDED = {
    "train": lambda c: trained(t.train(c)),
    "freeze": lambda c: [path for path, _ in leaves_with_paths(PARAMS) if path not in trained(t.freeze(c))],
    "bitfit": lambda c: trained(t.bitfit(c)),
    "norm_tuning": lambda c: trained(t.norm_tuning(c)),
    "sparse_delta": lambda c: trained(t.sparse_delta(c)),
    "submatrix": lambda c: trained(t.submatrix(c)),
    "chosen_rows": lambda c: list(chosen_rows(c, PARAMS)),
    "chosen_fraction": lambda c: CHOSEN if np.isclose(chosen_fraction(PARAMS, c), 3 / 6) else [],
    "cut_at_changes": lambda c: CHOSEN if jax.tree.all(jax.tree.map(np.array_equal, cut_at_changes(PARAMS, c), {
        **PARAMS, "layers": {"0:2": PARAMS["layers"]}})) else [],
    "top_k_mask": lambda c: flagged(top_k_mask(PARAMS, 1.0, where=c)),
    "lottery_ticket_mask": lambda c: flagged(lottery_ticket_mask(PARAMS, TUNED, 1.0, where=c)),
    "reset": lambda c: differing(merging.reset(PARAMS, TUNED, keep=c), PARAMS),
    "choice_scales": lambda c: flagged(choice_scales(c, PARAMS)),
    "lora_plus": lambda c: flagged(jax.tree.map(lambda s: s > 1, lora_plus(PARAMS, faster=c))),
}


def trained_by(make, options):
  return lambda c: trained(make(c, **options))


MATRICES = {
    name: trained_by(getattr(t, name), options) for name, options in {
        "lora": {"rank": 2}, "dora": {"rank": 2}, "vera": {"rank": 2},
        "adalora": {"rank": 2}, "delora": {"rank": 2}, "rand_lora": {"rank": 2}, "loha": {"rank": 2},
        "hira": {"rank": 2}, "lokr": {}, "miss": {"rank": 2}, "fourier_ft": {"frequencies": 3}, "c3a": {"block": 8},
        "oft": {"block": 4}, "boft": {"block": 4}, "hra": {"rank": 2}, "road": {"group": 8}, "learned_scale": {},
    }.items()}
USERS = WHOLE | DIVIDED | MATRICES


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("user", USERS)
def test_every_user_takes_every_form(user, form):
  assert USERS[user](FORMS[form]) == CHOSEN


ONE_LAYER = {"embed": False, "head": False, "layers": {"gate": False, "up": np.array([True, False])}}
ROWS = jax.tree.map(lambda x: np.broadcast_to(np.arange(SIZE)[:, None] == 3, x.shape), PARAMS)
PARTS = {"layers": ONE_LAYER, "layers by function": within_layers(0, 1, "**/up/*"), "entries": ROWS}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("user", [*WHOLE, "lora"])
def test_who_takes_whole_leaves_refuses_parts(user, part):
  with pytest.raises(ValueError, match=r"must choose whole leaves; it divides \d: .*layers/up/kernel"):
    USERS[user](PARTS[part])


def chosen_entries(choice):
  flags = jax.tree.leaves(as_choice(choice, PARAMS))
  return [entries(flag, path, leaf) for (path, leaf), flag in zip(leaves_with_paths(PARAMS), flags, strict=True)]


def changed_entries(transform):
  frozen, trainable = transform.split(KEY, PARAMS)
  after = materialize(transform.join(frozen, jax.tree.map(lambda x: x + 0.5, trainable)))
  return [a != b for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(PARAMS), strict=True)]


# `choice -> the entries that it has, leaf by leaf`.
BY_ENTRY = {
    "train": lambda c: changed_entries(t.train(c)),
    "freeze": lambda c: [~x for x in changed_entries(t.freeze(c))],
    "sparse_delta": lambda c: changed_entries(t.sparse_delta(c)),
    "submatrix": lambda c: changed_entries(t.submatrix(c)),
    "top_k_mask": lambda c: jax.tree.leaves(top_k_mask(PARAMS, 1.0, where=c)),
    "lottery_ticket_mask": lambda c: jax.tree.leaves(lottery_ticket_mask(PARAMS, TUNED, 1.0, where=c)),
    "reset": lambda c: [a != 1 for a in jax.tree.leaves(merging.reset(PARAMS, TUNED, keep=c))],
    "choice_scales": lambda c: jax.tree.leaves(jax.tree.map(
        lambda scale, x: jnp.broadcast_to(scale, x.shape) > 0, choice_scales(c, PARAMS), PARAMS)),
    "lora_plus": lambda c: jax.tree.leaves(jax.tree.map(
        lambda scale, x: jnp.broadcast_to(scale, x.shape) > 1, lora_plus(PARAMS, faster=c), PARAMS)),
}


# Entries are not for train and freeze: `test_choice.py`.
@pytest.mark.parametrize("user, part", [
    (user, part) for user in BY_ENTRY for part in PARTS if part != "entries" or user not in ("train", "freeze")])
def test_who_takes_parts_has_these_alone(user, part):
  for got, want in zip(BY_ENTRY[user](PARTS[part]), chosen_entries(PARTS[part]), strict=True):
    np.testing.assert_array_equal(got, want)


def test_what_is_read_again_in_join_sees_shapes_alone():
  by_value = lambda params: jax.tree.map(lambda x: bool(x.sum() > 0), params)
  for transform in (t.on(by_value, t.full()), t.random_subspace(3, select=by_value)):
    with pytest.raises(Exception, match="ShapeDtypeStruct"):
      transform.split(KEY, PARAMS)
  assert trained(t.on(lambda params: jax.tree.map(lambda x: x.ndim == 3, params), t.full())) == [
      "layers/gate/kernel", "layers/up/kernel"]


@pytest.mark.parametrize("user", USERS)
def test_every_user_refuses_a_bare_predicate(user):
  with pytest.raises(TypeError, match="goes through by_path"):
    USERS[user](lambda path, leaf: True)


@pytest.mark.parametrize("user", USERS)
def test_every_user_refuses_a_function_that_returns_nothing(user):
  with pytest.raises(TypeError, match="; got None"):
    USERS[user](lambda params: None)


def test_a_format_is_no_choice():
  with pytest.raises(ValueError, match=r"select must choose matrices; got 'nf4', a format: quantize\(format='nf4'\)"):
    t.quantize("nf4")
