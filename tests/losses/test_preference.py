"""Losses of preferences: closed forms, limits and identities between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import losses
from jaxft.losses import Mean

RNG = np.random.default_rng(0)
CHOSEN, REJECTED, REFERENCE = (-np.abs(RNG.normal(size=(3, 6))) - 0.1).astype(np.float32)
LENGTHS = np.array([1, 2, 3, 4, 5, 6])
values = lambda loss: np.asarray(loss[0])


def test_a_policy_that_is_its_reference():
  same = (CHOSEN, REJECTED, CHOSEN, REJECTED)
  want = {"logistic": np.log(2), "hinge": 1, "square": 1 / (4 * 0.1**2), "robust": np.log(2), "sppo": 1 / (2 * 0.1**2),
          "bco": 2 * np.log(2), "nca": 2 * np.log(2), "apo_zero": 1, "apo_down": 1, "discopop": 0.5 * np.log(2) + 0.5}
  for kind, value in want.items():
    np.testing.assert_allclose(values(losses.dpo(*same, kind=kind)), value, rtol=1e-5, err_msg=kind)
  np.testing.assert_allclose(values(losses.ipo(*same, LENGTHS, LENGTHS)), 25, rtol=1e-6)
  np.testing.assert_allclose(values(losses.aot(*same)), np.log(2), rtol=1e-6)
  np.testing.assert_allclose(values(losses.kto(CHOSEN * 0, CHOSEN > -1)), 0.5)
  # KL of (q, 1 - q) from (1 - e, e) vanishes where q = 1 - e.
  lead = np.full(6, np.log(0.8 / 0.2), np.float32)
  exact = losses.bradley_terry(lead, lead * 0, label_smoothing=0.2, kind="exo")
  np.testing.assert_allclose(values(exact), 0, atol=1e-7)


def test_label_smoothing_and_its_unbiased_form():
  """Of labels of which a share e is turned around, the expectation of "robust" is the loss without noise."""
  clean, turned = values(losses.cpo(CHOSEN, REJECTED)), values(losses.cpo(REJECTED, CHOSEN))
  np.testing.assert_allclose(
      values(losses.cpo(CHOSEN, REJECTED, label_smoothing=0.3)), 0.7 * clean + 0.3 * turned, rtol=1e-6)
  robust = [values(losses.cpo(*pair, kind="robust", label_smoothing=0.3))
            for pair in ((CHOSEN, REJECTED), (REJECTED, CHOSEN))]
  np.testing.assert_allclose(0.7 * robust[0] + 0.3 * robust[1], clean, rtol=1e-5)


def test_optimal_transport_matches_quantiles_and_not_rows():
  chosen, rejected, zero = np.array([5.0, 1.0, 3.0, 9.0]), np.array([0.0, 4.0, 2.0, 7.0]), np.zeros(4)
  chosen, rejected, zero = (x.astype(np.float32) for x in (chosen, rejected, zero))
  want = np.log1p(np.exp(-np.array([5 - 4.0, 1 - 0.0, 3 - 2.0, 9 - 7.0])))
  np.testing.assert_allclose(values(losses.aot(chosen, rejected, zero, zero, beta=1.0, paired=False)), want, rtol=1e-6)
  turned = rejected[::-1]
  np.testing.assert_allclose(values(losses.aot(chosen, turned, zero, zero, beta=1.0, paired=False)), want, rtol=1e-6)
  dirty, where = np.array([5.0, 1.0, np.nan, 9.0], np.float32), np.array([True, True, False, True])
  got, weights = losses.aot(dirty, rejected, zero, zero, beta=1.0, paired=False, where=where)
  np.testing.assert_allclose(got, np.log1p(np.exp(-np.array([5 - 4.0, 1 - 0.0, np.inf, 9 - 7.0]))), rtol=1e-6)
  assert weights.tolist() == [1, 1, 0, 1]
  tied = np.ones(4, np.float32)
  np.testing.assert_allclose(values(losses.aot(tied, tied, zero, zero)), np.log(2), rtol=1e-6)


def test_divergences_meet_where_the_ratio_is_one():
  h = np.array([-200.0, -1.0, 0.0, 1.0, 200.0], np.float32)
  for options in ({}, {"divergence": "forward_kl"}, {"divergence": "js"}, {"divergence": "alpha", "alpha": 0.3}):
    score, slope = jax.vmap(jax.value_and_grad(lambda x, o=options: losses.divergence_score(x, **o)))(h)
    assert np.isfinite(score).all() and np.isfinite(slope).all() and (np.diff(score) >= 0).all()
    assert score[2] == 0 and slope[2] == pytest.approx(0.5 if options.get("divergence") == "js" else 1)
  near = losses.divergence_score(h[1:4], divergence="alpha", alpha=1 + 1e-3)
  np.testing.assert_allclose(near, h[1:4], rtol=2e-3)
  np.testing.assert_array_equal(losses.divergence_score(h, divergence="alpha", alpha=1.0), h)


def test_odds():
  x = np.array([-50.0, -0.7, -0.69, -1e-3, -1e-6, 0.0, 1e-6], np.float32)
  exact = np.log(-np.expm1(np.minimum(x, -1e-7).astype(np.float64)))
  np.testing.assert_allclose(losses.log1mexp(x), exact, rtol=1e-5, atol=1e-20)
  slope = jax.vmap(jax.grad(losses.log_odds))(x)
  # d log(p / (1 - p)) / d log p = 1 / (1 - p), and none where a model is certain.
  want = np.where(x < -1e-7, -1 / np.expm1(np.minimum(x, -1e-7).astype(np.float64)), 0)
  np.testing.assert_allclose(slope, want, rtol=1e-4)
  assert np.isfinite(values(losses.orpo(x, x[::-1]))).all()


def test_asft_is_likelihood_and_unlikelihood_and_bounds_orpo():
  asft, orpo = (values(loss(CHOSEN, REJECTED)) for loss in (losses.asft, losses.orpo))
  np.testing.assert_allclose(asft, -CHOSEN - np.log1p(-np.exp(REJECTED)), rtol=1e-5)
  w, l = np.exp(CHOSEN), np.exp(REJECTED)
  np.testing.assert_allclose(orpo, asft + np.log(w * (1 - l) + l * (1 - w)), rtol=1e-4)
  assert (orpo <= asft).all()
  half = np.full(1, np.log(0.5), np.float32)
  np.testing.assert_allclose(values(losses.asft(half, half)), 2 * np.log(2), rtol=1e-6)
  slopes = jax.grad(lambda c, r: losses.asft(c, r)[0].sum(), argnums=(0, 1))(half, np.full(1, -30.0, np.float32))
  assert slopes[0] == pytest.approx(-1) and 0 <= slopes[1][0] < 1e-12


def test_poft_weighs_the_gradient_of_likelihood():
  slope = jax.grad(lambda s, r: losses.poft(s, r)[0].sum(), argnums=(0, 1))(CHOSEN, REFERENCE)
  np.testing.assert_allclose(slope[0], -np.exp(REFERENCE) / (np.exp(REFERENCE) + np.exp(CHOSEN)), rtol=1e-5)
  assert not slope[1].any()
  slope = jax.grad(lambda s: losses.poft(s, np.array([60.0, -60.0], np.float32))[0].sum())(jnp.zeros(2))
  np.testing.assert_allclose(slope, [-1, 0], atol=1e-6)


def test_alpha_po_at_zero_is_simpo():
  simpo = values(losses.simpo(CHOSEN, REJECTED))
  small = [losses.alpha_reward(x, alpha=1e-3) for x in (CHOSEN, REJECTED)]
  np.testing.assert_allclose(values(losses.simpo(*small)), simpo, rtol=1e-2)
  far = jax.grad(lambda x: losses.alpha_reward(x, alpha=2.0).sum())(jnp.array([-1e4, -1.0]))
  assert np.isfinite(far).all() and far[1] == pytest.approx(np.exp(2), rel=1e-6)


def test_kto_pulls_by_the_side_that_a_response_is_on():
  h, good = np.array([2.0, 2.0], np.float32), np.array([True, False])
  got = values(losses.kto(h, good, 1.0, beta=1.0, desirable_weight=3.0, undesirable_weight=2.0))
  np.testing.assert_allclose(got, [3 / (1 + np.e), 2 / (1 + np.exp(-1))], rtol=1e-6)
  slope = jax.grad(lambda h, z: losses.kto(h, good, z)[0].sum(), argnums=(0, 1))(h, jnp.array(0.5))
  assert slope[0][0] < 0 < slope[0][1] and slope[1] == 0
  assert values(losses.kto(h[:1], good[:1]))[0] < 0.5  # of one class alone
  mean = losses.mismatched_kl(np.array([1.0, np.nan, 3.0], np.float32), where=np.array([True, False, True]))
  assert mean.value == 2 and mean.weight == 2


def test_length_desensitized_and_near_policy():
  log_probs = np.array([[9.0, -1.0, -2.0, -3.0, -4.0]], np.float32)
  where = np.array([[0, 1, 1, 1, 1]])
  got = [float(losses.length_desensitized(log_probs, where, np.array([n]), alpha=0.5)[0]) for n in (0, 2, 4)]
  assert got == [-5, -6.5, -10]
  own = losses.wpo_weights(log_probs, log_probs, where)
  assert own == 1 and losses.wpo_weights(log_probs, log_probs - 1, where * 0) == 1
  assert not jax.grad(lambda x: losses.wpo_weights(x, x * 0, where).sum())(log_probs).any()


def test_weights_of_pairs_are_shares_and_what_does_not_count_may_be_anything():
  weights = np.array([2.0, 0.0, 1.0, 1.0, 0.0, 0.0], np.float32)
  dirty = np.where(weights > 0, CHOSEN, np.nan)
  mean = lambda chosen, w: Mean.of(*losses.dpo(chosen, REJECTED, REFERENCE, REFERENCE, where=w)).value
  each = values(losses.dpo(CHOSEN, REJECTED, REFERENCE, REFERENCE))
  value, slope = jax.value_and_grad(mean)(dirty, weights)
  assert value == pytest.approx((2 * each[0] + each[2] + each[3]) / 4, rel=1e-6)
  assert np.isfinite(slope).all() and (slope != 0).tolist() == (weights > 0).tolist()


def test_far_scores_stay_finite():
  far = np.array([-1e4, 1e4, 0.0], np.float32)
  for kind in ("logistic", "hinge", "square", "discopop"):
    loss = lambda x, kind=kind: losses.bradley_terry(x, x[::-1], kind=kind)[0].sum()
    value, slope = jax.value_and_grad(loss)(far)
    assert np.isfinite(value) and np.isfinite(slope).all(), kind


def test_errors_name_the_argument():
  with pytest.raises(ValueError, match="kind must be one of .*nearest: logistic"):
    losses.bradley_terry(CHOSEN, REJECTED, kind="logistics")
  for kind, e in (("robust", 0.5), ("exo", 0.0), ("logistic", 1.0)):
    with pytest.raises(ValueError, match="label_smoothing must lie in"):
      losses.bradley_terry(CHOSEN, REJECTED, kind=kind, label_smoothing=e)
  with pytest.raises(ValueError, match="label_smoothing must be 0 with kind 'hinge'; got 0.1"):
    losses.bradley_terry(CHOSEN, REJECTED, kind="hinge", label_smoothing=0.1)
  with pytest.raises(ValueError, match="beta must lie in"):
    losses.pointwise_preference(CHOSEN, REJECTED, beta=0.0)
  four = (CHOSEN, REJECTED, REFERENCE, REFERENCE)
  with pytest.raises(ValueError, match="divergence must be 'reverse_kl' and label_smoothing 0 with kind 'bco'"):
    losses.dpo(*four, kind="bco", divergence="js")
  with pytest.raises(ValueError, match="chosen_tokens and rejected_tokens must be given together"):
    losses.dpo(*four, chosen_tokens=LENGTHS)
  with pytest.raises(ValueError, match="kl must be 0 with kind 'apo_zero'; got 0.5"):
    losses.kto(CHOSEN, CHOSEN > -1, 0.5, kind="apo_zero")
