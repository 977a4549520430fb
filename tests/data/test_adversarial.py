"""Adversarial noise on vectors, repaired labels and confident pseudo-labels, by what follows from their definitions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.data import adversarial_consistency, adversarial_noise, folds, relabel
from jaxft.losses import symmetric_kl
from jaxft.selection import confident
from tests.draws import normal

HEAD, X = normal(0, 4, 3), normal(1, 5, 6, 4)
REAL = np.arange(6) < np.array([6, 3, 1, 6, 2])[:, None]


def logits_of(x):
  return jnp.tanh(x @ HEAD).mean(1)


@partial(jax.jit, static_argnames=("norm", "steps"))
def noise(x, step_size=0.1, steps=1, norm="max"):
  return adversarial_noise(
      jax.random.key(0), logits_of, x, init_scale=0.1, step_size=step_size, steps=steps, norm=norm, where=REAL)


def test_a_step_has_its_size_leaves_padding_and_moves_the_answer_away():
  start, token = noise(X, steps=0), noise(X)
  assert (np.abs(start) <= 0.2 + 1e-6).all() and (np.asarray(start)[~REAL] == 0).all()
  np.testing.assert_allclose(np.abs(token - start).max(-1), np.where(REAL, 0.1, 0.0), rtol=5e-2)
  row = noise(X, norm="l2")
  np.testing.assert_allclose(np.sqrt(np.square(row - start).sum((1, 2))), 0.1, rtol=1e-2)
  apart = lambda delta: np.asarray(symmetric_kl(logits_of(X + delta), logits_of(X))[0])
  assert (apart(token) > apart(start)).all() and (apart(row) > apart(start)).all()
  assert apart(noise(X, steps=3)).sum() > apart(token).sum()


def test_a_row_that_is_broken_keeps_its_noise_and_spoils_no_other():
  broken = noise(X.at[2].set(jnp.nan))
  np.testing.assert_array_equal(broken[2], noise(X, steps=0)[2])
  np.testing.assert_array_equal(broken[jnp.array([0, 1, 3, 4])], noise(X)[jnp.array([0, 1, 3, 4])])


def test_the_gradient_takes_delta_as_a_constant_and_flows_through_both_answers():
  key, head = jax.random.key(1), np.asarray(HEAD)

  @jax.jit
  def both(head):
    f = lambda x: (x @ head).mean(1)
    delta = adversarial_noise(key, f, X, init_scale=0.1, step_size=0.1)
    by_hand = lambda head: symmetric_kl((X @ head + delta @ head).mean(1), (X @ head).mean(1))[0].sum()
    whole = lambda head: adversarial_consistency(
        key, lambda x: (x @ head).mean(1), X, init_scale=0.1, step_size=0.1).sum()
    squared = adversarial_consistency(key, f, X, divergence=lambda p, q: jnp.square(p - q).sum(-1), init_scale=0.1)
    return jax.value_and_grad(whole)(head), jax.value_and_grad(by_hand)(head), squared

  got, want, squared = both(head)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)
  assert squared.shape == (5,) and (squared > 0).all()
  for wrong in ({"norm": "l1"}, {"init_scale": -1.0}, {"step_size": float("nan")}, {"steps": -1}):
    with pytest.raises(ValueError, match=next(iter(wrong))):
      adversarial_noise(key, logits_of, X, **wrong)


def test_relabel_and_folds():
  probs = jnp.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
  labels = jnp.array([1, 0, 1])
  np.testing.assert_array_equal(relabel(labels, probs), np.eye(2)[[1, 0, 1]])
  np.testing.assert_array_equal(relabel(labels, probs, threshold=1.1), np.eye(2)[[1, 0, 1]])
  np.testing.assert_array_equal(relabel(labels, probs, threshold=0.9), np.eye(2)[[0, 0, 1]])
  np.testing.assert_allclose(relabel(labels, probs, mix=1.0), probs)
  np.testing.assert_allclose(relabel(labels, probs, mix=0.5, threshold=0.5)[1], [0.2, 0.8], rtol=1e-6)
  assert np.isnan(relabel(jnp.array([2, 0, -1]), probs)[jnp.array([0, 2])]).all()
  for wrong, name in (({"mix": 1.5}, "mix"), ({"threshold": 0.0}, "threshold")):
    with pytest.raises(ValueError, match=name):
      relabel(labels, probs, **wrong)
  with pytest.raises(ValueError, match="probs must be finite"):
    relabel(labels, probs.at[0].set(jnp.nan))
  fold = folds(np.random.default_rng(0), 7, 3)
  assert sorted(np.bincount(fold).tolist()) == [2, 2, 3] and (fold != folds(np.random.default_rng(1), 7, 3)).any()
  with pytest.raises(ValueError, match=r"count must lie in 2\.\.7"):
    folds(np.random.default_rng(0), 7, 8)


def test_confident():
  probs = jnp.array([[0.5, 0.5], [0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.45, 0.55]])
  chosen = lambda **options: np.flatnonzero(confident(probs, **options)[0]).tolist()
  assert chosen(threshold=0.6) == [1, 2, 3] and chosen(threshold=1.1) == []
  assert chosen(top_per_class=1) == [1, 3] and chosen(top_per_class=9) == [0, 1, 2, 3, 4]
  assert chosen(top_per_class=2, threshold=0.58) == [1, 2, 3]
  broken = jax.jit(lambda p: confident(p, top_per_class=2))(probs.at[1].set(jnp.nan))
  assert broken[0].tolist() == [True, False, True, True, True] and broken[1].tolist() == [0, -1, 0, 1, 1]
  for wrong, message in (({}, "must be given; got neither"), ({"threshold": 0.0}, "threshold"),
                         ({"top_per_class": 0}, "top_per_class")):
    with pytest.raises(ValueError, match=message):
      confident(probs, **wrong)
