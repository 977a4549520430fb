"""Mixtures on the sphere and of features: limits, and pairs against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import losses
from jaxft.losses import Mean, slerp

rng = np.random.default_rng(0)
a, b = rng.normal(size=(2, 5, 4)).astype(np.float32)
LABELS = np.array([0, 0, 1, 1, 2])


def test_slerp():
  t = np.array([0.0, 0.2, 0.5, 0.9, 1.0], np.float32)
  mixed = jax.jit(slerp)(a, b, t)
  np.testing.assert_allclose(jnp.linalg.norm(mixed, axis=1), 1, rtol=1e-5)
  angle = lambda x, y: np.arccos(np.clip(np.sum(losses.normalize(x) * losses.normalize(y), axis=1), -1, 1))
  np.testing.assert_allclose(angle(mixed, b), t * angle(a, b), atol=1e-3)
  np.testing.assert_allclose(mixed, slerp(b, a, 1 - t), atol=1e-5)
  for other in (a, -a, a + 1e-6):  # the same, the opposite, all but the same
    out, gradient = jax.value_and_grad(lambda x, o=other: slerp(x, o, 0.3).sum())(jnp.asarray(a))
    assert np.isfinite(out) and np.isfinite(gradient).all()
  np.testing.assert_allclose(slerp(a, 2 * a, 0.3), losses.normalize(a), atol=1e-6)


def test_mixed_negatives_at_the_ends_of_the_arc_are_those_of_one_side():
  run = jax.jit(lambda a, b, t: losses.mixed_negative_contrastive(a, b, t, temperature=0.5)[0])
  both = jax.jit(lambda a, b: (losses.multiple_negatives_ranking(a, b, temperature=0.5)[0],
                               losses.multiple_negatives_ranking(b, a, temperature=0.5)[0]))
  image_to_text, text_to_image = both(a, b)
  own_text = losses.mixed_negative_contrastive(b, b, 0.0, temperature=0.5)[0]
  assert own_text.shape == (5,)
  # At t = 0 the mixture is b: the half of a is its search among b.
  cosine = lambda x, y: np.asarray(losses.cosine_similarity(x, y), np.float64)
  for t, m, searched in ((0.0, b, image_to_text), (1.0, a, text_to_image)):
    halves = []
    for x in (a, b):
      logits = np.where(np.eye(5, dtype=bool), cosine(a, b), cosine(x, m)) / 0.5
      halves.append(np.log(np.exp(logits).sum(1)) - np.diagonal(logits))
    np.testing.assert_allclose(run(a, b, t), (halves[0] + halves[1]) / 2, rtol=1e-5)
    np.testing.assert_allclose(halves[0] if t == 0 else halves[1], searched, rtol=1e-5)
  assert not run(a[:1], b[:1], 0.4).any()


def test_soft_targets():
  clip = losses.clip(a, b)[0]
  partner = np.arange(5)[::-1].copy()
  np.testing.assert_allclose(losses.soft_clip(a, b, losses.mixup_targets(partner, 1.0))[0], clip, rtol=1e-5)
  both = losses.soft_clip(a, b, jnp.eye(5) + jnp.eye(5)[partner])[0]  # as the source has them: they sum to 2
  assert (both > clip).all()
  with pytest.raises(ValueError, match=r"targets must be \[batch, batch\]"):
    losses.soft_clip(a, b, jnp.ones((5, 4)))


def test_hardest_pairs_equal_loops():
  cosine = np.asarray(losses.cosine_similarity(a, a))
  assert (cosine < 0).any()
  got = losses.hardest_pairs(cosine, LABELS, where=np.array([True, True, True, False, True]))
  for i in range(5):
    others = [j for j in range(5) if j != 3 and i != 3]
    same = [j for j in others if j != i and LABELS[j] == LABELS[i]]
    apart = [j for j in others if LABELS[j] != LABELS[i]]
    assert got.positive[i] == (min(same, key=lambda j: cosine[i, j]) if same else i)
    assert got.negative[i] == (max(apart, key=lambda j: cosine[i, j]) if apart else i)
    assert (got.has_positive[i], got.has_negative[i]) == (bool(same), bool(apart))


def test_core_tuning():
  targets = jax.nn.one_hot(LABELS, 3)
  mixed, soft = jax.jit(losses.core_tuning_pairs, static_argnames="negative_floor")(
      jax.random.key(0), a, targets, LABELS, negative_floor=1.0)
  np.testing.assert_allclose(soft.sum(-1), 1, rtol=1e-6)
  assert all(any(np.allclose(x, y) for y in a) for x in mixed[2])  # all of the other row
  same = jnp.ones((5, 4))
  values, weights = losses.core_tuning(same, same, same, LABELS, gamma=1.0)
  np.testing.assert_allclose(values, (1 - 1 / 14) * np.log(14), rtol=1e-5)
  assert weights.tolist() == [1] * 5  # the hard positive is a positive of a class of one too


def test_made_negatives_lie_between_two_that_differ():
  negatives = np.broadcast_to(np.eye(4, dtype=np.float32), (3, 4, 4))
  made = losses.mix_negatives(jax.random.key(0), negatives, count=50)
  np.testing.assert_allclose(jnp.linalg.norm(made, axis=-1), 1, rtol=1e-5)
  assert ((np.asarray(made) > 0).sum(-1) == 2).all()
  where = np.array([[True, True, False, False], [False, True, False, False], [False] * 4])
  few = np.asarray(losses.mix_negatives(jax.random.key(0), negatives, count=5, where=where))
  assert not few[:, :, 2:].any() and (few[0, :, :2] > 0).all() and not few[2].any()
  np.testing.assert_allclose(few[1, :, 1], 1, rtol=1e-6)
  query = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
  blend = lambda t: np.asarray(losses.blend_negatives(query, negatives, temperature=t))[:, 0]
  np.testing.assert_allclose(blend(1e-4), np.eye(4)[np.argmax(query, axis=1)], atol=1e-5)
  np.testing.assert_allclose(blend(1e4), 0.5, rtol=1e-3)


def test_made_negatives_compete_in_their_own_row_alone():
  query, positive = (jnp.asarray(rng.normal(size=(4, 5)), jnp.float32) for _ in range(2))
  negative, made = (jnp.asarray(rng.normal(size=(4, 3, 5)), jnp.float32) for _ in range(2))
  loss = lambda made, **options: losses.mixed_negatives_ranking(
      query, positive, negative, made, temperature=0.3, **options)[0]
  plain, _ = losses.multiple_negatives_ranking(query, positive, negative, temperature=0.3)
  own = jnp.sum(losses.normalize(query)[:, None] * losses.normalize(made), axis=-1) / 0.3
  true = jnp.sum(losses.normalize(query) * losses.normalize(positive), axis=-1) / 0.3
  more = jnp.logaddexp(plain + true, jax.nn.logsumexp(own, axis=1)) - true
  np.testing.assert_allclose(loss(made, gamma=0.0), more, rtol=1e-5)
  np.testing.assert_allclose(loss(made), losses.focal(more, gamma=0.5), rtol=1e-5)


def test_focal_weights_of_what_is_certain():
  similarity, positives = jnp.zeros((1, 4)), jnp.array([[True, True, False, False]])
  focal = lambda gamma: losses.supervised_contrastive(similarity, positives, gamma=gamma)[0][0]
  assert focal(1.0) == pytest.approx(0.75 * np.log(4), rel=1e-5)
  values, _ = losses.info_nce(similarity, jnp.array([0]), temperature=1.0)
  assert losses.focal(values, gamma=2.0)[0] == pytest.approx(0.75**2 * np.log(4), rel=1e-5)
  assert losses.focal(values, gamma=0.0)[0] == values[0]
  # Where a positive is certain, its slope stays finite: that of (1 - p)^gamma alone is not.
  sure = jax.grad(lambda s: losses.supervised_contrastive(s, positives, gamma=0.5, drop=~positives)[0].sum())
  assert np.isfinite(sure(jnp.array([[80.0, 0, 0, 0]]))).all()
  assert np.isfinite(jax.grad(lambda v: losses.focal(v, stop_gradient=False).sum())(jnp.zeros(2))).all()
  with pytest.raises(ValueError, match="gamma must lie in"):
    losses.focal(values, gamma=-1.0)


def test_views():
  views = jnp.stack([jnp.asarray(a), jnp.asarray(b)], axis=1)
  values, _ = losses.view_contrastive(views, np.arange(5), temperature=0.5)
  flat = views.reshape(10, 4)
  loss, _ = losses.info_nce(losses.cosine_similarity(flat, flat), np.arange(10) ^ 1, temperature=0.5,
                            drop=jnp.eye(10, dtype=bool))
  np.testing.assert_allclose(values.reshape(-1), loss, rtol=1e-5)
  assert Mean.of(*losses.view_contrastive(views[:1], np.array([0]))).value == pytest.approx(0, abs=1e-6)
