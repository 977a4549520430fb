"""InfoNCE and its guided form: closed forms, limits and symmetries from the cards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.losses import (
  Mean,
  clip,
  contrastive_blocks,
  cosine_similarity,
  false_negative_mask,
  guided_info_nce,
  info_nce,
  multiple_negatives_ranking,
  normalize,
  supervised_contrastive,
)

guided = jax.jit(
    guided_info_nce, static_argnames=("margin", "strategy", "queries", "positives", "inclusive", "hard"))
ranking = jax.jit(multiple_negatives_ranking, static_argnames=("queries", "positives"))


def embeddings(seed=0, rows=6, negatives=2, dim=8, guide_dim=5):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  student = draw(rows, dim), draw(rows, dim), draw(rows, negatives, dim)
  return student, (draw(rows, guide_dim), draw(rows, guide_dim), draw(rows, negatives, guide_dim))


def by_hand(student, guide, *, tau, margin=0.0, hard=False):
  """Guided InfoNCE by loops over rows and candidates, in float64."""
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  q, p, n = (unit(np.asarray(x, np.float64)) for x in student)
  gq, gp, gn = (unit(np.asarray(x, np.float64)) for x in guide)
  losses = []
  for i in range(len(q)):
    threshold = gq[i] @ gp[i] - margin
    pairs = [(q[i] @ p[j], gq[i] @ gp[j]) for j in range(len(q)) if j != i]
    pairs += [(q[i] @ x, gq[i] @ y) for x, y in zip(
        n.reshape(-1, n.shape[-1]), gn.reshape(-1, gn.shape[-1]), strict=True)]
    pairs += [(q[i] @ q[j], gq[i] @ gq[j]) for j in range(len(q)) if j != i]
    pairs += [(p[i] @ p[j], gp[i] @ gp[j]) for j in range(len(q)) if j != i]
    own = q[i] @ p[i]
    kept = [s for s, g in pairs if g <= threshold and (not hard or s >= own)]
    losses.append(np.log(np.exp(np.array([own, *kept]) / tau).sum()) - own / tau)
  return np.array(losses)


@pytest.mark.parametrize("options", [{}, {"margin": 0.2}, {"margin": -0.3}, {"hard": True}])
def test_guided_equals_a_loop_over_candidates(options):
  student, guide = embeddings()
  got, weights = guided(*student, *guide, temperature=0.2, **options)
  assert (weights == 1).all()
  np.testing.assert_allclose(got, by_hand(student, guide, tau=0.2, **options), rtol=2e-5, atol=1e-6)


def test_margin_of_minus_two_keeps_everything():
  student, guide = embeddings()
  everything, _ = guided(*student, *guide, temperature=0.05, margin=-2.1)
  plain, _ = ranking(*student, temperature=0.05, queries=True, positives=True)
  np.testing.assert_allclose(everything, plain, rtol=1e-6)
  assert np.all(everything != guided(*student, *guide, temperature=0.05)[0])


def test_margin_of_two_drops_everything_but_the_positive():
  student, guide = embeddings()
  loss = lambda s: Mean.of(*guided(*s, *guide, margin=2.1)).value
  value, gradient = jax.jit(jax.value_and_grad(loss))(student)
  assert value == 0
  assert all(not g.any() for g in jax.tree.leaves(gradient))


def test_student_as_its_own_guide_is_bounded_by_the_candidates_kept():
  student, _ = embeddings()
  similarity, index, drop = contrastive_blocks(*student)
  drop |= false_negative_mask(similarity, similarity[jnp.arange(6), index])
  losses, _ = guided(*student, *student)
  kept = (~drop).sum(1)
  assert (losses >= 0).all() and (losses <= jnp.log(kept) + 1e-6).all() and (kept > 1).any()


def test_one_row_alone_costs_nothing():
  (q, p, _), (gq, gp, _) = embeddings(rows=1)
  for values, weights in (guided(q, p, None, gq, gp, None), ranking(q, p)):
    assert values == 0 and weights == 1


def test_permuting_rows_permutes_losses():
  student, guide = embeddings()
  order = np.random.default_rng(1).permutation(6)
  permuted, _ = guided(*(x[order] for x in student), *(x[order] for x in guide), temperature=0.1)
  np.testing.assert_allclose(permuted, guided(*student, *guide, temperature=0.1)[0][order], rtol=1e-5)


def test_rotating_the_guide_changes_nothing():
  student, guide = embeddings()
  rotation = jnp.asarray(np.linalg.qr(np.random.default_rng(2).normal(size=(5, 5)))[0], jnp.float32)
  rotated, _ = guided(*student, *(x @ rotation for x in guide), temperature=0.1)
  np.testing.assert_allclose(rotated, guided(*student, *guide, temperature=0.1)[0], rtol=1e-4)


def test_guide_gets_no_gradient():
  student, guide = embeddings()
  gradient = jax.jit(jax.grad(lambda g: guided(*student, *g, temperature=0.1)[0].sum()))(guide)
  assert all(not g.any() for g in jax.tree.leaves(gradient))


def test_oracle_guide_strict_comparison_drops_nothing_and_inclusive_drops_same_class():
  classes = jnp.array([0, 0, 1, 2, 2, 2])
  oracle = jax.nn.one_hot(classes, 3)  # the positive shares the class: threshold 1
  similarity, index, self_pairs = contrastive_blocks(oracle, oracle)
  positive = similarity[jnp.arange(6), index]
  assert not (false_negative_mask(similarity, positive) & ~self_pairs).any()
  protect = jax.nn.one_hot(index, similarity.shape[1], dtype=bool)
  drop = false_negative_mask(similarity, positive, inclusive=True, protect=protect)
  same = jnp.tile(classes[:, None] == classes, (1, 3)) & ~protect
  np.testing.assert_array_equal(drop, same)


@pytest.mark.parametrize(("strategy", "thresholds"), [("relative", [0.45, -0.55]), ("absolute", [0.4, -0.6])])
def test_a_margin_lowers_the_threshold_whatever_the_sign_of_the_positive(strategy, thresholds):
  """A share of the positive's similarity is a share of its size: below 0 too, a margin drops more and never less."""
  positive = jnp.array([0.5, -0.5])
  candidates = jnp.array([[0.44, 0.46, 0.41, 0.39], [-0.56, -0.54, -0.59, -0.61]])
  drop = false_negative_mask(candidates, positive, margin=0.1, strategy=strategy)
  np.testing.assert_array_equal(drop, candidates > np.array(thresholds)[:, None])
  assert drop.any(axis=1).all() and not drop.all(axis=1).any()
  fewer = false_negative_mask(candidates, positive, margin=-0.1, strategy=strategy)
  assert not fewer.any()


def test_a_positive_that_copies_its_query_does_not_ruin_the_row():
  # The source leaves the self pair in, because its guide similarity of 1 does not exceed the threshold of 1.
  (q, p, n), guide = embeddings()
  gq, gp, gn = guide
  copied = (q, p, n), (gq, gp.at[0].set(gq[0]), gn)
  losses, _ = guided(*copied[0], *copied[1], temperature=0.01)
  similarity = cosine_similarity(q, p)
  assert losses[0] < (1 - similarity[0, 0]) / 0.01  # what the self pair alone would cost


def test_normalize_has_a_finite_gradient_at_zero_and_works_in_float32():
  gradient = jax.grad(lambda x: normalize(x).sum())(jnp.zeros((2, 3)))
  assert jnp.isfinite(gradient).all()
  assert normalize(jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.float32
  np.testing.assert_allclose(jnp.linalg.norm(normalize(jnp.array([[3e-4, 4e-4], [3e4, 4e4]])), axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("length", [1e-7, 8e37, 9e37, 1e38, 3e38])
def test_unit_vectors_of_any_finite_length(length, dtype):
  x = jnp.array([[length, 0], [length, -length]], dtype)
  for f in (normalize, jax.jit(normalize)):
    np.testing.assert_allclose(f(x), [[1, 0], [0.5**0.5, -(0.5**0.5)]], rtol=1e-6)
  np.testing.assert_allclose(cosine_similarity(x, x), [[1, 0.5**0.5], [0.5**0.5, 1]], rtol=1e-6)
  assert np.isfinite(jax.grad(lambda x: normalize(x).astype(jnp.float32)[1, 0])(x)).all()


def test_a_learned_temperature_gets_its_gradient_also_with_infinite_dropped_entries():
  similarity = jnp.array([[0.5, 0.1, jnp.inf], [0.2, 0.7, -jnp.inf]])
  drop = jnp.array([[False, False, True]] * 2)
  loss = lambda t, s, d: info_nce(s, jnp.array([0, 1]), temperature=t, drop=d)[0].sum()
  gradient = jax.jit(jax.grad(loss))
  got = gradient(0.3, similarity, drop)
  np.testing.assert_allclose(got, gradient(0.3, similarity[:, :2], None), rtol=1e-6)
  assert got != 0


def test_info_nce_keeps_its_positive_whatever_the_mask_says():
  similarity = jnp.array([[0.5, 0.1]])
  assert info_nce(similarity, jnp.array([0]), temperature=0.1, drop=jnp.ones((1, 2), bool)) == (0, 1)


def test_a_positive_that_does_not_exist_gives_nan():
  values, _ = info_nce(jnp.ones((4, 3)), jnp.array([0, -1, 2, 3]), temperature=0.1)
  assert jnp.isnan(values).tolist() == [False, True, False, True]


def test_the_mean_leaves_out_padding_and_rows_without_a_positive():
  """A third of the rows: the mean is theirs, neither the batch's nor a third of it."""
  student, guide = embeddings()
  where = jnp.arange(6) % 3 == 0
  kept = lambda x: None if x is None else x[::3]
  mean = Mean.of(*guided(*student, *guide, temperature=0.2, where=where))
  want = by_hand([kept(x) for x in student], [kept(x) for x in guide], tau=0.2).mean()
  assert mean.value == pytest.approx(want, rel=2e-5) and mean.weight == 2
  similarity, positives = jnp.eye(3), jnp.array([[True, False, False], [False] * 3, [True] * 3])
  mean = Mean.of(*supervised_contrastive(similarity, positives, temperature=1.0))
  values = np.log(np.e + 2) - np.array([1.0, 1 / 3])
  assert mean.weight == 2 and mean.value == pytest.approx(values.mean(), rel=1e-5)


def test_clip_is_symmetric():
  (a, b, _), _ = embeddings()
  both, back = (jax.jit(clip)(*sides)[0] for sides in ((a, b), (b, a)))
  np.testing.assert_allclose(both, back, rtol=1e-6)
  one_way = lambda x, y: ranking(x, y, temperature=0.07)[0]
  np.testing.assert_allclose(2 * both, one_way(a, b) + one_way(b, a), rtol=1e-6)


def test_supervised_contrastive_with_one_positive_is_info_nce_and_averages_over_several():
  rng = np.random.default_rng(0)
  similarity, drop = jnp.asarray(rng.uniform(-1, 1, (4, 6)), jnp.float32), jnp.asarray(rng.random((4, 6)) < 0.2)
  drop = drop.at[:, :2].set(False)
  first, second = jnp.zeros(4, jnp.int32), jnp.ones(4, jnp.int32)
  one = lambda index: info_nce(similarity, index, temperature=0.1, drop=drop)[0]
  several = lambda positives: supervised_contrastive(similarity, positives, temperature=0.1, drop=drop)[0]
  positives = jax.nn.one_hot(first, 6, dtype=bool)
  np.testing.assert_allclose(several(positives), one(first), rtol=1e-5)
  np.testing.assert_allclose(several(positives.at[:, 1].set(True)), (one(first) + one(second)) / 2, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1e20, 1e30])
def test_unit_vectors_of_any_length(scale):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)), jnp.float32)
  exact = np.asarray(x, np.float64) / np.linalg.norm(np.asarray(x, np.float64), axis=-1, keepdims=True)
  np.testing.assert_allclose(normalize(x * scale), exact, rtol=1e-5)
  slope = jax.grad(lambda x: normalize(x)[0, 0])
  np.testing.assert_allclose(slope(x * scale) * scale, slope(x), rtol=1e-4, atol=1e-6)
  plain = jax.grad(lambda x: (x / jnp.sqrt(jnp.sum(x * x, -1, keepdims=True)))[0, 0])
  np.testing.assert_allclose(slope(x), plain(x), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(slope(jnp.eye(2)), plain(jnp.eye(2)), atol=1e-6)  # where the square is 1 exactly


def test_below_the_floor_vectors_shrink_and_zero_has_a_finite_gradient():
  np.testing.assert_allclose(normalize(jnp.array([[3e-9, 4e-9], [0.0, 0.0]])), [[0.3, 0.4], [0, 0]], rtol=1e-6)
  assert np.isfinite(jax.grad(lambda x: normalize(x).sum())(jnp.zeros((1, 2)))).all()


def test_a_guide_of_nan_is_not_switched_off():
  student, guide = embeddings()
  spoilt = (guide[0].at[1].set(jnp.nan), *guide[1:])
  with pytest.raises(ValueError, match="guide_similarity must not be NaN, .* got 29 of 180 values"):
    guided_info_nce(*student, *spoilt, positives=True)
  values, _ = guided(*student, *spoilt)
  assert np.isnan(values).all()  # each row has its query for a candidate
  where = jnp.arange(6) != 1
  values, weights = guided(*student, *spoilt, where=where)
  assert np.isfinite(values).all() and weights.tolist() == where.astype(float).tolist()
  with pytest.raises(ValueError, match="guide_positive must not be NaN"):
    false_negative_mask(jnp.array([[0.1, 0.9]]), jnp.array([jnp.nan]))


def test_a_traced_temperature_out_of_range_is_nan():
  student, _ = embeddings()
  mean = jax.jit(lambda t: Mean.of(*multiple_negatives_ranking(*student, temperature=t)).value)
  assert np.isfinite(mean(0.1)) and np.isnan(mean(-0.1)) and np.isnan(mean(jnp.nan))


def test_errors_name_the_argument():
  student, guide = embeddings()
  with pytest.raises(ValueError, match="strategy must be .*'relativ'.*nearest: relative"):
    guided_info_nce(*student, *guide, strategy="relativ")
  with pytest.raises(ValueError, match="guide_negative must be given with negative"):
    guided_info_nce(*student, *guide[:2], None)
  for temperature in (0, jnp.float32(-1), float("inf")):
    with pytest.raises(ValueError, match="temperature must be > 0 and finite; got"):
      multiple_negatives_ranking(*student, temperature=temperature)
  with pytest.raises(ValueError, match="margin must be finite; got nan"):
    guided_info_nce(*student, *guide, margin=float("nan"))
