"""The low-rank family: inits from weights and from data, DoRA, DeLoRA, VeRA, VB-LoRA, the budget of AdaLoRA."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.leaves import lazy, materialize
from jaxft.leaves.dropout import seed_dropout
from jaxft.optimizers.rates import lora_plus, scale_updates
from jaxft.transforms import chain, full, learned_scale, lora, quantize, quantize_array
from jaxft.transforms.low_rank.adalora import adalora, keep_triplets, top_triplets
from jaxft.transforms.low_rank.corda import corda, damped, oriented_svd
from jaxft.transforms.low_rank.delora import delora
from jaxft.transforms.low_rank.dora import column_squares, dora
from jaxft.transforms.low_rank.eva import eva_directions, from_directions
from jaxft.transforms.low_rank.input_covariance import add_inputs, input_covariances
from jaxft.transforms.low_rank.loftq import loftq
from jaxft.transforms.low_rank.lora_ga import lora_ga
from jaxft.transforms.low_rank.mica import mica
from jaxft.transforms.low_rank.olora import olora
from jaxft.transforms.low_rank.pissa import pissa
from jaxft.transforms.low_rank.vb_lora import mix_vectors
from jaxft.transforms.low_rank.vera import vera
from jaxft.tree import stack_layers, unstack_layers
from tests.contracts.transforms import block, forward, stack_params

KEY = jax.random.key(0)
M, N = 12, 10
W = jax.random.normal(KEY, (M, N))
PARAMS = {"up": {"kernel": W}}


def draw(i, *shape):
  return jax.random.normal(jax.random.fold_in(KEY, i), shape)


COVARIANCE = add_inputs(None, draw(1, 40, M))


def split(transform):
  frozen, trainable = transform.split(KEY, PARAMS)
  return frozen["up"]["kernel"], trainable["up"]["kernel"], transform.join(frozen, trainable)["up"]["kernel"]


def init(init, rank, statistic=None, scale=2.0):
  statistics = None if statistic is None else {"up/kernel": statistic}
  return split(lora(rank=rank, alpha=scale * rank, init=init, statistics=statistics))


def singular_values(x):
  return jnp.linalg.svd(x, compute_uv=False)


def test_pissa_takes_the_leading_components_out():
  rest, t, _ = init(pissa, 3)
  np.testing.assert_allclose(singular_values(rest)[: N - 3], singular_values(W)[3:], rtol=1e-4)
  np.testing.assert_allclose(singular_values(2.0 * t["a"] @ t["b"])[:3], singular_values(W)[:3], rtol=1e-4)


def test_what_rounding_takes_off_the_factors_stays_in_the_weight():
  _, t, leaf = split(lora(rank=3, alpha=6, init=pissa, dtype=jnp.bfloat16))
  assert t["a"].dtype == jnp.bfloat16
  np.testing.assert_allclose(leaf.materialize(), W, atol=1e-5)


def test_olora_has_orthonormal_outputs():
  _, t, leaf = init(olora, 3, scale=1.0)
  np.testing.assert_allclose(t["b"] @ t["b"].T, jnp.eye(3), atol=1e-5)
  np.testing.assert_allclose(leaf.materialize(), W, atol=1e-5)


def test_mica_trains_inputs_of_the_minor_outputs():
  _, t, leaf = split(lora(rank=2, init=mica, train="a"))
  assert set(t) == {"a"} and not jnp.any(t["a"])
  np.testing.assert_allclose(jnp.linalg.norm(leaf.b @ W.T, axis=1), singular_values(W)[-2:], rtol=1e-4)


def test_loftq_is_nearer_than_the_quantized_weight_and_nears_with_rounds():
  w = draw(2, 32, 24)
  error = lambda got: float(jnp.linalg.norm(got - w))
  errors = [error(quantize_array(w, format="nf4", block=16).materialize())]
  for rounds in (1, 5):
    transform = lora(rank=4, alpha=8, init=loftq(block=16, rounds=rounds))
    errors.append(error(materialize(transform.join(*transform.split(KEY, {"kernel": w})))["kernel"]))
  assert errors[0] > 1.1 * errors[1] > 1.1 * errors[2]


def test_oriented_svd_reconstructs_and_the_identity_gives_the_plain_one():
  inputs, s, outputs = oriented_svd(W, COVARIANCE)
  np.testing.assert_allclose(inputs * s @ outputs, W, atol=1e-4)
  _, s, _ = oriented_svd(W, jnp.eye(M))
  np.testing.assert_allclose(s / 1.01, singular_values(W), rtol=1e-4)
  _, preview, _ = init(corda("preview"), 3, jnp.eye(M))
  _, plain, _ = init(pissa, 3)
  np.testing.assert_allclose(preview["a"] @ preview["b"], plain["a"] @ plain["b"], atol=1e-4)


@pytest.mark.parametrize("mode", ["preview", "preserve"])
def test_corda_ignores_the_size_of_the_covariance_and_ends_at_full_rank(mode):
  _, t, _ = init(corda(mode), 3, COVARIANCE)
  _, scaled, _ = init(corda(mode), 3, 7 * COVARIANCE)
  np.testing.assert_allclose(scaled["a"] @ scaled["b"], t["a"] @ t["b"], atol=1e-3)
  rest, _, _ = init(corda(mode), N, COVARIANCE)
  np.testing.assert_allclose(rest, 0, atol=1e-4)


def test_corda_doubles_the_damping_until_the_covariance_can_be_inverted():
  c = jnp.diag(jnp.array([1.0] + [0.0] * (M - 1))) + 0.1 * jnp.ones((M, M))  # of rank 2
  error = lambda c: float(jnp.linalg.norm(c @ jnp.linalg.inv(c) - jnp.eye(M)))
  first = 1e-8 * jnp.trace(c) / M * jnp.eye(M)
  assert not error(c + first) < 0.05
  got = damped(c, damping=1e-8)
  times = float(jnp.mean(jnp.diag(got - c)) / first[0, 0])
  assert error(got) < 0.05 and times >= 2
  np.testing.assert_allclose(got - c, times * first, atol=1e-7)
  np.testing.assert_array_equal(damped(c, damping=0.5), c + 0.5 * jnp.trace(c) / M * jnp.eye(M))


def test_corda_previews_what_a_single_input_does():
  v = draw(3, M)
  _, t, _ = init(corda("preview", damping=1e-3), 1, jnp.outer(v, v), scale=1.0)
  np.testing.assert_allclose(v @ t["a"] @ t["b"], v @ W, rtol=0.02, atol=0.02)


def test_inputs_add_up_over_batches_and_leave_padding_out():
  x, where = draw(4, 6, 5, M), np.arange(5) < np.array([5, 2, 3, 1, 5, 4])[:, None]
  streamed = None
  for rows in (slice(0, 4), slice(4, 6)):
    streamed = add_inputs(streamed, {"up": x[rows]}, where=where[rows])
  np.testing.assert_allclose(streamed["up"], x[where].T @ x[where], rtol=1e-4, atol=1e-4)
  kept = x[1:2, :2]
  got = add_inputs(None, x[1:2], where=where[1:2], by_example=True)
  np.testing.assert_allclose(got, add_inputs(None, kept / jnp.abs(kept.max())), rtol=1e-4, atol=1e-4)
  assert add_inputs(None, x.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("stacked", [True, False])
def test_covariances_of_what_a_model_multiplies_with(stacked):
  params = stack_params(KEY, layers=3, dim=6, hidden=8)
  x, where = draw(4, 4, 5, 6), np.arange(5) < np.array([5, 2, 3, 1])[:, None]
  got = input_covariances(lambda params: forward(params, x), params if stacked else unstack_layers(params), where=where)
  got = got if stacked else stack_layers(got)
  h = x
  for i in range(3):
    layer = jax.tree.map(lambda w: w[i], params["layers"])
    want = add_inputs(None, {"up": h, "down": jax.nn.relu(h @ layer["up"]["kernel"])}, where=where)
    for name in want:
      np.testing.assert_allclose(got["layers"][name]["kernel"][i], want[name], rtol=1e-4, atol=1e-4)
    h = block(h, layer)
  foreign = lambda params, x: jax.nn.relu(x @ params["up"]["kernel"])
  covariance = input_covariances(lambda params: lazy(foreign)(params, draw(1, 40, M)), PARAMS)["up"]["kernel"]
  np.testing.assert_allclose(covariance, COVARIANCE, rtol=1e-4, atol=1e-4)


def test_eva_shares_out_ranks_by_explained_variance():
  flat, steep = jnp.eye(M), jnp.diag(10.0 ** -jnp.arange(M))
  for covariances in ({"steep": steep, "flat": flat}, {"stack": jnp.stack([steep, flat])}):
    directions = jnp.stack([x for leaf in jax.tree.leaves(eva_directions(covariances, rank=3, rho=4 / 3))
                            for x in leaf.reshape(-1, M, 4)])
    ranks = jnp.sum(jnp.any(directions != 0, axis=1), axis=1)
    assert sorted(ranks.tolist()) == [2, 4]
  even = eva_directions({"up/kernel": COVARIANCE}, rank=3, rho=1.0)
  np.testing.assert_allclose(even["up/kernel"].T @ even["up/kernel"], jnp.eye(3), atol=1e-5)
  _, t, _ = init(from_directions, 3, even["up/kernel"])
  values = jnp.linalg.eigvalsh(COVARIANCE)[::-1]
  np.testing.assert_allclose(jnp.diag(t["a"].T @ COVARIANCE @ t["a"]), values[:3], rtol=1e-4)
  assert not jnp.any(t["b"])


def test_lora_ga_spans_the_leading_directions_of_the_gradient():
  g = draw(5, M, N)
  _, t, leaf = init(lora_ga(gamma=4.0), 2, g)
  u, _, v = jnp.linalg.svd(g, full_matrices=False)
  factor = N**0.25 / 2
  np.testing.assert_allclose(jnp.abs(u[:, :2].T @ t["a"]), factor * jnp.eye(2), atol=1e-4)
  np.testing.assert_allclose(jnp.abs(v[2:4] @ t["b"].T), factor * jnp.eye(2), atol=1e-4)
  np.testing.assert_allclose(leaf.materialize(), W, atol=1e-5)


def test_statistics_are_found_at_a_prefix_and_missing_ones_are_named():
  params = {"attention": {"query": {"kernel": W}, "key": {"kernel": 2 * W}}}
  transform = lora(rank=2, alpha=2, init=corda(), statistics={"attention": COVARIANCE})
  _, trainable = transform.split(KEY, params)
  np.testing.assert_allclose(jnp.abs(trainable["attention"]["key"]["kernel"]["a"]),
                             2**0.5 * jnp.abs(trainable["attention"]["query"]["kernel"]["a"]), rtol=1e-3, atol=1e-4)
  with pytest.raises(ValueError, match="no entry at attention/key/kernel"):
    lora(rank=2, alpha=2, init=corda(), statistics={"attention/query": COVARIANCE}).split(KEY, params)
  with pytest.raises(ValueError, match=r"covariance \[m, m\], here of shape \(12, 12\); got shape \(10, 10\)"):
    init(corda(), 2, jnp.eye(N))
  with pytest.raises(ValueError, match="must give each matrix a gradient"):
    init(lora_ga(), 2)
  with pytest.raises(ValueError, match=r"one entry a layer for layers/up/kernel \(3, 12, 10\)"):
    lora(init=corda(), statistics={"layers": jnp.eye(M)}).split(
        KEY, {"layers": {"up": {"kernel": jnp.stack([W] * 3)}}})


@pytest.mark.parametrize("after", [
    quantize("**/kernel", format="nf4", block=4), lora("**/kernel", rank=1), learned_scale("**/kernel"), full()], ids=[
        "quantized", "lora", "scaled", "trained"])
def test_dora_normalizes_the_weight_that_a_later_transform_made(after):
  transform = chain(dora(rank=3), after)
  frozen, start = transform.split(KEY, PARAMS)
  moved = jax.tree.map(lambda x: x + 0.3 * draw(6, *x.shape).astype(x.dtype), start)
  leaf = transform.join(frozen, moved)["up"]["kernel"]
  np.testing.assert_allclose(
      jnp.linalg.norm(materialize(leaf), axis=0), jnp.abs(moved[0]["up"]["kernel"]["magnitude"]), rtol=1e-5)


def test_the_norm_of_dora_knows_no_dropout_of_the_weight_below():
  transform = chain(dora(rank=3), lora("**/kernel", rank=2, dropout=0.5))
  frozen, start = transform.split(KEY, PARAMS)
  moved = jax.tree.map(lambda x: x + 0.3 * draw(6, *x.shape), start)
  joined = transform.join(frozen, moved)
  plain, seeded = (tree["up"]["kernel"] for tree in (joined, seed_dropout(joined, jax.random.key(1))))
  assert seeded.v.w.key is not None
  np.testing.assert_array_equal(column_squares(seeded.v), column_squares(plain.v))


def test_dora_columns_have_the_trained_magnitude_and_no_gradient_through_the_norm():
  transform = dora(rank=3)
  frozen, start = transform.split(KEY, PARAMS)
  moved = jax.tree.map(lambda x: x + 0.1 * draw(6, *x.shape), start)
  leaf = transform.join(frozen, moved)["up"]["kernel"]
  v = leaf.v.materialize()
  np.testing.assert_allclose(column_squares(leaf.v), jnp.sum(v**2, axis=0), rtol=1e-5)
  t = moved["up"]["kernel"]
  np.testing.assert_allclose(jnp.linalg.norm(leaf.materialize(), axis=0), t["magnitude"], rtol=1e-5)

  def reference(t):
    v = W + 16 / 3 * t["a"] @ t["b"]
    return jnp.sum(jnp.sin(v * t["magnitude"] / jax.lax.stop_gradient(jnp.linalg.norm(v, axis=0))))

  got = jax.grad(lambda t: jnp.sum(jnp.sin(transform.join(frozen, t)["up"]["kernel"].materialize())))(moved)
  for g, want in zip(jax.tree.leaves(got), jax.tree.leaves(jax.grad(reference)(t)), strict=True):
    np.testing.assert_allclose(g, want, rtol=1e-4, atol=1e-5)


def test_delora_bounds_the_update_by_its_strength():
  transform = delora(rank=3, strength=2.0)
  frozen, start = transform.split(KEY, PARAMS)
  for size in (0.1, 100.0):
    factors = {"a": size * draw(7, M, 3), "b": size * draw(8, 3, N), "strength": jnp.float32(2.0)}
    leaf = transform.join(frozen, {"up": {"kernel": factors}})["up"]["kernel"]
    delta = (leaf.materialize() - W) / jnp.linalg.norm(W, axis=1, keepdims=True)
    components = 2 / 3 * jnp.einsum("mk,kn->kmn", *(x / jnp.linalg.norm(x, axis=i, keepdims=True)
                                                     for i, x in enumerate((factors["a"], factors["b"]))))
    np.testing.assert_allclose(delta, components.sum(0), rtol=1e-3, atol=1e-5)
    assert jnp.linalg.norm(delta) <= 2.0
  grads = jax.grad(lambda t: jnp.sum(transform.join(frozen, t)["up"]["kernel"].dot(draw(9, 4, M))))(start)
  assert all(jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads))


def test_vera_cuts_all_factors_from_one_pair():
  params = {"x": {"kernel": draw(1, 6, 8)}, "y": {"kernel": draw(2, 4, 10)}}
  frozen, trainable = vera(rank=5).split(KEY, params)
  x, y = frozen["x"]["kernel"].note, frozen["y"]["kernel"].note
  np.testing.assert_array_equal(x["a"][:4], y["a"])
  np.testing.assert_array_equal(x["b"], y["b"][:, :8])
  assert jax.tree.map(jnp.shape, trainable["x"]["kernel"]) == {"d": (5,), "s": (8,)}


def test_a_zero_factor_holds_the_other_one_still_at_first():
  x = draw(10, 4, M)
  for transform, still, moves in ((lora(rank=2), "a", "b"), (vera(rank=4), "d", "s"), (adalora(rank=2), "a", "e")):
    frozen, start = transform.split(KEY, PARAMS)
    grads = jax.grad(lambda t: jnp.sum(transform.join(frozen, t)["up"]["kernel"].dot(x) ** 2))(start)["up"]["kernel"]
    assert not jnp.any(grads[still]) and jnp.all(grads[moves] != 0)


def test_vectors_of_the_largest_logits_are_mixed():
  bank, logits = draw(11, 5, 3), jnp.array([0.0, 9.0, -1.0, 8.0, 3.0])
  np.testing.assert_array_equal(mix_vectors(logits, bank, top=1), bank[1])
  weight = jax.nn.sigmoid(1.0)
  np.testing.assert_allclose(mix_vectors(logits, bank, top=2), weight * bank[1] + (1 - weight) * bank[3], rtol=1e-5)


def test_triplets_of_highest_score_are_kept_over_all_matrices():
  kept = top_triplets({"x": jnp.array([1.0, 5.0, 3.0]), "y": jnp.array([[4.0, 0.0], [6.0, 2.0]])}, 3)
  assert kept["x"].tolist() == [False, True, False] and kept["y"].tolist() == [[True, False], [True, False]]
  triplet = {"a": jnp.ones((2, 3)), "e": jnp.ones(3), "b": jnp.ones((3, 2))}
  pruned = keep_triplets({"x": triplet, "y": None}, {"x": kept["x"], "y": None})["x"]
  assert pruned["e"].tolist() == [0, 1, 0] and jnp.all(pruned["a"] == 1)


@pytest.mark.parametrize("stabilized,scale", [(False, 16 / 4), (True, 16 / 2)])
def test_the_scale_of_lora_is_alpha_over_the_rank_or_over_its_root(stabilized, scale):
  assert split(lora(rank=4, alpha=16.0, rank_stabilized=stabilized))[2].scale == scale


def test_lora_plus_speeds_up_the_second_factor():
  _, trainable = lora(rank=2).split(KEY, PARAMS)
  optimizer = optax.chain(optax.sgd(1.0), scale_updates(lora_plus(trainable, ratio=4.0)))
  updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, trainable), optimizer.init(trainable))
  assert jnp.all(updates["up"]["kernel"]["a"] == -1) and jnp.all(updates["up"]["kernel"]["b"] == -4)
  with pytest.raises(ValueError, match=r"ratio must lie in \[1, inf\); got 0.5"):
    lora_plus(trainable, ratio=0.5)


@pytest.mark.parametrize("make,message", [
    (lambda: lora(train="c"), "train must be 'ab', 'a' or 'b'; got 'c'"),
    (lambda: dora(rank=0), "rank must be an integer >= 1; got 0"),
    (lambda: corda("both"), "mode must be 'preserve' or 'preview'; got 'both'"),
    (lambda: init(pissa, 11), r"rank must be at most the smaller side of each matrix; got 11 for \(12, 10\)"),
    (lambda: init(lora_ga(), 6, W), r"smaller side of each matrix; got 12 for \(12, 10\)"),
    (lambda: eva_directions({"x": COVARIANCE}, rank=8, rho=2.0), r"at most each layer's inputs; got 16 for \(12, 12\)"),
    (lambda: loftq(rounds=0), "rounds must be an integer >= 1; got 0"),
])
def test_bad_arguments(make, message):
  with pytest.raises(ValueError, match=message):
    make()
