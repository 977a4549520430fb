"""Advantages, ratios and policy losses: closed forms, and what stays out of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import losses

NAN = float("nan")
array = lambda *rows: np.array(rows, np.float32)
values = lambda loss: np.asarray(loss[0])


def test_advantages_of_groups():
  two = losses.group_advantages(array([3.0, 1.0], [5.0, 5.0]))
  np.testing.assert_allclose(two, [[np.sqrt(0.5), -np.sqrt(0.5)], [0, 0]], rtol=1e-4)
  rewards = array([1.0, 2.0, 6.0, NAN], [NAN, NAN, 4.0, NAN], [0.0, 0.0, 0.0, 8.0])
  known = ~np.isnan(rewards)
  for scale, std in (("none", 1.0), ("batch", np.nanstd(rewards, ddof=1) + 1e-4),
                     ("group", np.array([[np.std([1, 2, 6], ddof=1)], [1], [4]]) + 1e-4)):
    want = np.where(known, rewards - np.nanmean(rewards, axis=1, keepdims=True), 0) / std
    np.testing.assert_allclose(losses.group_advantages(rewards, scale=scale), want, rtol=1e-5, err_msg=scale)
  left_out = losses.group_advantages(np.where(known, rewards, 99), where=known)
  np.testing.assert_allclose(left_out, losses.group_advantages(rewards), rtol=1e-6)
  np.testing.assert_array_equal(losses.group_advantages(rewards[:, 3:], eps=0.0), 0)  # groups of one, or of none
  assert losses.informative_groups(rewards).tolist() == [True, False, True]
  assert not jax.grad(lambda r: losses.group_advantages(r).sum())(rewards[:1, :3]).any()


def test_equal_rewards_have_no_advantage_to_the_last_bit():
  """A mean of equal numbers may differ from them: Adam would make a whole step of it."""
  for value, samples in ((0.7, 8), (0.1, 3), (1e6 + 0.1, 7)):
    rewards = np.array([[value] * samples, [NAN, *[value] * (samples - 1)]], np.float32)
    for scale in ("group", "batch", "none"):
      assert not losses.group_advantages(rewards, scale=scale, eps=0.0).any(), (value, scale)
    assert not losses.leave_one_out_advantages(rewards).any()
  apart = losses.group_advantages(array([1e6, 1e6 + 1, 1e6 + 3]), scale="none")
  np.testing.assert_allclose(apart, [[-4 / 3, -1 / 3, 5 / 3]], rtol=1e-6)


def test_leave_one_out():
  np.testing.assert_array_equal(losses.leave_one_out_advantages(array([5.0, 2.0])), [[3, -3]])
  rewards = array([1.0, 2.0, 6.0, NAN], [NAN, 7.0, NAN, NAN])
  np.testing.assert_array_equal(losses.leave_one_out_advantages(rewards), [[-3, -1.5, 4.5, 0], [0, 0, 0, 0]])


def test_gae_at_both_ends_and_across_gaps():
  rng = np.random.default_rng(0)
  rewards, critic = rng.normal(size=(2, 2, 6)).astype(np.float32)
  full = np.ones((2, 6), bool)
  advantages, returns = losses.gae(rewards, critic, full, gamma=0.9, lam=1.0)
  discounted = np.array([[sum(0.9 ** (k - t) * row[k] for k in range(t, 6)) for t in range(6)] for row in rewards])
  np.testing.assert_allclose(advantages, discounted - critic, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(returns, discounted, rtol=1e-4, atol=1e-5)
  advantages, _ = losses.gae(rewards, critic, full, gamma=0.9, lam=0.0)
  np.testing.assert_allclose(advantages, rewards + 0.9 * np.pad(critic, ((0, 0), (0, 1)))[:, 1:] - critic, rtol=1e-5)
  # Masked tokens, in the middle and at the end, are as if they were not there.
  where = np.array([[1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 1]])
  dirty = [np.where(where, x, np.nan).astype(np.float32) for x in (rewards, critic)]
  got = losses.gae(*dirty, where, gamma=0.9, lam=0.8)
  for row in range(2):
    kept = where[row] != 0
    want = losses.gae(*(x[row, kept][None] for x in (rewards, critic)), np.ones((1, kept.sum())), gamma=0.9, lam=0.8)
    for x, y in zip(got, want, strict=True):
      np.testing.assert_allclose(x[row, kept], y[0], rtol=1e-5)
      assert not x[row, ~kept].any()


def test_the_score_stands_at_the_last_token():
  log_ratios, where = array([1.0, 2.0, 3.0], [1.0, 2.0, NAN], [NAN] * 3), np.array([[1, 0, 1], [1, 1, 0], [0, 0, 0]])
  got = losses.shaped_rewards(log_ratios, array(*[10.0, -10.0, 1.0]), where, kl_coef=0.5, clip=5.0)
  np.testing.assert_array_equal(got, [[-0.5, 0, 3.5], [-0.5, -6, 0], [0, 0, 0]])
  # Without a penalty and with lambda 1 every token's advantage is the score less its value.
  rewards = losses.shaped_rewards(log_ratios, array(*[10.0, -10.0, 1.0]), where, kl_coef=0.0)
  advantages, _ = losses.gae(rewards, np.full((3, 3), 2.0, np.float32), where, lam=1.0)
  np.testing.assert_array_equal(advantages, [[8, 0, 8], [-12, -12, 0], [0, 0, 0]])


def test_estimates_of_a_divergence():
  """Under the policy itself k1 and k3 have the expectation KL, whatever the tokens; far apart they stay finite."""
  p, q = (np.exp(x) / np.exp(x).sum() for x in np.random.default_rng(0).normal(size=(2, 5)))
  log_p, log_q = (np.log(x)[None].astype(np.float32) for x in (p, q))
  kl = float(np.sum(p * np.log(p / q)))
  for kind in ("k1", "k3"):
    assert float((values(losses.kl_estimate(log_p, log_q, kind=kind)) * p).sum()) == pytest.approx(kl, rel=1e-5)
  k2 = losses.kl_estimate(log_p, log_q, kind="k2")[0]
  np.testing.assert_allclose(k2, 0.5 * (log_q - log_p) ** 2, rtol=1e-6)
  far = lambda x: losses.kl_estimate(x, x[:, ::-1] * 0)[0].sum()
  value, slope = jax.value_and_grad(far)(array([-500.0, -1.0]))
  assert np.isfinite(value) and np.isfinite(slope).all()
  ratio = losses.importance_ratio(array([-500.0, 300.0]), array([0.0, 0.0]))
  np.testing.assert_allclose(ratio, [[np.exp(-20), np.exp(20)]], rtol=1e-5)


def test_ratios_of_sequences_do_not_see_padding():
  log_probs, old = array([-1.0, -2.0, -3.0, NAN]), array([-1.5, -1.0, -3.0, NAN])
  where = np.array([[1, 1, 0, 0]])
  both = np.array([-0.25, -0.5])  # the mean and the sum of 0.5 and -1
  for level, want in (("sequence", both[0]), ("sequence-sum", both[1])):
    ratio = losses.importance_ratio(log_probs, old, level=level, where=where)
    np.testing.assert_allclose(ratio, np.exp(want), rtol=1e-6)


def test_where_the_clip_stops_the_gradient():
  ratios = array([0.5, 0.9, 1.1, 1.5, 5.0])
  slope = lambda a, **options: np.asarray(jax.grad(lambda x: losses.clipped_policy_loss(
      x, np.zeros((1, 5), np.float32), array(a), low=0.2, high=0.3, **options)[0].sum())(np.log(ratios)))[0]
  np.testing.assert_allclose(slope(1.0), [-0.5, -0.9, -1.1, 0, 0], rtol=1e-5)
  np.testing.assert_allclose(slope(-1.0), [0, 0.9, 1.1, 1.5, 5], rtol=1e-5)
  np.testing.assert_allclose(slope(-1.0, delta=2.0), [0, 0.9, 1.1, 1.5, 0], rtol=1e-5)
  np.testing.assert_allclose(slope(-1.0, dual=3.0), [0, 0.9, 1.1, 1.5, 0], rtol=1e-5)
  # On the policy's own samples it is the plain policy gradient, and so are the others.
  log_probs, a = array([-1.0, -2.0]), array(0.7)
  for loss in (losses.clipped_policy_loss, losses.cispo, losses.sapo, losses.vespo):
    np.testing.assert_allclose(jax.grad(lambda x, f=loss: f(x, None, a)[0].sum())(log_probs), [[-0.7, -0.7]], rtol=1e-6)


def test_the_critic_is_held_near_its_old_values():
  slope = jax.grad(lambda v: losses.clipped_value_loss(v, v * 0, array([1.0, 1.0, -1.0]), clip=0.2)[0].sum())
  # Moved towards the return beyond the clip: no gradient. Moved away from it: the plain one.
  np.testing.assert_allclose(slope(array([0.1, 0.5, 0.5])), [[-0.9, 0, 1.5]], rtol=1e-6)


def test_which_tokens_learn():
  entropies = array([0.1, 0.9, 0.5, NAN], [0.3, 0.7, NAN, NAN])
  where = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])
  got = losses.top_entropy_mask(entropies, where, fraction=0.4)
  cut = np.quantile([0.1, 0.9, 0.5, 0.3, 0.7], 0.6)
  np.testing.assert_array_equal(got, (np.nan_to_num(entropies) >= cut) & (where != 0))
  np.testing.assert_array_equal(losses.top_entropy_mask(entropies, where, fraction=1.0), where)
  tokens = np.array([[5, 2, 2, 2], [2, 6, 7, 2], [5, 3, 9, 9]])
  kept = losses.drop_truncated(tokens, np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]), np.array([2, 3]))
  np.testing.assert_array_equal(kept, [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
  np.testing.assert_allclose(
      losses.overlong_penalty(np.array([1, 6, 7, 10, 11]), max_length=10, buffer=4), [0, 0, -0.25, -1, -1])


def test_whitened_with_the_unbiased_variance():
  x, where = array([1.0, 2.0, NAN], [4.0, NAN, 9.0]), np.array([[True, True, False], [True, False, True]])
  got = losses.whiten(x, where=where, ddof=1)
  kept = x[where]
  np.testing.assert_allclose(np.asarray(got)[where], (kept - kept.mean()) / kept.std(ddof=1), rtol=1e-5)
  assert not np.asarray(got)[~where].any() and not np.asarray(losses.whiten(array(*[3.0]), ddof=1)).any()


def test_sequences_without_a_token_may_count():
  tokens, weights = array([2.0, 4.0], [9.0, 9.0]), np.array([[1, 1], [0, 0]])
  for mode, want in (("seq-mean-token-mean", 3), ("seq-mean-token-sum", 6), ("seq-mean-token-sum-norm", 3)):
    assert losses.aggregate_tokens(tokens, weights, mode=mode).value == want
    assert losses.aggregate_tokens(tokens, weights, mode=mode, count_empty=True).value == want / 2


def test_errors_name_the_argument():
  x = jnp.zeros((2, 3))
  with pytest.raises(ValueError, match=r"advantages must be .*\[batch, time\] = \[2, 3\]; got \[2, 1\]"):
    losses.clipped_policy_loss(x, x, jnp.zeros((2, 1)))
  with pytest.raises(ValueError, match="delta must be above 1 \\+ high = 1.2; got 1.1"):
    losses.clipped_policy_loss(x, x, jnp.zeros(2), delta=1.1)
  with pytest.raises(ValueError, match="level must be one of .*nearest: sequence"):
    losses.importance_ratio(x, x, level="sequences")
  with pytest.raises(ValueError, match="buffer must lie in"):
    losses.overlong_penalty(jnp.zeros(2), max_length=3, buffer=4)
  with pytest.raises(ValueError, match="count_empty must be False with mode 'token-mean'"):
    losses.aggregate_tokens(x, x, count_empty=True)
  with pytest.raises(ValueError, match="ddof must be 0 or 1; got 2"):
    losses.whiten(x, ddof=2)
