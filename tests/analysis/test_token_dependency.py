"""Which predictions change with which tokens, of models whose dependence is known; and noise against signal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.analysis import layer_snr, token_dependency

IDS = np.array([[1, 7, 2, 3, 1], [3, 3, 7, 1, 2]], np.int32)
DIGITS = IDS < 7


def looks(offset):
  """A model whose prediction at j is the token at j - offset."""
  return lambda ids: jax.nn.one_hot(jnp.roll(ids, offset - 1, axis=1), 9)


def test_a_model_that_copies_depends_on_what_it_copies():
  for offset in (1, 2):
    found = token_dependency(looks(offset), IDS, DIGITS, jax.random.key(0), candidates=[1, 2, 3])
    changed = np.asarray(found.changed)
    for b, i, j in np.ndindex(changed.shape):
      assert changed[b, i, j] == (DIGITS[b, i] and DIGITS[b, j] and j - i == offset)
    rates = np.asarray(found.by_distance())
    assert rates[offset] == 1 and np.nansum(rates) == 1 and np.isnan(rates[0])
  pairs = np.triu(DIGITS[:, :, None] & DIGITS[:, None], 1)
  assert (np.asarray(found.counted) == pairs).all()
  np.testing.assert_allclose(found.rate(), changed.sum() / pairs.sum())


def test_rates_of_some_tokens_to_some():
  question, answer = np.arange(5) < 3, np.arange(5) >= 3
  sources, targets = np.tile(question, (2, 1)), np.tile(answer, (2, 1))
  found = token_dependency(looks(2), IDS, np.ones_like(DIGITS), jax.random.key(1), candidates=[1, 2, 3, 7])
  assert found.rate(sources, targets) == 2 / 6  # 1 -> 3 and 2 -> 4 of three tokens and two
  assert found.rate(targets, targets) == 0 and np.isnan(found.rate(targets, sources))
  alone = token_dependency(looks(1), IDS, sources, jax.random.key(1), candidates=[1, 2], targets=targets)
  assert alone.counted.sum() == 12 and alone.changed.sum() == 2  # 2 -> 3 of each row


def test_replacements_are_other_candidates_and_equally_likely():
  seen = []
  ids = jnp.full((300, 1), 5)
  both = jnp.concatenate([ids, ids], axis=1)

  def apply(x):
    seen.append(x)
    return jax.nn.one_hot(x, 9)

  where = np.array([[True, False]] * 300)
  with jax.disable_jit():
    token_dependency(apply, both, where, jax.random.key(2), candidates=[4, 5, 8])
  new = np.asarray(seen[1][:, 0])
  assert set(new) == {4, 8} and abs((new == 4).mean() - 0.5) < 0.09 and (np.asarray(seen[1][:, 1]) == 5).all()
  for bad in ([4], [4, 4], [-1, 2]):
    with pytest.raises(ValueError, match="at least two different ids"):
      token_dependency(apply, both, where, jax.random.key(0), candidates=bad)


def test_signal_to_noise_of_known_noise():
  states = np.random.default_rng(0).normal(size=(3, 2, 50, 16)) * np.array([1, 3, 0])[:, None, None, None]
  where = np.arange(50) < np.array([[50], [10]])
  states = np.where(where[..., None], states, np.nan)  # what does not count may hold anything
  noise = lambda key, h: h + 0.5 * jax.random.normal(key, h.shape)
  found = np.asarray(layer_snr(states.astype(np.float32), noise, jax.random.key(0), where=where, draws=4))
  np.testing.assert_allclose(found, [2.0, 6.0, 0.0], rtol=0.05, atol=1e-6)
  none = layer_snr(np.ones((1, 1, 2, 4), np.float32), lambda key, h: h, jax.random.key(0), draws=1)
  np.testing.assert_allclose(none, 1e6, rtol=1e-3)
  with pytest.raises(ValueError, match="draws must"):
    layer_snr(np.ones((1, 1, 2, 4), np.float32), noise, jax.random.key(0), draws=0)
