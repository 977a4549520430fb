"""Log-probabilities from states and a head: those of all logits, in values and gradients, and never all logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import losses

RNG = np.random.default_rng(0)
HIDDEN, HEAD = RNG.normal(size=(2, 11, 4)).astype(np.float32), RNG.normal(size=(4, 23)).astype(np.float32)
TOKENS = RNG.integers(0, 23, (2, 11), np.int32)
SEGMENTS = np.array([[1] * 4 + [2] * 5 + [0] * 2, [3] * 11], np.int32)
WHERE = (SEGMENTS != 0) & (RNG.random((2, 11)) < 0.8)


def test_they_are_those_of_all_logits():
  """Packed or not, of sums and averages; one program for the values and gradients of all."""
  layouts = [{}, {"segment_ids": SEGMENTS}]

  def pieces(hidden, head):
    given = {"chunk": 4, "temperature": 0.5}
    tokens = [losses.linear_token_log_probs(hidden, head, TOKENS, WHERE, **given, **more)[0] for more in layouts]
    sequences = [losses.linear_sequence_log_probs(hidden, head, TOKENS, WHERE, normalize=n, **given, **more)[0]
                 for n in (None, "tokens") for more in layouts]
    turned = losses.linear_token_log_probs(hidden, head.T, TOKENS, WHERE, transposed=True, **given)[0]
    statistics = [losses.token_statistics(hidden, head, TOKENS, WHERE, **given, **more) for more in layouts]
    return [*tokens, *sequences, turned, *(x for s in statistics for x in s[:3])]

  def whole(hidden, head):
    logits = hidden @ head / 0.5
    tokens = [losses.token_log_probs(logits, TOKENS, WHERE, **more) for more in layouts]
    sequences = [losses.sequence_log_probs(logits, TOKENS, WHERE, normalize=n, **more)[0]
                 for n in (None, "tokens") for more in layouts]
    log_p = jnp.roll(jax.nn.log_softmax(logits), 1, axis=1)
    each = lambda weights: [jnp.where(weights != 0, x, 0) for x in (
        -jnp.sum(jnp.exp(log_p) * log_p, axis=-1), jnp.log(jnp.sum(jnp.exp(log_p) ** 2, axis=-1)))]
    statistics = [(values, *each(weights)) for values, weights in tokens]
    return [*(values for values, _ in tokens), *sequences, tokens[0][0], *(x for s in statistics for x in s)]

  def run(f):
    weigh = lambda out: sum(jnp.sum(x * np.cos(np.arange(x.size)).reshape(x.shape)) for x in out)
    both = lambda *a: (f(*a), jax.grad(lambda *a: weigh(f(*a)), argnums=(0, 1))(*a))
    return jax.device_get(jax.jit(both)(HIDDEN, HEAD))

  (got, got_grads), (want, want_grads) = run(pieces), run(whole)
  assert len(got) == len(want) == 13
  for x, y in zip((*got, *got_grads), (*want, *want_grads), strict=True):
    np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)


def test_no_array_holds_all_logits():
  loss = lambda hidden, head: sum(
      jnp.sum(x) for x in (losses.linear_sequence_log_probs(hidden, head, TOKENS, WHERE, chunk=4)[0],
                           *losses.token_statistics(hidden, head, TOKENS, WHERE, chunk=4)[:3]))
  text = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(HIDDEN, HEAD))
  assert "2,4,23" in text and "2,11,23" not in text and "2,12,23" not in text


def test_errors_name_the_argument():
  with pytest.raises(ValueError, match="temperature must lie in"):
    losses.linear_token_log_probs(HIDDEN, HEAD, TOKENS, temperature=0.0)
  with pytest.raises(ValueError, match="normalize must be one of tokens or None; got 'token'"):
    losses.linear_sequence_log_probs(HIDDEN, HEAD, TOKENS, WHERE, normalize="token")
  with pytest.raises(ValueError, match="chunk must lie in"):
    losses.token_statistics(HIDDEN, HEAD, TOKENS, chunk=0)
