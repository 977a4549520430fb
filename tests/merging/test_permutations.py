"""Permutation symmetries, matching, partial merging, least squares: PLeaS and Git Re-Basin."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.merging.matching.least_squares import GramState, least_squares_merge, merged_features, squared_error
from jaxft.merging.matching.partial_merge import allowed, choose_ratios, merge_flops, partial_merge
from jaxft.merging.matching.permutations import (
  Spec,
  apply_permutations,
  identity,
  inverse,
  mlp_spec,
  random_permutations,
  transformer_spec,
  verify_spec,
)
from jaxft.merging.matching.rebasin import Matching, match_activations, match_weights, rebasin
from jaxft.models import DecoderConfig, EncoderConfig, decoder, encoder
from jaxft.tree import unstack_layers
from tests.draws import normal

LAYERS = ("hidden_0", "hidden_1", "head")
SPEC = mlp_spec(LAYERS)
X = normal(9, 40, 5)


def mlp(seed, widths=(5, 7, 6, 3)):
  return {
      name: {"kernel": normal(10 * seed + 2 * i, m, n), "bias": normal(10 * seed + 2 * i + 1, n)}
      for i, (name, m, n) in enumerate(zip(LAYERS, widths[:-1], widths[1:], strict=True))
  }


def run(params, x=X, features=False):
  out = {}
  for name in LAYERS[:-1]:
    x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    out[name] = x
  x = x @ params["head"]["kernel"] + params["head"]["bias"]
  return (x, out) if features else x


A, B = mlp(0), mlp(1)
DECODER = DecoderConfig(vocab_size=11, dim=8, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=2, mlp_dim=6,
                        tie_embeddings=False)
ENCODER = EncoderConfig(vocab_size=11, dim=8, num_layers=2, num_heads=2, mlp_dim=6, max_length=8)
IDS = jax.random.randint(jax.random.key(1), (2, 5), 0, 11)


def everywhere_random(params, key):
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  return structure.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


@pytest.mark.parametrize("tied", [False, True])
def test_symmetries_of_a_decoder(tied):
  config = dataclasses.replace(DECODER, tie_embeddings=tied)
  params = unstack_layers(everywhere_random(decoder.init(jax.random.key(0), config), jax.random.key(5)))
  spec = transformer_spec(params, num_kv_heads=2)
  assert set(spec.groups) == {"stream", *(f"layers/{i}/{kind}" for i in range(2) for kind in ("mlp", "heads"))}
  apply = jax.jit(lambda p: decoder.logits(p, config, decoder.hidden_states(p, config, IDS).hidden))
  assert max(verify_spec(apply, params, spec, np.random.default_rng(3)).values()) < 1e-5


def test_symmetries_of_an_encoder():
  params = unstack_layers(everywhere_random(encoder.init(jax.random.key(0), ENCODER), jax.random.key(5)))
  spec = transformer_spec(params, num_kv_heads=2, stream=False)
  apply = jax.jit(lambda p: encoder.hidden_states(p, ENCODER, IDS)[0])
  assert max(verify_spec(apply, params, spec, np.random.default_rng(3)).values()) < 1e-5
  # The stream of an encoder is what it returns, permuted with it.
  whole = transformer_spec(params, num_kv_heads=2)
  moved = np.random.default_rng(4).permutation(8)
  out = apply(apply_permutations({"stream": moved}, whole, params))
  np.testing.assert_allclose(out, apply(params)[..., moved], atol=1e-5)


def test_stacked_layers_are_refused():
  with pytest.raises(ValueError, match="params must have unrolled layers"):
    transformer_spec(decoder.init(jax.random.key(0), DECODER), num_kv_heads=2)


def test_a_permutation_and_its_inverse():
  drawn = random_permutations(SPEC, A, np.random.default_rng(0))
  there = apply_permutations(drawn, SPEC, A)
  np.testing.assert_allclose(run(there), run(A), atol=1e-5)
  back = apply_permutations(inverse(drawn), SPEC, there)
  assert all((x == y).all() for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(A), strict=True))
  with pytest.raises(ValueError, match=r"permutations\['hidden_0'\] must order the units 0..6"):
    apply_permutations({"hidden_0": [0, 0, 1, 2, 3, 4, 5]}, SPEC, A)


@pytest.mark.parametrize("how", ["weights", "distance", "inner"])
def test_a_permuted_copy_is_found_and_merges_to_the_original(how):
  drawn = random_permutations(SPEC, A, np.random.default_rng(1))
  copy = apply_permutations(drawn, SPEC, A)
  if how == "weights":
    matching = match_weights(SPEC, A, copy, key=jax.random.key(0))
  else:
    pairs = [(run(A, x, True)[1], run(copy, x, True)[1]) for x in (X[:20], X[20:])]
    matching = match_activations(pairs, metric=how)
  if how != "inner":
    for group, found in matching.permutations.items():
      np.testing.assert_array_equal(drawn[group][found], np.arange(len(found)))
    merged = rebasin(SPEC, A, copy, matching.permutations)
    np.testing.assert_allclose(run(merged), run(A), atol=1e-5)
    same, _ = partial_merge(SPEC, A, copy, matching, 0.0)
    np.testing.assert_allclose(run(same), run(A), atol=1e-5)


def test_merging_nothing_keeps_both_networks():
  matching = match_weights(SPEC, A, B, key=jax.random.key(0))
  merged, _ = partial_merge(SPEC, A, B, matching, 1.0, outputs="both")
  assert merged["hidden_0"]["kernel"].shape == (5, 14) and merged["hidden_1"]["kernel"].shape == (14, 12)
  out = run(merged)
  np.testing.assert_allclose(out[:, :3], run(A), atol=1e-5)
  np.testing.assert_allclose(out[:, 3:], run(B), atol=1e-5)


def test_merging_everything_is_rebasin_and_without_matching_the_mean():
  matching = match_weights(SPEC, A, B, key=jax.random.key(0))
  whole, _ = partial_merge(SPEC, A, B, matching, 0.0)
  for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(rebasin(SPEC, A, B, matching.permutations)), strict=True):
    np.testing.assert_allclose(np.sort(x.ravel()), np.sort(y.ravel()), atol=1e-6)
  np.testing.assert_allclose(run(whole), run(rebasin(SPEC, A, B, matching.permutations)), atol=1e-4)
  plain = Matching(identity(SPEC, A), {g: np.zeros(n) for g, n in (("hidden_0", 7), ("hidden_1", 6))})
  mean, _ = partial_merge(SPEC, A, B, plain, 0.0)
  for x, a, b in zip(jax.tree.leaves(mean), jax.tree.leaves(A), jax.tree.leaves(B), strict=True):
    np.testing.assert_allclose(x, (a + b) / 2, atol=1e-6)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 1.0])
def test_the_cost_is_that_of_the_network_that_was_built(ratio):
  d = {"hidden_0": 7, "hidden_1": 6}
  matching = match_weights(SPEC, A, B, key=jax.random.key(0))
  merged, blocks = partial_merge(SPEC, A, B, matching, ratio)
  counted = sum(
      int(allowed(blocks.get((f"{n}/kernel", 0)), blocks.get((f"{n}/kernel", 1)), merged[n]["kernel"].shape).sum())
      + merged[n]["bias"].size for n in LAYERS)
  own = {g: round((1 - ratio) * n + 1e-9) for g, n in d.items()}
  exact = {g: 1 - own[g] / n for g, n in d.items()}
  assert counted == pytest.approx(merge_flops(SPEC, A, exact) * sum(x.size for x in jax.tree.leaves(A)))


def test_ratios_for_a_budget():
  gains = {"hidden_0": 1.0, "hidden_1": 0.1}
  ratios = choose_ratios(SPEC, A, 1.5, gains=gains)
  assert ratios["hidden_0"] > ratios["hidden_1"] and merge_flops(SPEC, A, ratios) <= 1.5
  assert set(choose_ratios(SPEC, A, 1.0, gains=gains).values()) == {0.0}
  assert set(choose_ratios(SPEC, A, 9.0, gains=gains).values()) == {1.0}
  with pytest.raises(ValueError, match="ratios must lie in"):
    merge_flops(SPEC, A, 1.2)


def states(merged, blocks, a, b, x=X):
  """Sums of every layer of the merged network, and the squared sizes of its targets."""
  (_, of_a), (_, of_b) = run(a, x, True), run(b, x, True)

  def before(params, features, i):
    layer = params[LAYERS[i]]
    return (x if i == 0 else features[LAYERS[i - 1]]) @ layer["kernel"] + layer["bias"]

  found = {}
  for i, name in enumerate(LAYERS):
    rows, columns = blocks.get((f"{name}/kernel", 0)), blocks.get((f"{name}/kernel", 1))
    inputs = np.asarray(x) if i == 0 else merged_features(rows, of_a[LAYERS[i - 1]], of_b[LAYERS[i - 1]])
    outputs = merged_features(columns, before(a, of_a, i), before(b, of_b, i))
    state = GramState.zero(inputs.shape[1], outputs.shape[1])
    state = state.add(inputs[:15], outputs[:15]).add(inputs[15:], outputs[15:])
    found[name] = state, float(np.sum(outputs**2)), allowed(rows, columns, merged[name]["kernel"].shape)
  return found


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_least_squares_never_raises_a_layers_error_and_keeps_its_zeros(ratio):
  matching = match_weights(SPEC, A, B, key=jax.random.key(0))
  merged, blocks = partial_merge(SPEC, A, B, matching, ratio)
  for name, (state, total, mask) in states(merged, blocks, A, B).items():
    kernel, bias = least_squares_merge(state, mask=mask, ridge=0.0)
    assert (kernel[~mask] == 0).all() and (np.asarray(merged[name]["kernel"])[~mask] == 0).all()
    before = squared_error(state, merged[name]["kernel"], merged[name]["bias"], total)
    after = squared_error(state, kernel, bias, total)
    assert after <= before + 1e-6 * total


def test_of_a_permuted_copy_the_original_is_a_fixed_point():
  copy = apply_permutations(random_permutations(SPEC, A, np.random.default_rng(1)), SPEC, A)
  merged, blocks = partial_merge(SPEC, A, copy, match_weights(SPEC, A, copy, key=jax.random.key(0)), 0.0)
  for name, (state, total, mask) in states(merged, blocks, A, copy).items():
    kernel, bias = least_squares_merge(state, mask=mask, ridge=0.0)
    assert squared_error(state, kernel, bias, total) < 1e-6 * total
    if name == "hidden_0":  # inputs of full rank: the solution is unique
      np.testing.assert_allclose(kernel, merged[name]["kernel"], atol=1e-4)
      np.testing.assert_allclose(bias, merged[name]["bias"], atol=1e-4)


def test_least_squares_of_a_known_map():
  rng = np.random.default_rng(0)
  z, w, b = rng.standard_normal((50, 4)), rng.standard_normal((4, 3)), rng.standard_normal(3)
  kernel, bias = least_squares_merge(GramState.zero(4, 3).add(z, z @ w + b), ridge=0.0)
  np.testing.assert_allclose(kernel, w, atol=1e-9)
  np.testing.assert_allclose(bias, b, atol=1e-9)
  without, zero = least_squares_merge(GramState.zero(4, 3).add(z, z @ w), ridge=0.0, bias=False)
  np.testing.assert_allclose(without, w, atol=1e-9)
  assert (zero == 0).all()
  shrunk, _ = least_squares_merge(GramState.zero(4, 3).add(z, z @ w + b), ridge=10.0)
  assert np.abs(shrunk).sum() < np.abs(w).sum()


def test_features_must_fit():
  with pytest.raises(ValueError, match="metric must be distance or inner; got 'cosine'"):
    match_activations([], metric="cosine")
  with pytest.raises(ValueError, match="batches must hold at least one"):
    match_activations([])
  with pytest.raises(ValueError, match="features must be of the same groups"):
    match_activations([({"a": X}, {"b": X})])
  with pytest.raises(ValueError, match="outputs must be average or both"):
    partial_merge(SPEC, A, B, match_weights(SPEC, A, B, key=jax.random.key(0)), 0.5, outputs="a")


@pytest.mark.parametrize("seed", range(6))
def test_no_draw_hides_a_wrong_spec(seed):
  """Of two units a random permutation is the identity half the time."""
  params = {"a": {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.zeros(2)}, "b": {"kernel": jnp.array([[1.0], [3.0]])}}
  right = mlp_spec(["a", "b"])
  wrong = Spec({"a": right.groups["a"][:2]})
  apply = lambda p: p["a"]["kernel"] @ p["b"]["kernel"]
  assert verify_spec(apply, params, right, np.random.default_rng(seed)) == {"a": 0.0}
  assert verify_spec(apply, params, wrong, np.random.default_rng(seed))["a"] > 0.1


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_outputs_that_tell_no_change_are_refused(value):
  params = {"a": {"kernel": jnp.ones((1, 2)), "bias": jnp.zeros(2)}, "b": {"kernel": jnp.ones((2, 1))}}
  with pytest.raises(ValueError, match="apply must give finite outputs that are not all 0"):
    verify_spec(lambda p: value * jnp.ones(3), params, mlp_spec(["a", "b"]), np.random.default_rng(0))
