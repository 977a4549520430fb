"""Divergences of distributions over a vocabulary: limits, identities, and which side has a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import losses
from jaxft.losses import Mean

RNG = np.random.default_rng(0)
P, Q, R = RNG.normal(size=(3, 2, 4, 7)).astype(np.float32)
LABELS = RNG.integers(0, 7, (2, 4), np.int32)
values = lambda loss: np.asarray(loss[0])


def exact(p, q):
  p, q = (np.exp(x - x.max(-1, keepdims=True)) for x in (np.float64(p), np.float64(q)))
  p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
  return (p * np.log(p / q)).sum(-1)


def test_both_ways():
  np.testing.assert_allclose(values(losses.kl_divergence(P, Q, temperature=2.0)), exact(P / 2, Q / 2), rtol=1e-4)
  np.testing.assert_allclose(values(losses.symmetric_kl(P, Q)), exact(P, Q) + exact(Q, P), rtol=1e-4)
  assert np.abs(values(losses.kl_divergence(P, P))).max() < 1e-6
  slopes = jax.grad(lambda p, q: losses.kl_divergence(p, q)[0].sum(), argnums=(0, 1))(P, Q)
  assert not slopes[0].any() and slopes[1].any()
  np.testing.assert_allclose(slopes[1], jax.nn.softmax(Q) - jax.nn.softmax(P), atol=1e-6)
  # With constants as targets the gradient is that of two cross-entropies.
  stopped = jax.grad(lambda p: losses.symmetric_kl(p, Q, stop_targets=True)[0].sum())(P)
  np.testing.assert_allclose(stopped, jax.nn.softmax(P) - jax.nn.softmax(Q), atol=1e-6)


def test_generalized_jsd_at_both_ends_between_and_in_pieces():
  np.testing.assert_allclose(values(losses.generalized_jsd(P, Q, beta=0.0)), exact(Q, P), rtol=1e-4)
  np.testing.assert_allclose(values(losses.generalized_jsd(P, Q, beta=1.0)), exact(P, Q), rtol=1e-4)
  half = losses.generalized_jsd(P, Q)
  np.testing.assert_allclose(values(half), values(losses.generalized_jsd(Q, P)), rtol=1e-4)
  assert (values(half) < np.log(2)).all()
  # Near an end it is as small as that end's weight, times the other divergence.
  near = values(losses.generalized_jsd(P, Q, beta=1e-3)) / 1e-3
  np.testing.assert_allclose(near, exact(Q, P), rtol=2e-2, atol=1e-3)
  hidden, teacher_hidden, head = P[..., :5], Q[..., :3], RNG.normal(size=(5, 7)).astype(np.float32)
  heads = head, head[:3]
  whole = lambda h, w: losses.generalized_jsd(h @ w, teacher_hidden @ heads[1], beta=0.3)[0].sum()
  pieces = lambda h, w: losses.linear_generalized_jsd(
      h, w, teacher_hidden, heads[1].T, beta=0.3, chunk=3, teacher_transposed=True)[0].sum()
  for x, y in zip(*(jax.tree.leaves(jax.value_and_grad(f, argnums=(0, 1))(hidden, head)) for f in (whole, pieces)),
                  strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
  text = str(jax.make_jaxpr(jax.grad(pieces, argnums=(0, 1)))(hidden, head))
  assert "2,2,7" in text and "2,4,7" not in text


def test_distillation_is_its_two_terms():
  teacher = losses.distill_logits(P, Q, alpha=1.0, temperature=3.0)
  np.testing.assert_allclose(values(teacher), 9 * exact(Q / 3, P / 3), rtol=1e-4)
  likelihood = losses.distill_logits(P, Q, LABELS, alpha=0.0)
  log_p = np.asarray(jax.nn.log_softmax(P))
  np.testing.assert_allclose(values(likelihood), -np.take_along_axis(log_p, LABELS[..., None], -1)[..., 0], rtol=1e-5)
  # The likeliest class alone is a label.
  first = losses.distill_logits(P, Q, alpha=1.0, temperature=1.0, top_k=1)
  np.testing.assert_allclose(values(first), values(losses.distill_logits(P, Q, Q.argmax(-1), alpha=0.0)), rtol=1e-5)
  every = losses.distill_logits(P, Q, alpha=1.0, top_k=7)
  np.testing.assert_allclose(values(every), values(losses.distill_logits(P, Q, alpha=1.0)), rtol=1e-6)


def test_noise():
  alone = losses.noise_consistency(P, P, P, LABELS, alpha=0.3)
  np.testing.assert_allclose(values(alone), 0.3 * values(losses.distill_logits(P, P, LABELS, alpha=0.0)), rtol=1e-5)
  parts = losses.noise_consistency(P, Q, R, LABELS, alpha=0.0, consistency_weight=0.2, temperature=2.0)
  soft = 0.5 * (exact(P / 2, Q / 2) + exact(P / 2, R / 2))
  np.testing.assert_allclose(values(parts), 4 * (soft + 0.2 * exact(R / 2, Q / 2)), rtol=1e-4)
  slope = jax.grad(lambda p, q, r, c: losses.noise_consistency(
      p, q, r, LABELS, alpha=0.0, consistency_weight=c)[0].sum(), argnums=(0, 2))
  assert not slope(P, Q, R, 1.0)[0].any()  # the clean pass is a teacher alone
  np.testing.assert_array_equal(slope(P, Q, R, 1.0)[1], slope(P, Q, R, 0.0)[1])  # and so is the second noisy one


def test_paraphrases():
  wordings = np.stack([Q, R], axis=1)
  got = losses.paraphrase_consistency(P, wordings)
  np.testing.assert_allclose(values(got), (exact(P, Q) + exact(P, R)) / 2, rtol=1e-4)
  slopes = jax.grad(lambda p, w: losses.paraphrase_consistency(p, w)[0].sum(), argnums=(0, 1))(P, wordings)
  assert not slopes[0].any() and slopes[1].any()
  same = jax.grad(lambda w: losses.paraphrase_consistency(P, w)[0].sum())(np.stack([P, P], axis=1))
  assert np.abs(same).max() < 1e-6


def test_what_has_no_probability():
  """Logits of -inf, as constrained models have them: finite values and gradients where both agree."""
  banned = np.where(np.arange(7) == 3, -np.inf, 0).astype(np.float32)
  for loss in (losses.kl_divergence, losses.symmetric_kl, losses.generalized_jsd):
    value, slopes = jax.value_and_grad(lambda p, q, f=loss: f(p, q)[0].sum(), argnums=(0, 1))(P + banned, Q + banned)
    assert np.isfinite(value) and all(np.isfinite(x).all() for x in slopes), loss.__name__
  half = losses.generalized_jsd(P + banned, Q)  # the mixture has it
  assert np.isfinite(values(half)).all()


def test_labels_are_the_tokens_that_follow():
  tokens, where = np.array([[4, 5, 6, 3]]), np.array([[0, 1, 1, 0]])
  logits = P[:1]
  labels, weights = losses.next_tokens(tokens, where)
  one = Mean.of(*losses.distill_logits(logits, logits, labels, alpha=0.0, where=weights))
  other = Mean.of(*losses.weighted_nll(logits, tokens, where))
  assert one.value == pytest.approx(float(other.value), rel=1e-6) and one.weight == other.weight == 2
  _, packed = losses.next_tokens(tokens, segment_ids=np.array([[1, 1, 2, 2]]))
  assert packed.tolist() == [[1, 0, 1, 0]]


def test_errors_name_the_argument():
  with pytest.raises(ValueError, match="beta must lie in"):
    losses.generalized_jsd(P, Q, beta=1.5)
  with pytest.raises(ValueError, match="top_k must lie in .*vocab = 7.*; got 8"):
    losses.distill_logits(P, Q, alpha=1.0, top_k=8)
  with pytest.raises(ValueError, match="labels must be given with alpha below 1"):
    losses.distill_logits(P, Q)
  outside = losses.noise_consistency(P, P, P, LABELS + 7, where=jnp.arange(4) < np.array([[2], [0]]))
  assert np.isnan(values(outside)).tolist() == [[True, True, False, False], [False] * 4]
