"""The language-loss kernel: alignment, weights and the four reductions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.losses import Mean, aggregate_tokens, sequence_log_probs, token_log_probs, weighted_nll


def batch(seed=0, rows=3, time=6, vocab=7):
  rng = np.random.default_rng(seed)
  logits = jnp.asarray(rng.normal(size=(rows, time, vocab)) * 3, jnp.float32)
  mask = jnp.asarray(np.arange(time) < np.array([[6], [4], [2]]))
  return logits, jnp.asarray(rng.integers(0, vocab, (rows, time))), mask


def test_logits_before_score_the_token():
  logits, tokens, _ = batch()
  got = token_log_probs(logits, tokens)
  likelihoods = np.exp(np.asarray(logits, np.float64))
  log_probs = np.log(likelihoods / likelihoods.sum(-1, keepdims=True))
  for b in range(3):
    for t in range(1, 6):
      np.testing.assert_allclose(got[b, t], log_probs[b, t - 1, tokens[b, t]], rtol=1e-5)
  np.testing.assert_array_equal(got[:, 0], 0)


def test_a_uniform_model_pays_log_vocab_for_each_token_but_the_first():
  tokens = jnp.zeros((2, 5), jnp.int32)
  values, weights = weighted_nll(jnp.zeros((2, 5, 11)), tokens, jnp.ones((2, 5), bool))
  mean = Mean.of(values, where=weights)
  np.testing.assert_allclose(mean.value, np.log(11), rtol=1e-6)
  assert mean.weight == 8


def test_sequence_log_probs_sums_or_averages_what_the_mask_names():
  logits, tokens, mask = batch()
  values = np.asarray(token_log_probs(logits, tokens))
  expected = np.array([values[0, 1:].sum(), values[1, 1:4].sum(), values[2, 1:2].sum()])
  np.testing.assert_allclose(sequence_log_probs(logits, tokens, mask), expected, rtol=1e-6)
  # The first token stands in the mask but has no prediction: it is not counted.
  np.testing.assert_allclose(
      sequence_log_probs(logits, tokens, mask, normalize="tokens"), expected / [5, 3, 1], rtol=1e-6)


def test_label_smoothing_is_cross_entropy_against_smoothed_targets():
  logits, tokens, mask = batch()
  values, _ = weighted_nll(logits, tokens, mask, label_smoothing=0.2)
  targets = optax.smooth_labels(jax.nn.one_hot(tokens[:, 1:], 7), 0.2)
  expected = optax.softmax_cross_entropy(logits[:, :-1], targets)
  np.testing.assert_allclose(values[:, 1:], jnp.where(mask[:, 1:], expected, 0), rtol=1e-5)


def test_z_loss_adds_the_squared_log_normalizer():
  logits, tokens, mask = batch()
  plain, with_z = (weighted_nll(logits, tokens, mask, z_loss=z)[0] for z in (0.0, 0.1))
  expected = 0.1 * jax.nn.logsumexp(logits[:, :-1], axis=-1) ** 2
  np.testing.assert_allclose((with_z - plain)[:, 1:], jnp.where(mask[:, 1:], expected, 0), rtol=1e-3, atol=1e-6)


def test_fractional_weights_scale_tokens():
  logits, tokens, mask = batch()
  weights = mask * jnp.linspace(0, 2, 6)
  mean = Mean.of(*weighted_nll(logits, tokens, weights))
  values = -np.asarray(token_log_probs(logits, tokens))
  np.testing.assert_allclose(mean.value, (values * weights)[:, 1:].sum() / weights[:, 1:].sum(), rtol=1e-5)


def test_four_reductions():
  values = jnp.array([[1.0, 2.0, 3.0, 0.0], [5.0, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]])
  mask = jnp.array([[True, True, True, False], [True, False, False, False], [False] * 4])
  reduce = lambda mode, **kw: float(aggregate_tokens(values, mask, mode=mode, **kw).value)
  assert reduce("token-mean") == (1 + 2 + 3 + 5) / 4
  assert reduce("seq-mean-token-mean") == (2 + 5) / 2
  assert reduce("seq-mean-token-sum") == (6 + 5) / 2
  assert reduce("seq-mean-token-sum-norm") == (6 + 5) / 4 / 2
  assert reduce("seq-mean-token-sum-norm", max_length=10) == pytest.approx((6 + 5) / 10 / 2)


@pytest.mark.parametrize(
    "mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"])
def test_micro_batches_of_unequal_size_add_up(mode):
  logits, tokens, mask = batch()
  values, weights = weighted_nll(logits, tokens, mask)
  whole = aggregate_tokens(values, weights, mode=mode)
  parts = aggregate_tokens(values[:1], weights[:1], mode=mode) + aggregate_tokens(values[1:], weights[1:], mode=mode)
  np.testing.assert_allclose(parts.value, whole.value, rtol=1e-6)
  dirty = jnp.where(weights > 0, values, jnp.nan)
  gradient = jax.grad(lambda v: aggregate_tokens(v, weights, mode=mode).value)(dirty)
  assert jnp.isfinite(gradient).all() and (gradient != 0).sum() == (weights > 0).sum()


def test_log_softmax_is_float32_for_bfloat16_logits():
  logits, tokens, _ = batch(vocab=300)
  low = logits.astype(jnp.bfloat16)
  got = token_log_probs(low, tokens)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, token_log_probs(low.astype(jnp.float32), tokens), rtol=1e-6)


def test_errors_name_the_argument():
  logits, tokens, mask = batch()
  with pytest.raises(ValueError, match="normalize must be None or 'tokens'; got 'token'"):
    sequence_log_probs(logits, tokens, mask, normalize="token")
  with pytest.raises(ValueError, match="mode must be one of .*nearest: token-mean"):
    aggregate_tokens(logits[..., 0], mask, mode="token_mean")
  with pytest.raises(ValueError, match="max_length belongs to mode"):
    aggregate_tokens(logits[..., 0], mask, max_length=3)
  with pytest.raises(ValueError, match="label_smoothing must lie in"):
    weighted_nll(logits, tokens, mask, label_smoothing=1.0)
  with pytest.raises(ValueError, match="z_loss must be >= 0"):
    weighted_nll(logits, tokens, mask, z_loss=-1.0)
