"""Losses of lists: closed forms and limits."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import losses
from jaxft.losses import Mean

rng = np.random.default_rng(0)


def test_list_mle_is_the_probability_of_an_order():
  scores = rng.normal(size=(1, 4)).astype(np.float32)
  run = jax.jit(losses.list_mle)
  total = 0.0
  for order in itertools.permutations(range(4)):
    labels = np.empty((1, 4), np.float32)
    labels[0, list(order)] = [4, 3, 2, 1]
    total += np.exp(-run(scores, labels)[0][0])
  assert total == pytest.approx(1, rel=1e-5)
  # Of two candidates the front alone counts: the weights are 1 and 0.
  two = scores[:, :2], np.array([[1.0, 0.0]], np.float32)
  assert losses.list_mle(*two, position_aware=True)[0][0] == pytest.approx(float(losses.list_mle(*two)[0][0]), rel=1e-6)
  long = rng.normal(size=(1, 200)).astype(np.float32)  # where 2^n has no float32
  assert np.isfinite(losses.list_mle(long, long, position_aware=True)[0]).all()


def test_a_list_without_pairs_weighs_nothing_and_equal_scores_cost_a_bit():
  labels = np.array([[1.0, 1.0, 1.0], [2.0, 1.0, 0.0]], np.float32)
  values, weights = losses.rank_net(jnp.zeros((2, 3)), labels)
  np.testing.assert_allclose(values, [0, np.log(2)], rtol=1e-6)
  assert weights.tolist() == [0, 3]
  values, weights = losses.rank_net(jnp.zeros((2, 3)), labels, k=1)  # only pairs with the first
  assert weights.tolist() == [0, 2]
  assert losses.list_net(labels, labels)[0][0] == pytest.approx(np.log(3), rel=1e-6)


def test_lambda_loss_weighs_the_order_at_the_front():
  """To exchange first and second costs more than to exchange the last two."""
  labels = np.array([[3.0, 2.0, 1.0, 0.0]], np.float32)
  cost = jax.jit(lambda s: losses.lambda_loss(s, labels, scheme="lambda_rank", sigma=4.0)[0][0])
  right, front, back = (cost(np.array([s], np.float32)) for s in ([4, 3, 2, 1], [3, 4, 2, 1], [4, 3, 1, 2]))
  assert right < back < front


def test_smooth_ranks_become_ranks():
  labels = np.array([[3.0, 1.0, 1.0]], np.float32)
  assert losses.rank_mse(100 * labels, labels, alpha=10.0)[0][0] == pytest.approx(0, abs=1e-6)
  worst = losses.rank_mse(-100 * labels, labels, alpha=10.0)[0][0]  # ranks 3, 1.5, 1.5 in place of 1, 2.5, 2.5
  assert worst == pytest.approx((4 + 2 / np.log2(3.5)) / 3, rel=1e-5)


def test_distillation_of_ones_own_scores_is_0_and_a_teacher_learns_nothing():
  s, t = rng.normal(size=(2, 3, 4)).astype(np.float32)
  own, gradient = jax.value_and_grad(lambda x: Mean.of(*losses.distill_scores(x, s)).value)(s)
  assert own == pytest.approx(0, abs=1e-7) and np.abs(gradient).max() < 1e-7
  for loss in (losses.distill_scores, losses.margin_mse):
    assert not jax.grad(lambda x, loss=loss: Mean.of(*loss(s, x)).value)(t).any()
  scaled = losses.distill_scores(s, t, temperature=2.0, scale=False)[0]
  np.testing.assert_allclose(losses.distill_scores(s, t, temperature=2.0)[0], 4 * scaled, rtol=1e-6)
  assert losses.margin_mse(s + 7, s)[0] == pytest.approx(0, abs=1e-6)  # only the lead counts
  assert np.isnan(jax.jit(lambda x: losses.distill_scores(s, t, temperature=x)[0])(-1.0)).all()
  with pytest.raises(ValueError, match="got one candidate"):
    losses.margin_mse(s[:, :1], s[:, :1])


def test_pointwise():
  values, _ = losses.cross_entropy(jnp.zeros((3, 4)), np.array([0, 4, -1]))
  assert np.isnan(values).tolist() == [False, True, True]
  hard, _ = losses.cross_entropy(jnp.asarray(rng.normal(size=(3, 4))), np.array([0, 1, 2]))
  assert hard.shape == (3,)
  logits = jnp.array([[0.0, -jnp.inf]])
  np.testing.assert_allclose(losses.soft_cross_entropy(logits, jnp.array([[1.0, 0.0]]))[0], [0], atol=1e-7)


@pytest.mark.parametrize("call, match", [
    (lambda x: losses.lambda_loss(x, x, scheme="ndcg3"), "scheme must be one of .*nearest: ndcg"),
    (lambda x: losses.lambda_loss(x, x, k=0), "k must be at least 1"),
    (lambda x: losses.rank_net(x, x, sigma=0.0), "sigma must lie in"),
    (lambda x: losses.rank_mse(x, x, alpha=-1.0), "alpha must lie in"),
    (lambda x: losses.distill_scores(x, x, teacher_temperature=0.0), "teacher_temperature must lie in"),
    (lambda x: losses.cross_entropy(x, np.zeros(2, int), label_smoothing=1.0), "label_smoothing must lie in"),
])
def test_errors_name_the_argument(call, match):
  with pytest.raises(ValueError, match=match):
    call(jnp.zeros((2, 3)))
