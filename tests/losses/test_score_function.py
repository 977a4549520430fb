"""The score function: its expectation is the gradient of the expected reward, whatever the baseline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.losses import Mean, leave_one_out, reinforce, retrieval_reward, whiten


def test_the_expectation_over_all_actions_is_the_gradient_of_the_expected_reward():
  logits, reward = jnp.array([0.3, -1.0, 0.8, 0.0, 0.1]), jnp.array([6.0, 8.0, 3.0, 5.5, 5.0])
  probability = jax.nn.softmax(logits)
  want = jax.grad(lambda x: -jax.nn.softmax(x) @ reward)(logits)
  spreads = []
  for baseline in (0.0, float(probability @ reward)):
    each = jax.jacobian(lambda x, b=baseline: reinforce(jax.nn.log_softmax(x), reward - b)[0])(logits)
    np.testing.assert_allclose(probability @ each, want, rtol=1e-4, atol=1e-6)
    spreads.append(float(probability @ jnp.sum((each - want) ** 2, axis=1)))
  assert spreads[1] < spreads[0]
  assert not jax.grad(lambda a: reinforce(jnp.ones(5), a)[0].sum())(reward).any()


def test_a_running_baseline_is_the_mean_of_the_batches_before():
  baseline = Mean.zero()
  assert baseline.value == 0
  for batch in ([1.0, 3.0], [6.0, 6.0]):
    baseline += Mean(jnp.array(batch).mean(), jnp.ones(()))
  assert baseline.value == 4


def test_rewards():
  rng = np.random.default_rng(0)
  text, image = rng.normal(size=(2, 4, 6)).astype(np.float32)
  np.testing.assert_allclose(retrieval_reward(jnp.ones((4, 6)), jnp.ones((4, 6))), -np.log(4), rtol=1e-5)
  np.testing.assert_allclose(retrieval_reward(image, image, kind="accuracy"), 1)
  assert not retrieval_reward(jnp.ones((4, 6)), jnp.ones((4, 6)), kind="accuracy").any()  # a tie is no hit
  target = np.array([2, 0, 9, 1])
  got = retrieval_reward(text, image, target, scale=2.0)
  cosine = np.asarray(retrieval_reward(text, image, target, scale=1.0, kind="similarity"))
  assert np.isnan(got).tolist() == [False, False, True, False] and np.isnan(cosine[2])
  hard = retrieval_reward(text, image, extra=np.stack([image, image], 1), kind="accuracy")
  assert not hard.any()  # its own image twice more
  assert not jax.grad(lambda x: retrieval_reward(x, image).sum())(text).any()
  with pytest.raises(ValueError, match="target must be given where images are not one for each text; got 3 for 4"):
    retrieval_reward(text, image[:3])


def test_baselines():
  rewards = jnp.array([[1.0, 2.0, 6.0]])
  assert jnp.sum(rewards - leave_one_out(rewards)) == 0
  with pytest.raises(ValueError, match="two or more samples; got 1"):
    leave_one_out(rewards[:, :1])
  x = whiten(jnp.array([1.0, 2.0, 9.0, jnp.nan]), where=jnp.array([True, True, True, False]))
  assert x[3] == 0 and x[:3].mean() == pytest.approx(0, abs=1e-6) and x[:3].std() == pytest.approx(1, rel=1e-5)
  assert not whiten(jnp.full(3, 0.1)).round(2).any()
