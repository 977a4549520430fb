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
  got, weights = token_log_probs(logits, tokens)
  likelihoods = np.exp(np.asarray(logits, np.float64))
  log_probs = np.log(likelihoods / likelihoods.sum(-1, keepdims=True))
  for b in range(3):
    for t in range(1, 6):
      np.testing.assert_allclose(got[b, t], log_probs[b, t - 1, tokens[b, t]], rtol=1e-5)
  np.testing.assert_array_equal(got[:, 0], 0)
  np.testing.assert_array_equal(weights, np.arange(6) > 0 + np.zeros((3, 1)))


def test_a_uniform_model_pays_log_vocab_for_each_token_but_the_first():
  tokens = jnp.zeros((2, 5), jnp.int32)
  values, weights = weighted_nll(jnp.zeros((2, 5, 11)), tokens, jnp.ones((2, 5), bool))
  mean = Mean.of(values, where=weights)
  np.testing.assert_allclose(mean.value, np.log(11), rtol=1e-6)
  assert mean.weight == 8


def test_sequence_log_probs_sums_or_averages_what_the_mask_names():
  logits, tokens, mask = batch()
  values = np.asarray(token_log_probs(logits, tokens)[0])
  expected = np.array([values[0, 1:].sum(), values[1, 1:4].sum(), values[2, 1:2].sum()])
  got, weights = sequence_log_probs(logits, tokens, mask)
  np.testing.assert_allclose(got, expected, rtol=1e-6)
  # The first token stands in the mask but has no prediction: it is not counted.
  mean, _ = sequence_log_probs(logits, tokens, mask, normalize="tokens")
  np.testing.assert_allclose(mean, expected / [5, 3, 1], rtol=1e-6)
  assert weights.tolist() == [1, 1, 1]
  _, weights = sequence_log_probs(logits, tokens, mask & (jnp.arange(6) < jnp.array([[6], [1], [0]])))
  assert weights.tolist() == [1, 0, 0]  # a first token alone is no sequence, nor is nothing


def test_a_masked_mean_is_over_the_tokens_that_count():
  """Each token costs 4 nats; the zeros of those that are not scored are no part of the mean."""
  tokens, mask = jnp.zeros((1, 9), jnp.int32), jnp.arange(9)[None] % 3 == 0
  logits = jnp.zeros((1, 9, 2)).at[..., 0].set(-np.log(np.exp(4) - 1))
  nll, log_probs = Mean.of(*weighted_nll(logits, tokens, mask)), Mean.of(*token_log_probs(logits, tokens, mask))
  assert nll.value == pytest.approx(4) and log_probs.value == pytest.approx(-4)
  assert nll.weight == log_probs.weight == 2  # of the three, nothing predicts the first


def test_a_token_outside_the_vocabulary_gives_nan_where_it_counts():
  tokens = jnp.array([[0, -1, 7, -100, 6]])
  values, _ = token_log_probs(jnp.zeros((1, 5, 7)), tokens, jnp.array([[True, True, True, False, True]]))
  assert jnp.isnan(values).tolist() == [[False, True, True, False, False]]


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
  values = -np.asarray(token_log_probs(logits, tokens)[0])
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


MODES = ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]
PACKED = jnp.array([[1, 1, 1, 2, 2, 0, 0], [7, 0, 9, 9, 9, 9, 0]])  # also with holes and numbers of any size


def packed_batch():
  rng = np.random.default_rng(3)
  return jnp.asarray(rng.normal(size=(2, 7, 5)), jnp.float32), jnp.asarray(rng.integers(0, 5, (2, 7)))


def apart(*arrays):
  """The sequences of `PACKED`, one a row, padded on the right."""
  numbers = np.asarray(PACKED)
  at = [(row, np.flatnonzero(numbers[row] == n)) for row in range(2) for n in np.unique(numbers[row]) if n]
  assert [len(columns) for _, columns in at] == [3, 2, 1, 4]
  fill = lambda x: np.pad(x, [(0, 4 - len(x))] + [(0, 0)] * (x.ndim - 1))
  arrays = [np.asarray(array) for array in (*arrays, numbers != 0)]
  return [np.stack([fill(array[row, columns]) for row, columns in at]) for array in arrays]


def test_packed_rows_score_as_their_sequences_apart():
  logits, tokens = packed_batch()
  alone, alone_tokens, real = apart(logits, tokens)
  got, weights = jax.jit(token_log_probs)(logits, tokens, segment_ids=PACKED)
  want, want_weights = jax.jit(token_log_probs)(alone, alone_tokens, real)
  for packed, each in ((got, want), (weights, want_weights)):
    np.testing.assert_allclose(apart(packed)[0], each, rtol=1e-6)
    assert (np.asarray(packed)[np.asarray(PACKED) == 0] == 0).all()
  score = jax.jit(sequence_log_probs, static_argnames="normalize")
  for normalize in (None, "tokens"):
    got, weights = map(np.asarray, score(logits, tokens, PACKED != 0, normalize=normalize, segment_ids=PACKED))
    want, want_weights = score(alone, alone_tokens, real, normalize=normalize)
    np.testing.assert_allclose(got[[0, 0, 1, 1], [0, 1, 0, 1]], want, rtol=1e-6)
    np.testing.assert_array_equal(weights[[0, 0, 1, 1], [0, 1, 0, 1]], want_weights)
    assert want_weights.tolist() == [1, 1, 0, 1] and weights.sum() == 3


@pytest.mark.parametrize("mode", MODES)
def test_packed_rows_reduce_as_their_sequences_apart(mode):
  logits, tokens = packed_batch()
  alone, alone_tokens, real = apart(logits, tokens)
  options = {"mode": mode, **({"max_length": 5} if mode.endswith("norm") else {})}
  got = aggregate_tokens(
      *weighted_nll(logits, tokens, PACKED != 0, segment_ids=PACKED), segment_ids=PACKED, **options)
  want = aggregate_tokens(*weighted_nll(alone, alone_tokens, real), **options)
  assert got.value == pytest.approx(float(want.value), rel=1e-6) and got.weight == want.weight
  # Padding is no sequence, whatever the weights say.
  values, everything = jnp.array([[1.0, 1.0, 1.0, 5.0, 100.0]]), jnp.ones((1, 5))
  got = aggregate_tokens(values, everything, segment_ids=jnp.array([[1, 1, 1, 2, 0]]), **options)
  by_hand = dict(zip(MODES, (8 / 4, (1 + 5) / 2, (3 + 5) / 2, (3 + 5) / 2 / 5), strict=True))
  assert got.value == pytest.approx(by_hand[mode])


@pytest.mark.parametrize("mode", MODES)
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
  got, _ = token_log_probs(low, tokens)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, token_log_probs(low.astype(jnp.float32), tokens)[0], rtol=1e-6)


def test_errors_name_the_argument():
  logits, tokens, mask = batch()
  with pytest.raises(ValueError, match="normalize must be one of tokens or None; got 'token'"):
    sequence_log_probs(logits, tokens, mask, normalize="token")
  with pytest.raises(ValueError, match="mode must be one of .*nearest: token-mean"):
    aggregate_tokens(logits[..., 0], mask, mode="token_mean")
  with pytest.raises(ValueError, match="max_length belongs to mode"):
    aggregate_tokens(logits[..., 0], mask, max_length=3)
  with pytest.raises(ValueError, match="max_length must be at least 1 and finite; got 0"):
    aggregate_tokens(logits[..., 0], mask, mode="seq-mean-token-sum-norm", max_length=0)
  with pytest.raises(TypeError, match="max_length must be an integer or None; got nan"):
    aggregate_tokens(logits[..., 0], mask, mode="seq-mean-token-sum-norm", max_length=float("nan"))
  with pytest.raises(ValueError, match="max_length must be given with segment_ids"):
    aggregate_tokens(logits[..., 0], mask, mode="seq-mean-token-sum-norm", segment_ids=tokens)
  with pytest.raises(ValueError, match=r"segment_ids must be .*with time = 6 as in logits; got int32 \[3, 5\]"):
    token_log_probs(logits, tokens, segment_ids=tokens[:, 1:])
  with pytest.raises(ValueError, match="label_smoothing must lie in"):
    weighted_nll(logits, tokens, mask, label_smoothing=1.0)
  with pytest.raises(ValueError, match="z_loss must be >= 0 and finite"):
    weighted_nll(logits, tokens, mask, z_loss=-1.0)
  with pytest.raises(ValueError, match="z_loss must be >= 0 and finite; got inf"):
    weighted_nll(logits, tokens, mask, z_loss=float("inf"))
  far = np.asarray(tokens, np.int64) + 2**32  # JAX would take the ids themselves from it
  with pytest.raises(ValueError, match="tokens must hold integers that fit int32; got 42949"):
    weighted_nll(logits, far, mask)
